"""Configs: from a nested mapping to frozen dataclasses, and from those to modules and optimisers.

Every default lives in a file under `experiments/`: no field here has one, every key must be given and every key is
read. An `ml_collections.ConfigDict` ends in `parse`; behind it there are types.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from vqgan_jax.losses import ADVERSARIAL, PIXEL
from vqgan_jax.nn.autoencoder import Decoder, Encoder
from vqgan_jax.nn.discriminator import NORMS, PatchDiscriminator
from vqgan_jax.nn.quantizer import GumbelQuantizer, VectorQuantizer
from vqgan_jax.nn.vqgan import VQGAN


@dataclasses.dataclass(frozen=True)
class Data:
    """Where images come from and how they are cropped; sizes in pixels."""

    source: str  # photos | scenes | folder:PATH | tfds:NAME
    data_dir: str  # of prepared TFDS datasets; "" for TFDS's own
    train_split: str
    eval_split: str
    image_size: int  # side of the square crop
    resize: tuple[int, int]  # range of the short side before the crop, drawn for every image
    crop: str  # random | center
    flip: bool
    small: str  # upscale | refuse images below `resize`
    num_threads: int


@dataclasses.dataclass(frozen=True)
class Model:
    """The autoencoder; see `nn.autoencoder.Encoder`."""

    channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: int
    image_channels: int
    latent_channels: int
    norm_groups: int
    dropout: float
    dtype: str


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """The codebook; see `nn.quantizer`."""

    kind: str  # vq | gumbel
    codebook_size: int
    embed_dim: int
    unit_length: bool
    ema: bool
    decay: float
    revive_below: float
    kmeans_batches: int  # batches for the k-means start; 0 is none
    noisy_eval: bool
    temperature: tuple[float, float, int]  # Gumbel: cosine from, to, over steps


@dataclasses.dataclass(frozen=True)
class Discriminator:
    """The patch discriminator; see `nn.discriminator.PatchDiscriminator`."""

    channels: int
    num_layers: int
    norm: str


@dataclasses.dataclass(frozen=True)
class Loss:
    """Weights and times (in steps) of the stage-1 losses."""

    pixel: str  # l1 | l2
    pixel_weight: float
    perceptual_weight: float
    lpips_dropout: bool
    codebook_weight: float
    commitment_weight: float
    kl_weight: float  # Gumbel only
    adversarial: str  # hinge | vanilla | non_saturating
    disc_weight: float  # 0 is: no discriminator at all
    adaptive: bool  # times the adaptive weight
    disc_start: int  # from here the generator sees the discriminator
    disc_ramp: int  # linearly within so many steps
    disc_train_start: int  # from here the discriminator learns
    shared_forward: bool  # both updates on one reconstruction; false: the published order


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Adam for both networks."""

    learning_rate: float
    disc_learning_rate: float
    b1: float
    b2: float
    weight_decay: float
    clip_norm: float  # 0 is off
    schedule: str  # constant | cosine
    warmup_steps: int
    final_fraction: float  # of the learning rate, at the end of the cosine
    ema_decay: float  # of the parameters; 0 is off


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each axis; one of them may be -1, which is all that are left."""

    data: int
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class Log:
    """How often, in steps."""

    metrics_every: int
    eval_every: int
    eval_examples: int
    checkpoint_every: int
    keep: int  # newest checkpoints kept beside the best


@dataclasses.dataclass(frozen=True)
class Stage1:
    """A whole stage-1 run."""

    stage: int
    seed: int
    steps: int
    batch_size: int  # over all devices
    data: Data
    model: Model
    quantizer: Quantizer
    discriminator: Discriminator
    loss: Loss
    optimizer: Optimizer
    mesh: Mesh
    log: Log


def parse(mapping: Mapping[str, Any], cls: type = Stage1, path: str = "config") -> Any:
    """Reads a nested mapping into `cls`.

    Raises:
      ValueError: an unknown key (the nearest known one is named), a missing key, a value of another type, or values
        that contradict each other.
    """
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)[0]
            raise ValueError(f"`{path}` has no key `{key}`; the nearest is `{path}.{near}`. Known: {', '.join(hints)}.")
    missing = [key for key in hints if key not in mapping]
    if missing:
        raise ValueError(f"`{path}` must give every key; missing: {', '.join(missing)}. Add them to the config file.")
    parsed = cls(**{key: convert(mapping[key], hint, f"{path}.{key}") for key, hint in hints.items()})
    if isinstance(parsed, Stage1):
        check(parsed)
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


def check(config: Stage1) -> None:
    """Raises ValueError where values are outside their range or contradict each other."""
    d, m, q, loss = config.data, config.model, config.quantizer, config.loss
    for path, value, table in (
        ("stage", config.stage, (1,)),
        ("data.crop", d.crop, ("random", "center")),
        ("data.small", d.small, ("upscale", "refuse")),
        ("quantizer.kind", q.kind, ("vq", "gumbel")),
        ("discriminator.norm", config.discriminator.norm, NORMS),
        ("loss.pixel", loss.pixel, PIXEL),
        ("loss.adversarial", loss.adversarial, ADVERSARIAL),
        ("optimizer.schedule", config.optimizer.schedule, ("constant", "cosine")),
        ("model.dtype", m.dtype, ("float32", "bfloat16")),
    ):
        if value not in table:
            raise ValueError(f"`config.{path}` must be one of {', '.join(map(str, table))}; got {value!r}.")
    factor = 2 ** (len(m.channel_multipliers) - 1)
    if d.image_size % factor:
        raise ValueError(
            f"`config.data.image_size` must be a multiple of the downsample factor {factor}; got {d.image_size}. "
            f"Set it to {-(-d.image_size // factor) * factor}."
        )
    if not d.image_size <= d.resize[0] <= d.resize[1]:
        raise ValueError(f"`config.data.resize` must be a range from image_size {d.image_size} up; got {d.resize}.")
    if q.ema and loss.codebook_weight:
        raise ValueError(
            "`config.loss.codebook_weight` must be 0 with quantizer.ema, which gets no gradient; set it to 0."
        )
    if q.kind == "gumbel" and (q.unit_length or q.ema or q.revive_below or q.kmeans_batches):
        raise ValueError(
            "unit_length, ema, revive_below and kmeans_batches belong to quantizer.kind 'vq'; got 'gumbel'."
        )
    if q.kind == "gumbel" and (loss.codebook_weight or loss.commitment_weight):
        raise ValueError(
            "codebook_weight and commitment_weight belong to quantizer.kind 'vq'; set both to 0 for 'gumbel'."
        )


def build_vqgan(config: Stage1) -> VQGAN:
    """The tokenizer's module."""
    m, q = config.model, config.quantizer
    shape = (m.channels, m.channel_multipliers, m.num_res_blocks, m.attn_resolutions, m.resolution)
    options = {"dropout": m.dropout, "dtype": jnp.dtype(m.dtype), "norm_groups": m.norm_groups}
    encoder = Encoder(*shape, out_channels=m.latent_channels, **options)
    decoder = Decoder(*shape, out_channels=m.image_channels, **options)
    if q.kind == "gumbel":
        quantizer = GumbelQuantizer(q.codebook_size, q.embed_dim, q.noisy_eval)
    else:
        quantizer = VectorQuantizer(q.codebook_size, q.embed_dim, q.unit_length, q.ema, q.decay, q.revive_below)
    return VQGAN(encoder, quantizer, decoder)


def build_discriminator(config: Stage1) -> PatchDiscriminator | None:
    """The discriminator's module; none where its loss has no weight."""
    d = config.discriminator
    if config.loss.disc_weight == 0:
        return None
    return PatchDiscriminator(d.channels, d.num_layers, d.norm, jnp.dtype(config.model.dtype))


def build_schedule(config: Optimizer, peak: float, steps: int) -> optax.Schedule:
    """Learning rate at each step: linear warm-up to `peak`, then constant or half a cosine down to the last step."""
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - config.warmup_steps, 1), config.final_fraction)
    else:
        after = optax.constant_schedule(peak)
    return optax.join_schedules([warmup, after], [config.warmup_steps]) if config.warmup_steps else after


def build_optimizer(config: Optimizer, peak: float, steps: int) -> optax.GradientTransformation:
    """Adam; global clipping in front and decoupled weight decay of kernels and codebook behind, where they are on."""
    decay = optax.add_decayed_weights(
        config.weight_decay, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    )
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts += [optax.scale_by_adam(config.b1, config.b2, eps=1e-8)]
    parts += [decay] if config.weight_decay else []
    parts += [optax.scale_by_learning_rate(build_schedule(config, peak, steps))]
    return optax.chain(*parts)


def build_temperature(config: Quantizer) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """Temperature of the Gumbel softmax at each step: half a cosine from start to end, then constant."""
    start, end, steps = config.temperature
    return lambda step: end + 0.5 * (start - end) * (1 + jnp.cos(jnp.pi * jnp.clip(step / steps, 0.0, 1.0)))
