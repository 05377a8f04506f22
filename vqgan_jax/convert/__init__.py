"""Other people's weights, read without their libraries and without running their pickles, and written for them."""

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax

from vqgan_jax import models, prior
from vqgan_jax.convert import dalle_mini, diffusers, llamagen, maskgit, taming, trees, write
from vqgan_jax.convert.read import open_checkpoint
from vqgan_jax.convert.tensors import Checkpoint, ConvertError, Tensor
from vqgan_jax.convert.trees import Converted
from vqgan_jax.models import Prior, Tokenizer

__all__ = ["FORMATS", "ConvertError", "load", "model", "open_checkpoint", "plan", "recognise"]


class Format(NamedTuple):
    """Somebody's way to write models.

    Attributes:
      plan: from an opened file to a model whose arrays are not read yet.
      signs: names of tensors, one of which tells the format.
    """

    plan: Callable[..., Converted]
    signs: tuple[str, ...]


FORMATS = {
    "safetensors": Format(write.plan, ("generator/encoder/conv_in/kernel", "transformer/embedding")),
    "llamagen": Format(llamagen.plan, ("encoder.conv_blocks.0.res.0.conv1.weight",)),
    "llamagen_gpt": Format(llamagen.plan_gpt, ("layers.0.attention.wqkv.weight",)),
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
    """Returns the name of a file's format, by the names of its tensors; ConvertError if it is none."""
    for name, each in FORMATS.items():
        if any(sign in checkpoint.tensors for sign in each.signs):
            return name
    first = ", ".join(list(checkpoint.tensors)[:3])
    raise ConvertError(
        f"a checkpoint must be one of {', '.join(FORMATS)}; its names begin with {first}. Name its format."
    )


def plan(
    checkpoint: Checkpoint, format: str | None = None, *, allow: Sequence[str] | None = None, **options: Any
) -> Converted:
    """Returns what would be loaded of a file: each array is a `Tensor` that is read when it is asked for.

    Args:
      checkpoint: an opened file.
      format: a name of `FORMATS`; None goes by the names of the tensors.
      allow: patterns, as of file names, of tensors that may be missing, unexpected or of another shape.
      options: of the format's own `plan`; those that are None are left out.

    Raises:
      ConvertError: the file is not of that format; a tensor is missing, unexpected or of another shape; or the format
        has no such option.
    """
    name = format or recognise(checkpoint)
    if name not in FORMATS:
        raise ConvertError(f"a format must be one of {', '.join(FORMATS)}; got {name!r}.")
    given = {key: value for key, value in options.items() if value is not None}
    known = inspect.signature(FORMATS[name].plan).parameters
    for key in given.keys() - known.keys():
        raise ConvertError(f"the format {name!r} has no option `{key}`; it has {', '.join(list(known)[1:])}.")
    planned = FORMATS[name].plan(checkpoint, **given)
    trees.check(planned.report, allow or ())
    return planned


def load(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    shardings: jax.sharding.Sharding | Callable[[Any], Any] | None = None,
    **options: Any,
) -> Tokenizer | Prior:
    """Loads a tokenizer, or a prior with its tokenizers, out of a file that somebody else wrote.

        tokenizer = vqgan_jax.convert.load("vqgan_imagenet_f16_16384.ckpt")

    Nothing of the file is run. Its arrays are read one after the other, each straight to its devices.

    Args:
      path: of the file or folder.
      format: a name of `FORMATS`; None goes by the names of the tensors.
      shardings: of all parameters; or a function from the tree of their shapes (`jax.ShapeDtypeStruct`), a model's at a
        time, to the tree of their shardings. None is the first device.
      options: of the format: `allow`, and for transformers `num_heads`, `condition`, `num_codes`; see
        `taming.plan`. For one whose file has no tokenizer, `tokenizer`: its file as `plan` gives it.

    Raises:
      ConvertError: the file is damaged, hostile, of no known format, or does not hold exactly one of our models.
      OSError: there is no such file.
    """
    planned = trees.whole(plan(open_checkpoint(path), format, **options))
    where = shardings if shardings is not None else jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return model(planned, functools.partial(_placed, where=where))


def model(converted: Converted, place: Callable[[trees.Tree], trees.Tree] = lambda params: params) -> Any:
    """Returns a `Tokenizer` or a `Prior`, its parameters as `place` gives them."""
    config = converted.config
    if not converted.is_prior:
        return Tokenizer(place(converted.params), config.make_vqgan(), run=models.Run(config, converted.step))
    first = model(cast(Converted, converted.tokenizer), place)
    second = model(converted.condition, place) if converted.condition is not None else None
    module = prior.from_config(config, models.condition_module(first, second))
    run = models.Run(models.with_fingerprints(config, first, second), converted.step)
    return Prior(place(converted.params), first, module, second, run=run)


def _placed(params: trees.Tree, where: Any) -> trees.Tree:
    """Returns arrays on their devices; each is freed on the host before the next is read."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    wanted = jax.tree.map(lambda _: where, params) if isinstance(where, jax.sharding.Sharding) else where(shapes)

    def place(leaf: Tensor, sharding: jax.sharding.Sharding) -> jax.Array:
        array = leaf.read()
        return jax.block_until_ready(jax.make_array_from_callback(leaf.shape, sharding, lambda index: array[index]))

    return jax.tree.map(place, params, wanted)
