"""Writes the reference arrays of the distance by ResNet50's logits: what torchvision and torch compute, on a CPU.

The weights are random, drawn by `drawn.weight` here and in the tests, all statistics of BatchNorm included. Nothing is
downloaded. Torch is needed here and nowhere else, so give this script an environment of its own:

    pip install torch==2.13.0 pillow
    pip install --no-deps torchvision==0.28.0
    python tests/golden/make_resnet.py

README.md beside this file says what each array is.
"""
# pyright: reportMissingImports=false, reportMissingModuleSource=false

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
import drawn


def distances(torch, network, x, y):
    """The logits of both batches, the mean squared difference of each pair, and the gradient of their sum by y."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    x, y = (torch.from_numpy(v.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(127.5) - 1) for v in (x, y))
    y.requires_grad_()

    def logits(images):
        resize = torch.nn.functional.interpolate
        images = resize((images + 1) / 2, size=224, mode="bilinear", align_corners=False, antialias=True)
        return network((images - mean) / std)

    found = logits(x), logits(y)
    each = (found[0] - found[1]).square().mean(-1)
    each.sum().backward()
    gradient = y.grad.permute(0, 2, 3, 1)
    values = {"logits_x": found[0], "logits_y": found[1], "distances": each, "gradient": gradient}
    return {name: value.detach().numpy() for name, value in values.items()}


def main():
    import torch

    # The wheel of torchvision looks for operators of another torch; nothing here calls them.
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    library.define("qnms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    torch.set_num_threads(1)
    from torchvision.models import resnet50

    network = resnet50(weights=None).eval()
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items() if value.ndim}
    network.load_state_dict(
        {name: torch.from_numpy(drawn.weight(name, shape)) for name, shape in shapes.items()}, strict=False
    )
    network.requires_grad_(False)
    large = distances(torch, network, *drawn.mirrored())
    large["gradient"] = large["gradient"][:, ::13, ::13]
    arrays = {"small": distances(torch, network, *(v[:1] for v in drawn.pairs())), "large": large}
    flat = {f"{size}/{name}": array for size, named in arrays.items() for name, array in named.items()}
    tensors = np.array([" ".join(map(str, (name, *shape))) for name, shape in shapes.items()])
    np.savez_compressed(Path(__file__).parent / "resnet.npz", tensors=tensors, **flat)


if __name__ == "__main__":
    main()
