"""The folders in which diffusers keeps a `VQModel`, with the old names of its attention and the new ones."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vqgan_jax.convert import infer, names, trees
from vqgan_jax.convert.names import LINEAR_OF_CONV, Place, Table
from vqgan_jax.convert.weights import Checkpoint, ConvertError

RES = names.RES | {"shortcut": "conv_shortcut"}
ENDS = names.ENDS | {"norm_out": "conv_norm_out"}
NORM = {"norm": "group_norm"}
ATTENTION = {
    "new": NORM | {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"},
    "old": NORM | {"q": "query", "k": "key", "v": "value", "out": "proj_attn"},
}
# As much of taming's names as a config is inferred from.
TAMING = (
    (r"^encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block."),
    (r"^encoder\.down_blocks\.(\d+)\.attentions\.(\d+)\.group_norm\.", r"encoder.down.\1.attn.\2.norm."),
)


def plan(checkpoint: Checkpoint, *, allow: Sequence[str] = ()) -> trees.Converted:
    """Finds a VQ model in a folder; each array is a `Tensor` of its final shape that is read when it is asked for.

    Args:
      checkpoint: an opened folder, or its file of weights alone, which then has 32 groups a norm.
      allow: patterns, as of file names, of tensors that may be missing, unexpected or of another shape.

    Raises:
      ConvertError: a tensor is missing, unexpected or of another shape, or the model is none that we have.
    """
    settings = checkpoint.other.get("config") if isinstance(checkpoint.other, Mapping) else None
    settings = settings if isinstance(settings, Mapping) else {}
    _check(settings)
    tensors = checkpoint.tensors
    config = infer.stage1(
        {_renamed(name): tensor.shape for name, tensor in tensors.items()},
        norm_groups=settings.get("norm_num_groups", 32),
    )
    shapes = trees.stage1_shapes(config)
    old = any(name.endswith(".proj_attn.weight") for name in tensors)
    levels = len(config.model.channel_multipliers)
    converted = trees.tokenizer(config, shapes, names.entries(vq_model(levels, old=old), shapes), tensors)
    trees.check(converted.report, allow)
    return converted


def vq_model(levels: int, *, old: bool = False) -> Table:
    """The table of a model of so many levels; `old` names are those before the attention of 2023."""
    attn = ATTENTION["old" if old else "new"]
    places = [
        place
        for net, blocks, resample, first in (
            ("encoder", "down_blocks", "downsample", 0),
            ("decoder", "up_blocks", "upsample", levels - 1),  # numbered as they run, from the lowest resolution
        )
        for level in range(levels)
        for block in (f"{net}.{blocks}.{abs(first - level)}",)
        for place in (
            Place(rf"{net}/level_{level}_block_(\d+)", rf"{block}.resnets.\1", RES),
            Place(rf"{net}/level_{level}_attn_(\d+)", rf"{block}.attentions.\1", attn, LINEAR_OF_CONV),
            Place(f"{net}/level_{level}_{resample}", f"{block}.{resample}rs.0", names.CONV_ONLY),
        )
    ]
    places += [
        Place(r"(encoder|decoder)/middle_block_(\d)", r"\1.mid_block.resnets.\2", RES),
        Place("(encoder|decoder)/middle_attn", r"\1.mid_block.attentions.0", attn, LINEAR_OF_CONV),
        Place("(encoder|decoder)", r"\1", ENDS),
    ]
    return names.autoencoder(places)


def _renamed(name: str) -> str:
    for pattern, taming in TAMING:
        name = re.sub(pattern, taming, name)
    return name


def _check(settings: Mapping[str, Any]) -> None:
    """ConvertError if the model's own config says that it computes something else."""
    for key, ours in (("_class_name", "VQModel"), ("norm_type", "group"), ("act_fn", "silu")):
        if settings.get(key, ours) != ours:
            raise ConvertError(
                f"a diffusers model must have {key} {ours!r} in its config.json; got {settings[key]!r}, a network that "
                "is none of ours. Give a VQModel of that kind."
            )
