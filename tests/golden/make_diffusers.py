"""Writes the folders `diffusers_mid` and `diffusers_levels`: tiny VQ models and what diffusers makes of images.

    pip install -e '.[parity]'
    python tests/golden/make_diffusers.py

Each holds what `VQModel.save_pretrained` writes, and `arrays.npz`; see README.md.
"""
# pyright: reportMissingImports=false

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import VQModel

SMALL = {
    **{"in_channels": 3, "out_channels": 3, "layers_per_block": 1, "norm_num_groups": 2, "sample_size": 16},
    **{"num_vq_embeddings": 32, "latent_channels": 6, "vq_embed_dim": 5},
}
MODELS = {
    # Three levels of different widths; attention in the middle only, as by default.
    "mid": SMALL
    | {
        "block_out_channels": (4, 8, 12),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    },
    # Attention at the lowest level too, the last one down and the first one up.
    "levels": SMALL
    | {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    },
}


def main() -> None:
    """Writes both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    for seed, (name, config) in enumerate(MODELS.items()):
        model, arrays = make(config, seed)
        folder = flags.out / f"diffusers_{name}"
        model.save_pretrained(folder)
        np.savez_compressed(folder / "arrays.npz", **arrays)
        print(f"{name}: {sum(p.numel() for p in model.parameters())} parameters, margin {arrays['margin']:.1e}")


@torch.no_grad()
def make(config: dict, seed: int) -> tuple[VQModel, dict[str, np.ndarray]]:
    """A model of random weights, and its images (NHWC), latents, indices, margin and reconstructions."""
    torch.manual_seed(seed)
    model = VQModel(**config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # scales of norms that are not 1, biases that are not 0
            parameter += 0.2 * torch.randn_like(parameter)
    images = torch.rand(2, 3, 24, 16) * 2 - 1
    latents = model.encode(images).latents
    flat = latents.permute(0, 2, 3, 1).flatten(0, 2)
    table = model.quantize.embedding.weight
    table[:] = flat[torch.randperm(len(flat))[torch.arange(len(table)) % len(flat)]]
    table += 0.3 * flat.std() * torch.randn_like(table)  # near the latents, so that many codes are hit
    _, _, (_, _, indices) = model.quantize(latents)
    nearest = (torch.cdist(flat, table) ** 2).sort(1).values
    grid = (latents.shape[0], *latents.shape[2:])
    return model, {
        "images": nhwc(images),
        "latents": nhwc(latents),
        "indices": indices.reshape(grid).numpy().astype(np.int32),
        "margin": np.float32((nearest[:, 1] - nearest[:, 0]).min()),
        "recon": nhwc(model(images).sample),
    }


def nhwc(x: torch.Tensor) -> np.ndarray:
    """Channels last."""
    return np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())


if __name__ == "__main__":
    main()
