"""Writes the reference arrays of the quantizers that came after the paper: those of vector-quantize-pytorch.

    pip install 'torch==2.13.0' 'vector-quantize-pytorch==1.32.0'
    python tests/golden/make_codes.py

Of every case: latents, quantized, indices, the loss of the library, and the gradients of `sum(quantized * cotangent)`
and of the loss to the latents.
"""
# pyright: reportMissingImports=false

from pathlib import Path

import numpy as np
import torch
from vector_quantize_pytorch import FSQ, LFQ, SimVQ
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)


def normal(*shape):
    """Multiples of 1/64, about normal."""
    return torch.round(64 * torch.randn(*shape, generator=generator)) / 64


def case(quantize, d, *, parameters=()):
    """Arrays of a function from latents (1 60 d) to quantized, indices and loss."""
    latents = normal(1, 60, d).requires_grad_()
    cotangent = normal(1, 60, d)
    quantized, indices, loss = quantize(latents)
    out = {"latents": latents, "cotangent": cotangent, "quantized": quantized, "indices": indices, "loss": loss}
    out["by_quantized"] = torch.autograd.grad((quantized * cotangent).sum(), latents, retain_graph=True)[0]
    if loss.requires_grad:
        out["by_loss"] = torch.autograd.grad(loss, latents, retain_graph=True)[0]
        for name, parameter in parameters:
            out[f"{name}_by_loss"] = torch.autograd.grad(loss, parameter, retain_graph=True)[0]
    return {name: array.detach().numpy() for name, array in out.items()}


def fsq():
    """Levels of both parities."""
    module = FSQ(levels=[8, 5, 4])

    def quantize(latents):
        quantized, indices = module(latents)
        return quantized, indices, torch.zeros(())

    return case(quantize, 3)


def lfq(**fields):
    """Six bits; a temperature at which the entropies are neither zero nor all there is."""
    module = LFQ(
        dim=6, codebook_size=64, entropy_loss_weight=0.1, diversity_gamma=1.0, commitment_loss_weight=0.25, **fields
    )
    module.train()

    def quantize(latents):
        out = module(latents, inv_temperature=0.5)
        return out.quantized, out.indices, out.entropy_aux_loss

    return case(quantize, 6)


def simvq(*, rotation_trick):
    """Sixteen frozen codes and a matrix."""
    module = SimVQ(dim=5, codebook_size=16, rotation_trick=rotation_trick)
    frozen, matrix = normal(16, 5) / 2, normal(5, 5)
    with torch.no_grad():
        module.frozen_codebook.copy_(frozen)
        module.code_transform.weight.copy_(matrix)

    def quantize(latents):
        return module(latents)

    out = case(quantize, 5, parameters=[("matrix", module.code_transform.weight)])
    return out | {"frozen": frozen.numpy(), "matrix": matrix.numpy()}


def rotation():
    """Latents turned onto codes, lengths and all."""
    codes = normal(1, 60, 4)

    def quantize(latents):
        return rotate_to(latents, codes), torch.zeros(1, 60), torch.zeros(())

    return case(quantize, 4) | {"codes": codes.numpy()}


if __name__ == "__main__":
    cases = {
        "fsq": fsq(),
        "lfq": lfq(),
        "bsq": lfq(spherical=True),
        "simvq": simvq(rotation_trick=False),
        "simvq_rotation": simvq(rotation_trick=True),
        "rotation": rotation(),
    }
    arrays = {f"{name}/{part}": array for name, parts in cases.items() for part, array in parts.items()}
    np.savez_compressed(Path(__file__).parent / "codes.npz", **arrays)
    print({name: array.shape for name, array in arrays.items()})
