"""From configs to modules, optimisers and schedules; configs end here."""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vqgan_jax import config as configs
from vqgan_jax import ordering, sampling
from vqgan_jax.data import conditions
from vqgan_jax.data import views as data_views
from vqgan_jax.data.layouts import Layout
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.discriminator import PatchDiscriminator
from vqgan_jax.nn.maskgit import AUTOENCODERS
from vqgan_jax.nn.quantizer import QUANTIZERS, Quantizer
from vqgan_jax.nn.transformer import Transformer

MAPS = {"segmentation": 0, "depth": 1, "low_resolution": 3, "edges": 3, "keypoints": 3}  # channels; 0: the classes
LAYOUTS = ("boxes", "centers")
SCHEDULES = ("constant", "cosine")
CONDITIONS = ("class", "none", "coordinates", *LAYOUTS, *MAPS)


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
        return {"image": view(config.data, config.data.field, config.model.image_channels), "label": data_views.label}
    c, fields = config.condition, dict(data_views.PLAIN)
    if c.kind in LAYOUTS:
        fields[c.kind] = functools.partial(data_views.boxes, layout=layout(c))
    elif c.kind in MAPS or c.kind == "coordinates":
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


def layout(config: configs.Condition) -> Layout:
    """How objects become tokens."""
    return Layout(
        num_categories=config.num_classes,
        num_tokens=config.num_tokens,
        max_objects=config.max_objects,
        centers=config.kind == "centers",
        crop_points=config.crop_points,
        paper=config.paper,
    )


def condition(config: configs.Stage2, tokenizer: VQGAN | None = None) -> conditions.Condition:
    """The tokens in front of the codes; `tokenizer` is needed where maps must be encoded."""
    c = config.condition
    check_known("condition.kind", c.kind, CONDITIONS)
    droppable = c.drop > 0
    if c.kind == "class":
        return conditions.ClassLabel(c.num_classes, droppable)
    if c.kind == "none":
        return conditions.Unconditional()
    if c.kind == "coordinates":
        return conditions.Coordinates(c.num_tokens, grid(config), config.tokenizer.downsample_factor, droppable)
    if c.kind in LAYOUTS:
        return conditions.Objects(c.kind, layout(c), droppable)
    frozen = c.tokenizer if c.tokenizer.workdir else config.tokenizer
    side = (c.size or config.data.image_size) // frozen.downsample_factor
    name = "condition" if c.tokenizer.workdir else "tokenizer"
    return conditions.Codes(c.kind, name, frozen.codebook_size, (side, side), c.size, droppable, tokenizer)


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
        # What belongs to a place in the image stands there; all else stands in a line to the left of it, but that each
        # layout tells where its tokens stand: `CodePrior.places`.
        rows, columns = prefix.grid or (1, prefix.length)
        places = [(i * height // rows, j * width // columns) for i in range(rows) for j in range(columns)]
        line = [(0, -i) for i in range(prefix.length)]
        before = places if prefix.grid else line
        before = [None] * prefix.length if t.positions == "rope2d_blank" else before
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
