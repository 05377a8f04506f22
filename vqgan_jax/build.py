"""From configs to modules, optimisers and schedules; configs end here."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vqgan_jax import config as configs
from vqgan_jax import ordering, sampling
from vqgan_jax.conditions import CONDITIONS, Condition
from vqgan_jax.data import views as data_views
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.discriminator import PatchDiscriminator
from vqgan_jax.nn.maskgit import AUTOENCODERS
from vqgan_jax.nn.quantizer import QUANTIZERS, Quantizer
from vqgan_jax.nn.transformer import Transformer

SCHEDULES = ("constant", "cosine")


def check_known(path: str, value: Any, table: Collection[Any]) -> None:
    """Raises ValueError where the value of a key is none of its table."""
    if value not in table:
        raise ValueError(f"`config.{path}` must be one of {', '.join(map(str, table))}; got {value!r}.")


def quantizer(config: configs.Stage1) -> Quantizer:
    """The quantizer's module: its fields are keys of the sections `quantizer` and, for its losses, `loss`."""
    check_known("quantizer.kind", config.quantizer.kind, QUANTIZERS)
    cls = QUANTIZERS[config.quantizer.kind]
    values = vars(config.loss) | vars(config.quantizer)
    return cls(**{name: values[name] for name in cls.__annotations__ if name in values})


def vqgan(config: configs.Stage1) -> VQGAN:
    """The tokenizer's module, whose fields are the keys of the section `model`; ValueError for an unknown kind."""
    check_known("model.kind", config.model.kind, AUTOENCODERS)
    fields = {name: value for name, value in vars(config.model).items() if name != "kind"}
    return AUTOENCODERS[config.model.kind](quantizer=quantizer(config), **fields)


def discriminator(config: configs.Stage1) -> PatchDiscriminator | None:
    """The discriminator's module; none where its loss has no weight."""
    d = config.discriminator
    if config.loss.disc_weight == 0:
        return None
    return PatchDiscriminator(d.channels, d.num_layers, d.norm, jnp.dtype(config.model.dtype))


def schedule(config: configs.Optimizer, peak: float, steps: int) -> optax.Schedule:
    """Learning rate at each step: linear warm-up to `peak`, then constant or half a cosine down to the last step."""
    check_known("optimizer.schedule", config.schedule, SCHEDULES)
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(steps - config.warmup_steps, 1), config.final_fraction)
    else:
        after = optax.constant_schedule(peak)
    return optax.join_schedules([warmup, after], [config.warmup_steps]) if config.warmup_steps else after


def optimizer(config: configs.Optimizer, peak: float, steps: int) -> optax.GradientTransformation:
    """Adam; global clipping in front and decoupled weight decay of kernels and codebook behind, where they are on."""
    decayed = lambda path, _: jax.tree_util.keystr(path[-1:], simple=True) in ("kernel", "codebook")
    mask = lambda params: jax.tree_util.tree_map_with_path(decayed, params)
    decay = optax.add_decayed_weights(config.weight_decay, mask=mask)
    parts = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    parts += [optax.scale_by_adam(config.b1, config.b2, eps=1e-8)]
    parts += [decay] if config.weight_decay else []
    parts += [optax.scale_by_learning_rate(schedule(config, peak, steps))]
    return optax.chain(*parts)


def views(config: configs.Stage1 | configs.Stage2) -> Mapping[str, data_views.View]:
    """What the loader must show of each example, by name."""
    if isinstance(config, configs.Stage1):
        view = data_views.FIELDS[config.data.field].view(config.data, config.model.image_channels)
        return {**data_views.PLAIN, "image": view}
    return {**data_views.PLAIN, **unbound(config).views(config.data)}


def unbound(config: configs.Stage2) -> Condition:
    """The condition that a config describes, which knows nothing of the rest of the config."""
    check_known("condition.kind", config.condition.kind, CONDITIONS)
    cls = CONDITIONS[config.condition.kind]
    return cls(**{name: getattr(config.condition, name) for name in cls.key_names()})


def condition(config: configs.Stage2, tokenizer: VQGAN | None = None) -> Condition:
    """The tokens in front of the codes; `tokenizer` is needed where maps must be encoded."""
    return unbound(config).bound(window=grid(config), images=config.tokenizer, module=tokenizer)


def grid(config: configs.Stage2) -> tuple[int, int]:
    """Rows and columns of codes of one image."""
    side = config.data.image_size // config.tokenizer.downsample_factor
    return side, side


def transformer(config: configs.Stage2) -> Transformer:
    """The prior's module, as long as its prefix and codes need unless the config wants it longer."""
    t, prefix = config.transformer, condition(config)
    height, width = grid(config)
    needed = prefix.length + height * width - 1  # the last token is never an input
    fields: dict[str, Any] = {}
    if t.positions != "learned":
        codes = [(int(i) // width, int(i) % width) for i in ordering.order(t.order, height, width)]
        # Tokens that say where they stand themselves: `CodePrior.places`.
        before = [None] * prefix.length if t.positions == "rope2d_blank" else prefix.coordinates()
        fields["coordinates"] = (*before, *codes[:-1])
    return Transformer(
        vocab_size=config.tokenizer.codebook_size,
        max_len=t.max_len or needed,
        depth=t.depth,
        width=t.width,
        num_heads=t.num_heads,
        extra_vocab=0 if config.condition.shared_vocab else prefix.vocab_size,
        bidirectional_prefix=t.bidirectional_prefix,
        norm=t.norm,
        mlp=t.mlp,
        positions=t.positions,
        qk_norm=t.qk_norm,
        bias=t.bias,
        dropout=t.dropout,
        remat=t.remat,
        dtype=jnp.dtype(t.dtype),
        **fields,
    )


def settings(config: configs.Sampling) -> sampling.Settings:
    """How to draw, as the sampler takes it."""
    return sampling.Settings(
        temperature=config.temperature,
        top_p=config.top_p if config.top_p != 1.0 else None,
        guidance=config.guidance if config.guidance != 1.0 else None,
        power=config.power,
        top_k=config.top_k or None,
        schedule=config.schedule,
        greedy=config.greedy,
    )
