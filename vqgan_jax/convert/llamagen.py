"""LlamaGen's image tokenizers: upstream's network by other names, its codes compared as directions.

References:
  Sun et al. 2024, Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation.
"""

import dataclasses
import re
from collections.abc import Sequence

from vqgan_jax.convert import infer, names, trees
from vqgan_jax.convert.names import ATTN, ENDS, RES, Place, Table
from vqgan_jax.convert.weights import Checkpoint

DROPPED = ("quantize.codebook_used",)  # a log of the codes that were hit last


def plan(checkpoint: Checkpoint, *, allow: Sequence[str] = ()) -> trees.Converted:
    """Finds a tokenizer in a file; each array is a `Tensor` of its final shape that is read when it is asked for.

    The codebook stays as it is stored; `quantizer.unit_length` divides it by its lengths wherever it is used.

    Args:
      checkpoint: an opened file.
      allow: patterns, as of file names, of tensors that may be missing, unexpected or of another shape.

    Raises:
      ConvertError: a tensor is missing, unexpected or of another shape.
    """
    tensors = checkpoint.tensors
    config = infer.stage1({_renamed(name): tensor.shape for name, tensor in tensors.items()})
    # Its loss has its beta of 0.25 on the commitment, as the paper of the VQ-VAE has it.
    loss = dataclasses.replace(config.loss, codebook_weight=1.0, commitment_weight=0.25)
    config = dataclasses.replace(config, quantizer=dataclasses.replace(config.quantizer, unit_length=True), loss=loss)
    shapes = trees.stage1_shapes(config)
    entries = names.entries(vq_model(len(config.model.channel_multipliers)), shapes)
    converted = trees.tokenizer(config, shapes, entries, tensors, DROPPED)
    trees.check(converted.report, allow)
    return converted


def vq_model(levels: int) -> Table:
    """The table of a tokenizer of so many levels."""
    places = [
        place
        for net, resample, first in (
            ("encoder", "downsample", 0),
            ("decoder", "upsample", levels - 1),  # numbered as they run, from the lowest resolution
        )
        for level in range(levels)
        for block in (f"{net}.conv_blocks.{abs(first - level)}",)
        for place in (
            Place(rf"{net}/level_{level}_block_(\d+)", rf"{block}.res.\1", RES),
            Place(rf"{net}/level_{level}_attn_(\d+)", rf"{block}.attn.\1", ATTN),
            Place(f"{net}/level_{level}_{resample}", f"{block}.{resample}", names.CONV_ONLY),
        )
    ]
    places += [
        Place("(encoder|decoder)/middle_block_0", r"\1.mid.0", RES),
        Place("(encoder|decoder)/middle_attn", r"\1.mid.1", ATTN),
        Place("(encoder|decoder)/middle_block_1", r"\1.mid.2", RES),
        Place("(encoder|decoder)", r"\1", ENDS),
    ]
    return names.autoencoder(places)


def _renamed(name: str) -> str:
    """As much of taming's names as a config is inferred from."""
    name = re.sub(r"^encoder\.conv_blocks\.(\d+)\.res\.", r"encoder.down.\1.block.", name)
    return re.sub(r"^encoder\.conv_blocks\.(\d+)\.attn\.", r"encoder.down.\1.attn.", name)
