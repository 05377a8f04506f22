"""The Flax folders of VQGANs that came with DALL-E mini: taming's modules, with kernels as Flax has them."""

import re
from collections.abc import Mapping, Sequence

from vqgan_jax.convert import infer, names, trees
from vqgan_jax.convert.names import SAME, Entry
from vqgan_jax.convert.tensors import Checkpoint

LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}  # there, and of taming's


def plan(checkpoint: Checkpoint, *, allow: Sequence[str] = ()) -> trees.Converted:
    """Finds a VQ model in a file; each array is a `Tensor` of its final shape that is read when it is asked for.

    Args:
      checkpoint: an opened folder, or its file of weights alone.
      allow: patterns, as of file names, of tensors that may be missing, unexpected or of another shape.

    Raises:
      ConvertError: a tensor is missing, unexpected or of another shape.
    """
    tensors = checkpoint.tensors
    config = infer.stage1({_taming(name): _torch(tensor.shape) for name, tensor in tensors.items()})
    return trees.tokenizer(config, entries, tensors, allow=allow)


def entries(shapes: Mapping[str, names.Shape]) -> dict[str, Entry]:
    """Returns every tensor by its name there; its numbers lie as ours do."""
    return {
        _flax(name, entry.path.rsplit("/", 1)[1]): Entry(entry.path, entry.index, shapes[entry.path], SAME)
        for name, entry in names.entries(names.autoencoder(), shapes).items()
    }


def _flax(name: str, leaf: str) -> str:
    """Returns theirs for a name of taming's and the last part of our path."""
    stem = re.sub(r"\.(\d+)", r"_\1", name.rsplit(".", 1)[0])  # a list's number joins the list's name
    return f"{stem}.{'embedding' if leaf == 'codebook' else leaf}".replace(".", "/")


def _taming(name: str) -> str:
    """Returns taming's for a name of theirs, as far as a config needs it."""
    stem, _, leaf = name.rpartition("/")
    stem = re.sub(r"\b(down|up)_(\d+)/(block|attn)_(\d+)", r"\1.\2.\3.\4", stem)
    return f"{stem.replace('/', '.')}.{LEAVES.get(leaf, leaf)}"


def _torch(shape: names.Shape) -> names.Shape:
    """Returns the shape that torch gives to a kernel (height, width, in, out)."""
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape
