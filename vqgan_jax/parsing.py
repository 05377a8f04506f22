"""From a nested mapping to a config: every key known and given, every value of its type, in range and consistent."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from vqgan_jax import build, ordering, sampling
from vqgan_jax.conditions import CONDITIONS
from vqgan_jax.config import STAGES, Stage1, Stage2
from vqgan_jax.data.views import FIELDS
from vqgan_jax.losses import ADVERSARIAL, PIXEL
from vqgan_jax.nn import discriminator, transformer
from vqgan_jax.nn.maskgit import AUTOENCODERS
from vqgan_jax.nn.quantizer import QUANTIZERS

DTYPES = ("float32", "bfloat16")


def parse(mapping: Mapping[str, Any], cls: Any = None, path: str = "config") -> Any:
    """Reads a nested mapping into `cls`; without one, into the class of its `stage`.

    Raises:
      ValueError: an unknown key (the nearest known one is named), a missing key, a value of another type, or values
        that contradict each other.
    """
    if cls is None:
        if mapping.get("stage") not in STAGES:
            raise ValueError(
                f"`{path}.stage` must be one of {', '.join(map(str, STAGES))}; got {mapping.get('stage')!r}."
            )
        cls = STAGES[mapping["stage"]]
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)[0]
            raise ValueError(f"`{path}` has no key `{key}`; the nearest is `{path}.{near}`. Known: {', '.join(hints)}.")
    missing = [key for key in hints if key not in mapping]
    if missing:
        raise ValueError(f"`{path}` must give every key; missing: {', '.join(missing)}. Add them to the config file.")
    parsed = cls(**{key: convert(mapping[key], hint, f"{path}.{key}") for key, hint in hints.items()})
    if isinstance(parsed, Stage1 | Stage2):
        check_shared(parsed)
    if isinstance(parsed, Stage1):
        check_stage1(parsed)
    if isinstance(parsed, Stage2):
        check_stage2(parsed)
    return parsed


def convert(value: Any, hint: Any, path: str) -> Any:
    """`value` as the type of a field; whole numbers pass as floats and lists as tuples, nothing else is bent."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"`{path}` must be a section of keys; got {value!r}. Set one of its keys instead.")
        return parse(value, hint, path)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        kinds = typing.get_args(hint)
        kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        if len(kinds) == len(value):
            return tuple(convert(v, kind, path) for v, kind in zip(value, kinds, strict=True))
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    wanted = hint if isinstance(hint, types.GenericAlias) else hint.__name__
    raise ValueError(f"`{path}` must be of type {wanted}; got {value!r}.")


def one_of(choices: list[tuple[str, Any, Any]]) -> None:
    """Raises ValueError for the first (key, value, table) whose value is not in its table."""
    for path, value, table in choices:
        build.check_known(path, value, table)


def check_shared(config: Stage1 | Stage2) -> None:
    """Raises ValueError where values of the sections of both stages contradict each other."""
    d = config.data
    one_of(
        [
            ("data.crop", d.crop, ("random", "center")),
            ("data.small", d.small, ("upscale", "refuse")),
            ("data.field", d.field, FIELDS if isinstance(config, Stage1) else ("image",)),
            ("optimizer.schedule", config.optimizer.schedule, build.SCHEDULES),
            ("optimizer.nonfinite", config.optimizer.nonfinite, ("stop", "skip")),
        ]
    )
    if config.accumulate < 1:
        raise ValueError(f"`config.accumulate` must be at least 1, a batch in one part; got {config.accumulate}.")
    if isinstance(config, Stage1):
        factor = 2 ** (len(config.model.channel_multipliers) - 1)
    else:
        factor = config.tokenizer.downsample_factor
    if d.image_size % factor:
        raise ValueError(
            f"`config.data.image_size` must be a multiple of the downsample factor {factor}; got {d.image_size}. "
            f"Set it to {-(-d.image_size // factor) * factor}."
        )
    if not d.image_size <= d.resize[0] <= d.resize[1]:
        raise ValueError(f"`config.data.resize` must be a range from image_size {d.image_size} up; got {d.resize}.")


def check_stage1(config: Stage1) -> None:
    """Raises ValueError where values are outside their range or contradict each other."""
    m, q, loss = config.model, config.quantizer, config.loss
    one_of(
        [
            ("model.kind", m.kind, AUTOENCODERS),
            ("quantizer.kind", q.kind, QUANTIZERS),
            ("discriminator.norm", config.discriminator.norm, discriminator.NORMS),
            ("loss.pixel", loss.pixel, PIXEL),
            ("loss.adversarial", loss.adversarial, ADVERSARIAL),
            ("model.dtype", m.dtype, DTYPES),
        ]
    )
    check_field(config)
    build.vqgan(config).check()
    quantizer = build.quantizer(config)
    quantizer.check()
    if (quantizer.codebook_size, quantizer.embed_dim) != (q.codebook_size, q.embed_dim):
        raise ValueError(
            f"`config.quantizer` must say what its codes are; of kind {q.kind!r} they have codebook_size "
            f"{quantizer.codebook_size} and embed_dim {quantizer.embed_dim}; got {q.codebook_size} and {q.embed_dim}."
        )
    if q.kind != "vq" and (q.unit_length or q.ema or q.revive_below or q.kmeans_batches):
        raise ValueError(
            f"unit_length, ema, revive_below and kmeans_batches belong to quantizer.kind 'vq'; got {q.kind!r}."
        )
    if q.kind != "vq" and (loss.codebook_weight or loss.commitment_weight):
        raise ValueError(
            f"codebook_weight and commitment_weight belong to quantizer.kind 'vq'; set both to 0 for {q.kind!r}."
        )


def check_field(config: Stage1) -> None:
    """Raises ValueError where the losses or the channels do not fit what the tokenizer learns."""
    field, channels, loss = config.data.field, config.model.image_channels, config.loss
    labels = field == "segmentation"
    wanted = FIELDS[field].channels or channels
    if channels != wanted:
        raise ValueError(f"`config.model.image_channels` must be {wanted} of data.field {field!r}; got {channels}.")
    if labels != (loss.pixel in ("cross_entropy", "binary_cross_entropy")):
        raise ValueError(
            "`config.loss.pixel` must be cross_entropy or binary_cross_entropy of segmentations, and neither of all "
            f"else; got {loss.pixel!r} of {field!r}."
        )
    if labels and (loss.perceptual_weight or loss.disc_weight):
        raise ValueError(
            "categories have no perceptual loss and no discriminator: set `config.loss.perceptual_weight` and "
            f"disc_weight to 0; got {loss.perceptual_weight} and {loss.disc_weight}."
        )


def check_stage2(config: Stage2) -> None:
    """Raises ValueError where values are outside their range or contradict each other."""
    t = config.transformer
    one_of(
        [
            ("condition.kind", config.condition.kind, CONDITIONS),
            ("transformer.order", t.order, ordering.ORDERS),
            ("transformer.norm", t.norm, transformer.NORMS),
            ("transformer.mlp", t.mlp, transformer.MLPS),
            ("transformer.positions", t.positions, transformer.POSITIONS),
            ("transformer.remat", t.remat, transformer.REMAT),
            ("transformer.dtype", t.dtype, DTYPES),
        ]
    )
    heads = t.num_heads if t.positions == "learned" else 4 * t.num_heads
    if t.width % heads:
        raise ValueError(
            f"`config.transformer.width` must be a multiple of {heads}, which num_heads and positions ask for; got "
            f"{t.width}. Set it to {-(-t.width // heads) * heads}."
        )
    build.unbound(config).check()
    condition = build.condition(config)
    if t.bidirectional_prefix > condition.length:
        raise ValueError(
            f"`config.transformer.bidirectional_prefix` must end with the condition, which has {condition.length} "
            f"tokens: codes that see each other have nothing to predict; got {t.bidirectional_prefix}. Lower it."
        )
    condition.check_fit(config.tokenizer.codebook_size)
    if not 0.0 <= config.loss.keep <= 1.0:
        raise ValueError(f"`config.loss.keep` must be a probability, 0 to 1; got {config.loss.keep}.")
    sampling.check(build.settings(config.sampling), config.tokenizer.codebook_size)
    if config.sampling.guidance != 1.0 and not condition.droppable:
        raise ValueError(
            "`config.sampling.guidance` needs a null condition, which is learned with condition.drop above 0; got "
            f"drop {condition.drop} of kind {condition.kind!r}. Set guidance to 1 or drop to 0.1."
        )
