"""The formats by name: which of them a file is, and what would be loaded of it."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from vqgan_jax.convert import dalle_mini, diffusers, llamagen, llamagen_gpt, maskgit, native, taming
from vqgan_jax.convert.trees import Converted
from vqgan_jax.convert.weights import Checkpoint, ConvertError


class Format(NamedTuple):
    """Somebody's way to write models.

    Attributes:
      plan: from an opened file to a model whose arrays are not read yet.
      signs: names of tensors, one of which tells the format.
    """

    plan: Callable[..., Converted]
    signs: tuple[str, ...]


FORMATS = {
    "safetensors": Format(native.plan, ("generator/encoder/conv_in/kernel", "transformer/embedding")),
    "llamagen": Format(llamagen.plan, ("encoder.conv_blocks.0.res.0.conv1.weight",)),
    "llamagen_gpt": Format(llamagen_gpt.plan, ("layers.0.attention.wqkv.weight",)),
    "maskgit": Format(maskgit.plan, ("params/encoder/ResBlock_0/Conv_0/kernel",)),
    "dalle_mini": Format(dalle_mini.plan, ("encoder/down_0/block_0/conv1/kernel",)),
    "diffusers": Format(diffusers.plan, ("encoder.down_blocks.0.resnets.0.conv1.weight",)),
    "taming": Format(
        taming.plan,
        (
            "transformer.tok_emb.weight",
            "encoder.down.0.block.0.conv1.weight",
            "first_stage_model.encoder.conv_in.weight",
        ),
    ),
}


def recognise(checkpoint: Checkpoint) -> str:
    """Name of a file's format, by the names of its tensors; ConvertError if it is none."""
    for name, each in FORMATS.items():
        if any(sign in checkpoint.tensors for sign in each.signs):
            return name
    raise ConvertError(
        f"a checkpoint must be of one of the formats {', '.join(FORMATS)}; no name "
        f"among its {len(checkpoint.tensors)} tensors tells one, they begin with "
        f"{', '.join(list(checkpoint.tensors)[:3])}. Give another file."
    )


def plan(checkpoint: Checkpoint, format: str | None = None, **options: Any) -> Converted:
    """What would be loaded of a file: each array is a `Tensor` that is read when it is asked for.

    Args:
      checkpoint: an opened file.
      format: a name of `FORMATS`; None goes by the names of the tensors.
      options: of the format's own `plan`; those that are None are left out.

    Raises:
      ConvertError: the file is not of that format, or the format has no such option.
    """
    name = format or recognise(checkpoint)
    if name not in FORMATS:
        raise ConvertError(f"a format must be one of {', '.join(FORMATS)}; got {name!r}.")
    given = {key: value for key, value in options.items() if value is not None}
    known = inspect.signature(FORMATS[name].plan).parameters
    for key in given.keys() - known.keys():
        raise ConvertError(f"the format {name!r} has no option `{key}`; it has {', '.join(list(known)[1:])}.")
    return FORMATS[name].plan(checkpoint, **given)
