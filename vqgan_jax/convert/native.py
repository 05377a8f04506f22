"""Our own arrays in one safetensors file, named by their paths; the config of the run is in the file's metadata.

A prior's tokenizers are in the same file, below names of their own.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vqgan_jax import stored
from vqgan_jax.config import Stage1
from vqgan_jax.convert import names, trees
from vqgan_jax.convert.names import Row, Table
from vqgan_jax.convert.trees import Converted, Tensors
from vqgan_jax.convert.weights import Checkpoint, ConvertError

CONFIG = "vqgan_jax.config"  # key of the metadata; a tokenizer's has a dot and its name behind
TABLE: Table = (Row("(.+)", r"\1"),)  # every path is its own name
PARTS = ("tokenizer", "condition")


def plan(checkpoint: Checkpoint, *, allow: Sequence[str] = ()) -> Converted:
    """Finds a model in an opened file; each array is a `Tensor` that is read when it is asked for.

    Args:
      checkpoint: an opened file.
      allow: patterns, as of file names, of tensors that may be missing, unexpected or of another shape.

    Raises:
      ConvertError: a tensor is missing, unexpected or of another shape, or the file has no config that we know.
    """
    other = checkpoint.other if isinstance(checkpoint.other, Mapping) else {}
    converted = _model(checkpoint.tensors, other.get("__metadata__", {}))
    trees.check(converted.report, allow)
    return converted


def metadata(converted: Converted, name: str = "") -> dict[str, str]:
    """What the file says besides tensors: config and step of the model and of its tokenizers."""
    settings = {"config": stored.to_json(converted.config), "step": converted.step}
    found = {f"{CONFIG}.{name}".rstrip("."): json.dumps(settings)}
    for part in PARTS:
        below = getattr(converted, part)
        found |= metadata(below, part) if below is not None else {}
    return found


def _model(tensors: Tensors, metadata: Mapping[str, str], name: str = "") -> Converted:
    """The model whose tensors lie below `name`."""
    prefix = f"{name}/" if name else ""
    config, step = _config(metadata, f"{CONFIG}.{name}".rstrip("."))
    parts = [part for part in PARTS if not name and f"{CONFIG}.{part}" in metadata]
    mine = {each.removeprefix(prefix): tensor for each, tensor in tensors.items() if each.startswith(prefix)}
    if not name:
        mine = {each: tensor for each, tensor in mine.items() if each.split("/")[0] not in parts}
    if isinstance(config, Stage1):
        has = lambda network: any(each.startswith(f"{network}/") for each in mine)
        shapes = trees.stage1_shapes(config, discriminator=has("discriminator"), lpips=has("lpips"))
        found = trees.tokenizer(config, shapes, names.entries(TABLE, shapes), mine, prefix=prefix)
        return found._replace(step=step)
    shapes = trees.stage2_shapes(config)
    below = {part: _model(tensors, metadata, part) for part in parts}
    found = trees.transformer(config, shapes, names.entries(TABLE, shapes), mine)
    reports = [found.report, *(each.report for each in below.values())]
    return found._replace(step=step, report=trees.joined(reports), **below)


def _config(metadata: Mapping[str, str], key: str) -> tuple[Any, int]:
    try:
        found = json.loads(metadata[key])
        return stored.from_json(found["config"]), int(found["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConvertError(
            f"a file of ours must have its config under `{key}` in its metadata, as `vqgan export --to=safetensors` "
            f"writes it; {type(error).__name__}: {str(error)[:300]}. Export it again."
        ) from error
