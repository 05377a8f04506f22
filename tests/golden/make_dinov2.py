"""Writes the reference arrays of DINOv2's features and of the semantic loss: what timm and torch compute, on a CPU.

The weights are random, drawn by `drawn.weight` here and in the tests. Nothing is downloaded. Torch is needed here and
nowhere else, so give this script an environment of its own:

    pip install torch==2.13.0 pillow
    pip install --no-deps torchvision==0.28.0 timm==1.0.31
    python tests/golden/make_dinov2.py

README.md beside this file says what each array is.
"""
# pyright: reportMissingImports=false, reportMissingModuleSource=false

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import drawn

PATCH = 14
GRIDS = {"small": (4, 4), "large": (8, 6)}


def semantic(torch, network, images, grid):
    """Features of every patch, the distances of projected codes from them, and the gradient of their mean by codes."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    x = torch.from_numpy(images.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(127.5) - 1)
    size = [PATCH * n for n in grid]
    x = torch.nn.functional.interpolate((x + 1) / 2, size=size, mode="bicubic", align_corners=False, antialias=True)
    features = network.forward_features((x - mean) / std)[:, 1:].unflatten(1, grid)

    draw = lambda name, *shape: torch.from_numpy(drawn.weight(name, shape))
    codes = draw("codes", len(images), *grid, 8).requires_grad_()
    projected = codes @ draw("projection.weight", features.shape[-1], 8).T + draw("projection.bias", features.shape[-1])
    distances = 1 - torch.nn.functional.cosine_similarity(projected, features, dim=-1)
    distances.mean().backward()
    values = {"features": features, "distances": distances, "gradient": codes.grad}
    return {name: value.detach().numpy() for name, value in values.items()}


def main():
    import torch

    # The wheel of torchvision looks for operators of another torch; nothing here calls them.
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    library.define("qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    torch.set_num_threads(1)
    from timm.models import create_model

    network = create_model("vit_small_patch14_dinov2", pretrained=False, dynamic_img_size=True).eval()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict({name: torch.from_numpy(drawn.weight(name, shape)) for name, shape in shapes.items()})
    network.requires_grad_(False)
    images = {"small": drawn.pairs()[0][:2], "large": drawn.mirrored()[0]}
    arrays = {size: semantic(torch, network, images[size], grid) for size, grid in GRIDS.items()}
    flat = {f"{size}/{name}": array for size, named in arrays.items() for name, array in named.items()}
    tensors = np.array([" ".join(map(str, (name, *shape))) for name, shape in shapes.items()])
    np.savez_compressed(Path(__file__).parent / "dinov2.npz", tensors=tensors, **flat)


if __name__ == "__main__":
    main()
