"""From configs to modules, optimisers and schedules; configs end here."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vqgan_jax import config as configs
from vqgan_jax import ordering
from vqgan_jax.data import views as data_views
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.discriminator import PatchDiscriminator
from vqgan_jax.nn.transformer import Transformer


def vqgan(config: configs.Stage1) -> VQGAN:
    """The tokenizer's module with its quantizer."""
    return config.model.clone(quantizer=config.quantizer)


def discriminator(config: configs.Stage1) -> PatchDiscriminator | None:
    """The discriminator's module; none where its loss has no weight."""
    if config.loss.disc_weight == 0:
        return None
    return config.discriminator.clone(dtype=jnp.dtype(config.model.dtype))


def schedule(config: configs.Optimizer, peak: float, steps: int) -> optax.Schedule:
    """Learning rate at each step: linear warm-up to `peak`, then constant or half a cosine down to the last step."""
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
    return {**data_views.PLAIN, **config.condition.views(config.data)}


def transformer(config: configs.Stage2) -> Transformer:
    """The prior's module, as long as its prefix and codes need unless the config wants it longer."""
    t, prefix = config.transformer, config.prefix()
    height, width = config.grid
    needed = prefix.length + height * width - 1  # the last token is never an input
    coordinates: tuple[Any, ...] = ()
    if t.positions != "learned":
        codes = [(int(i) // width, int(i) % width) for i in ordering.order(t.order, height, width)]
        # Tokens that say where they stand themselves: `CodePrior.places`.
        before = [None] * prefix.length if t.positions == "rope2d_blank" else prefix.coordinates()
        coordinates = (*before, *codes[:-1])
    return t.clone(
        vocab_size=config.tokenizer.codebook_size,
        max_len=t.max_len or needed,
        extra_vocab=0 if config.condition.shared_vocab else prefix.vocab_size,
        coordinates=coordinates,
        dtype=jnp.dtype(t.dtype),
    )
