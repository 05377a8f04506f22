"""ResNet50's weights, as torchvision publishes them; never downloaded, looked up by name in a folder."""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp

from vqgan_jax.convert import names, trees
from vqgan_jax.convert.names import CONV, OUT, Row
from vqgan_jax.convert.read import find_published, open_checkpoint
from vqgan_jax.nn.perceptual import LogitDistance

# torchvision's IMAGENET1K_V1. The weights of its V2 have the same shapes and other logits: it is another loss.
FILES = ("resnet50-0676ba61.pth", "resnet50-0676ba61.safetensors")
RULES: names.Rules = (
    ("^resnet/", ""),
    ("downsample/kernel", "downsample.0/kernel"),
    ("downsample/", "downsample.1/"),
    (r"conv(\d)/(?!kernel)", r"bn\1/"),
    ("(mean|var)$", r"running_\1"),
    ("(kernel|scale)$", "weight"),
    ("/", "."),
)
_theirs = functools.partial(names.renamed, RULES)
TABLE = (Row("resnet/fc/kernel", _theirs, OUT), Row(".*/kernel", _theirs, CONV), Row(".*", _theirs))


def load_resnet50(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Returns parameters of `nn.perceptual.LogitDistance`, float32, 25.6 million.

    Args:
      path: a file of tensors by torchvision's names; by default the first of `FILES` in the folder of VQGAN_JAX_CACHE.

    Raises:
      FileNotFoundError: there is no such file.
      ConvertError: a file holds something else.
    """
    source = "torchvision's file (ResNet50_Weights.IMAGENET1K_V1)"
    path = path or find_published(FILES, "this `config.loss.perceptual` needs ResNet50's weights", source)
    images = [jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)] * 2
    return trees.load(LogitDistance(), images, TABLE, open_checkpoint(path).tensors, ("*.num_batches_tracked",))
