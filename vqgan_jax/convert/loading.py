"""Somebody's file as one of our models, in memory, for the verbs of Python."""

import functools
import os
from collections.abc import Callable
from typing import Any, cast

import jax

from vqgan_jax import build, models, prior
from vqgan_jax.config import Stage1
from vqgan_jax.convert import formats, trees
from vqgan_jax.convert.files import open_checkpoint
from vqgan_jax.convert.trees import Converted
from vqgan_jax.convert.weights import Tensor
from vqgan_jax.models import Prior, Tokenizer


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
      format: a name of `formats.FORMATS`; None goes by the names of the tensors.
      shardings: of all parameters; or a function from the tree of their shapes (`jax.ShapeDtypeStruct`), a model's at a
        time, to the tree of their shardings. None is the first device.
      options: of the format: `allow`, and for transformers `num_heads`, `condition`, `num_codes`; see
        `taming.plan`. For one whose file has no tokenizer, `tokenizer`: its file as `formats.plan` gives it.

    Raises:
      ConvertError: the file is damaged, hostile, of no known format, or does not hold exactly one of our models.
      OSError: there is no such file.
    """
    planned = trees.whole(formats.plan(open_checkpoint(path), format, **options))
    where = shardings if shardings is not None else jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return model(planned, functools.partial(_placed, where=where))


def model(converted: Converted, place: Callable[[trees.Tree], trees.Tree] = lambda params: params) -> Any:
    """A `Tokenizer` or a `Prior`, its parameters as `place` gives them."""
    config = converted.config
    if isinstance(config, Stage1):
        return Tokenizer(place(converted.params), build.vqgan(config), run=models.Run(config, converted.step))
    first, second = model(cast(Converted, converted.tokenizer), place), None
    if converted.condition is not None:
        second = model(converted.condition, place)
    module = prior.from_config(config, models.condition_module(first, second))
    run = models.Run(models.with_fingerprints(config, first, second), converted.step)
    return Prior(place(converted.params), first, module, second, run=run)


def _placed(params: trees.Tree, where: Any) -> trees.Tree:
    """Arrays on their devices; each is freed on the host before the next is read."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    wanted = jax.tree.map(lambda _: where, params) if isinstance(where, jax.sharding.Sharding) else where(shapes)

    def place(leaf: Tensor, sharding: jax.sharding.Sharding) -> jax.Array:
        array = leaf.read()
        return jax.block_until_ready(jax.make_array_from_callback(leaf.shape, sharding, lambda index: array[index]))

    return jax.tree.map(place, params, wanted)
