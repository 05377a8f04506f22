"""DINOv2's weights, as its authors publish them; never downloaded, looked up by name in a folder."""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp

from vqgan_jax.convert import names, trees
from vqgan_jax.convert.names import CONV, FLAT, LAYER, OUT, Row
from vqgan_jax.convert.read import find_published, open_checkpoint
from vqgan_jax.nn.dinov2 import DINOv2

FILES = ("dinov2_vits14_pretrain.pth", "dinov2_vits14_pretrain.safetensors")
RULES: names.Rules = (("^blocks/", "blocks.{}."), ("(kernel|scale)$", "weight"), ("/", "."))
_theirs = functools.partial(names.renamed, RULES)
TABLE = (
    Row("blocks/.*/kernel", _theirs, OUT, (LAYER,)),
    Row("blocks/.*", _theirs, FLAT, (LAYER,)),
    Row(".*/kernel", _theirs, CONV),
    Row(".*", _theirs),
)


def load_dinov2(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Returns parameters of `nn.dinov2.DINOv2`, float32, 22.1 million.

    Args:
      path: a file of tensors by the authors' names; by default the first of `FILES` in the folder of VQGAN_JAX_CACHE.

    Raises:
      FileNotFoundError: there is no such file.
      ConvertError: a file holds something else, such as the network with registers.
    """
    source = "the file of DINOv2's authors (ViT-S/14 distilled, without registers)"
    path = path or find_published(FILES, "this `config.loss.semantic` needs DINOv2's weights", source)
    images = [jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)] * 2
    return trees.load(DINOv2(), images, TABLE, open_checkpoint(path).tensors, ("mask_token",))
