"""The Flax folders of VQGANs that came with DALL-E mini: upstream's modules, with kernels as Flax has them."""

import functools

from vqgan_jax.convert import infer, names, trees
from vqgan_jax.convert.tensors import Checkpoint

# A list's number joins the list's name.
RULES: names.Rules = (*names.MODULES, (r"\.(\d+)", r"_\1"), ("codebook$", "embedding"), (r"\.", "/"))


def plan(checkpoint: Checkpoint) -> trees.Converted:
    """Finds a VQ model in a file; each array is a `Tensor` of its final shape that is read when it is asked for.

    Args:
      checkpoint: an opened folder, or its file of weights alone.

    Raises:
      ConvertError: the shapes are those of another kind of model.
    """
    name = functools.partial(names.renamed, RULES)
    config = infer.stage1(checkpoint.tensors, name, flax=True)
    return trees.tokenizer(config, names.autoencoder(name, names.SAME), checkpoint.tensors)
