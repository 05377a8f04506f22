"""FID's Inception weights, from files that others publish; never downloaded, looked up by name in a folder."""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vqgan_jax.convert import trees
from vqgan_jax.convert.names import CONV, OUT, Row
from vqgan_jax.convert.read import find_published, open_checkpoint
from vqgan_jax.nn.inception import SIDE, Inception

# As published: of pytorch-fid, of torch-fidelity, of jax-fid. The first that is there is taken; all hold the same.
FILES = (
    "pt_inception-2015-12-05-6726825d.pth",
    "weights-inception-2015-12-05-6726825d.pth",
    "inception_v3_weights_fid.pickle",
)
# Not for FID's logits, and a counter of training.
DROPPED = ("fc.bias", "*.num_batches_tracked")

# By the names of a torch module, and by those of Flax's trees joined by dots.
TORCH = (
    Row("fc", "fc.weight", OUT),
    Row(r"(.+)/kernel", r"\1.conv.weight", CONV),
    Row(r"(.+)/scale", r"\1.bn.weight"),
    Row(r"(.+)/bias", r"\1.bn.bias"),
    Row(r"(.+)/(mean|var)", r"\1.bn.running_\2"),
)
FLAX = (
    Row("fc", "fc.kernel"),
    Row(r"(.+)/kernel", r"\1.conv.kernel"),
    Row(r"(.+)/(scale|bias|mean|var)", r"\1.bn.\2"),
)


def find_inception() -> Path:
    """Returns the weights in the folder of `find_published`; FileNotFoundError if none of `FILES` is there."""
    need = "FID, KID and the Inception Score need Inception's weights"
    return find_published(FILES, need, "one, as of the releases of pytorch-fid,")


def load_inception(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Returns parameters of `nn.inception.Inception`, float32, 23.9 million.

    Args:
      path: a state dict of torch's, or jax-fid's tree; by default what `find_inception` finds.

    Raises:
      FileNotFoundError: there is no such file.
      ConvertError: it is no checkpoint, or of another network, such as torchvision's Inception v3.
    """
    tensors = open_checkpoint(find_inception() if path is None else path).tensors
    tensors = {name.replace("/", "."): tensor for name, tensor in tensors.items()}
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), jnp.float32)
    return trees.load(Inception(), [image], FLAX if "fc.kernel" in tensors else TORCH, tensors, DROPPED)
