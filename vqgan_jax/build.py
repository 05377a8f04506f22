"""From configs to modules, optimisers and schedules; configs end here."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vqgan_jax import config as configs
from vqgan_jax import ordering, sampling
from vqgan_jax.data import views as data_views
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.discriminator import PatchDiscriminator
from vqgan_jax.nn.quantizer import Quantizer
from vqgan_jax.nn.transformer import Transformer

MAPS, LAYOUTS, CONDITIONS = configs.MAPS, configs.LAYOUTS, configs.CONDITIONS
condition = configs.prefix


def grid(config: configs.Stage2) -> tuple[int, int]:
    """Rows and columns of codes of one image."""
    return config.grid


def settings(config: configs.Sampling) -> sampling.Settings:
    """How to draw, as the sampler takes it."""
    return config.settings


def quantizer(config: configs.Stage1) -> Quantizer:
    """The quantizer's module."""
    return config.quantizer


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
        return {"image": view(config.data, config.data.field, config.model.image_channels), "label": data_views.label}
    c, fields = config.condition, dict(data_views.PLAIN)
    if c.kind in configs.LAYOUTS:
        fields[c.kind] = functools.partial(data_views.boxes, layout=configs.layout(c))
    elif c.kind in configs.MAPS or c.kind == "coordinates":
        fields[c.kind] = view(config.data, c.kind, c.num_classes)
    return fields


def view(data: configs.Data, field: str, num_classes: int) -> data_views.View:
    """The view of a picture or map."""
    if field == "segmentation":
        return functools.partial(data_views.segmentation, num_classes=num_classes, shift=data.shift_labels)
    if field == "low_resolution":
        return functools.partial(data_views.low_resolution, factor=data.low_resolution_factor)
    if field == "edges":
        return functools.partial(data_views.edges, sigma=data.edge_sigma)
    return data_views.PICTURES[field]


def transformer(config: configs.Stage2) -> Transformer:
    """The prior's module, as long as its prefix and codes need unless the config wants it longer."""
    t, prefix = config.transformer, configs.prefix(config)
    height, width = config.grid
    needed = prefix.length + height * width - 1  # the last token is never an input
    coordinates: tuple[Any, ...] = ()
    if t.positions != "learned":
        codes = [(int(i) // width, int(i) % width) for i in ordering.order(t.order, height, width)]
        # What belongs to a place in the image stands there; all else stands in a line to the left of it, but that each
        # layout tells where its tokens stand: `CodePrior.places`.
        rows, columns = prefix.grid or (1, prefix.length)
        places = [(i * height // rows, j * width // columns) for i in range(rows) for j in range(columns)]
        line = [(0, -i) for i in range(prefix.length)]
        before = places if prefix.grid else line
        before = [None] * prefix.length if t.positions == "rope2d_blank" else before
        coordinates = (*before, *codes[:-1])
    return t.clone(
        vocab_size=config.tokenizer.codebook_size,
        max_len=t.max_len or needed,
        extra_vocab=0 if config.condition.shared_vocab else prefix.vocab_size,
        coordinates=coordinates,
        dtype=jnp.dtype(t.dtype),
    )
