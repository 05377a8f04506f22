"""Configs out of names and shapes: what a checkpoint's tensors tell of its networks, and published values for the rest.

Not to be seen in tensors are heads, the kind of a condition that has no parameters, dropout, data, losses and the
optimiser. Heads and conditions of published sizes are known; all else is upstream's training.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from vqgan_jax import config as configs
from vqgan_jax.conditions import CONDITIONS
from vqgan_jax.config import Stage1, Stage2
from vqgan_jax.convert.tensors import ConvertError
from vqgan_jax.nn.fields import keys

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

RESOLUTION = 256  # the side at which attention is placed; upstream's is nominal too, and 256 everywhere
MOST_LEVELS = 9  # then an image of that side is one code

HEADS: dict[int, int] = dict.fromkeys((1024, 1280, 1408, 1536, 1664), 16)  # by width, of the published models
# Conditions of published sizes, by layers and channels, where the length alone does not tell.
PUBLISHED: dict[tuple[int, int], dict[str, Any]] = {
    (24, 1664): {"kind": "none"},  # FFHQ, CelebA-HQ
    (40, 1408): {"num_classes": 171, "paper": True},  # scenes of COCO
    (36, 1536): {"num_classes": 340},  # scenes of Open Images
}
# Upstream's published training, which no tensor tells: where it differs from the defaults of our configs.
RATE = 4.5e-6  # the learning rate of one example in the batch
STEPS = 1_000_000
DATA: dict[str, Any] = {"source": "folder:images", "flip": False}
LOSS: dict[str, Any] = {"lpips_dropout": True, "disc_start": 0, "disc_ramp": 0, "shared_forward": False}
LABEL_LOSS: dict[str, Any] = {"pixel": "binary_cross_entropy", "perceptual_weight": 0.0, "disc_weight": 0.0}
ADAM: dict[str, Any] = {
    "clip_norm": 0.0,
    "schedule": "constant",
    "warmup_steps": 0,
    "final_fraction": 1.0,
    "ema_decay": 0.0,
}
ADAMW = ADAM | {"learning_rate": 2 * RATE, "weight_decay": 0.01}
GPT: dict[str, Any] = {
    "norm": "layer",
    "mlp": "gelu",
    "positions": "learned",
    "qk_norm": False,
    "bias": True,
    "dropout": 0.0,
    "remat": "none",
    "dtype": "float32",
}
LENGTHS = {62: "centers", 63: "centers", 92: "boxes", 93: "boxes"}


def shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
    """Returns one shape that nothing can be inferred without.

    Raises:
      ConvertError: there is no such tensor, or it is empty or of another rank.
    """
    if name not in shapes:
        raise ConvertError(
            f"the checkpoint must have a tensor `{name}`; among its {len(shapes)} there is none. Give the file of a "
            "whole model, or another format."
        )
    if len(shapes[name]) != rank or 0 in shapes[name]:
        raise ConvertError(f"`{name}` must have {rank} axes, none empty; got shape {shapes[name]}. Give another file.")
    return shapes[name]


def count(names: Iterable[str], pattern: str) -> int:
    """Returns how many numbers the group of a pattern, at the beginning of a name, stands for.

    Not the largest of them: a name in a file must not be able to ask for a network larger than the file.
    """
    matches = (re.match(pattern, name) for name in names)
    return len({match[1] for match in matches if match})


def parsed(config: dict[str, Any]) -> Any:
    """Returns the config, checked like one from a file; ConvertError if it contradicts itself."""
    try:
        return configs.read(config)
    except ValueError as error:
        raise ConvertError(f"the checkpoint's shapes must make a config; they do not: {error}") from error


def stage1(shapes: Shapes, *, kind: str = "paper", norm_groups: int = 32) -> Stage1:
    """Returns the config of a VQ model by taming's names.

    An image of three channels is a picture, one of one channel depth, one of any other number a label map.

    Args:
      shapes: of the tensors, by name.
      kind: of the autoencoder, as configs name it.
      norm_groups: of every GroupNorm, which no shape tells.

    Raises:
      ConvertError: a tensor that is needed is missing, or the shapes are those of another kind of model.
    """
    model: dict[str, Any] = {"kind": kind} | _model(shapes, norm_groups)
    channels = model["image_channels"]
    labels = channels not in (1, 3)
    field = {1: "depth", 3: "image"}.get(channels, "segmentation")
    quantizer = _quantizer(shapes)
    discriminator = _discriminator(shapes)
    loss = LOSS if discriminator else LOSS | {"disc_weight": 0.0}
    loss = loss | LABEL_LOSS if labels else loss
    size = max(RESOLUTION, 2 ** (len(model["channel_multipliers"]) - 1))
    return parsed(
        {
            "stage": 1,
            "steps": STEPS,
            "batch_size": 12,
            "model": model,
            "quantizer": quantizer,
            "loss": loss,
            "data": DATA | {"image_size": size, "resize": (size, size), "field": field},
            "discriminator": discriminator or {},
            "optimizer": ADAM | {"learning_rate": 12 * RATE, "disc_learning_rate": 12 * RATE},
        }
    )


def _model(shapes: Shapes, norm_groups: int) -> dict[str, Any]:
    """Returns the autoencoder's section."""
    width = shape(shapes, "encoder.conv_in.weight", 4)[0]
    latent = shape(shapes, "decoder.conv_in.weight", 4)[1]
    made = shape(shapes, "encoder.conv_out.weight", 4)[0]
    if made == 2 * latent:
        raise ConvertError(
            f"a VQ model's encoder must give as many channels as its decoder takes, {latent}; this one gives twice as "
            "many, mean and variance: a KL autoencoder, which has no codes. Give a VQ model."
        )
    levels = count(shapes, r"encoder\.down\.(\d+)\.")
    if levels > MOST_LEVELS:
        raise ConvertError(f"a VQ model must have at most {MOST_LEVELS} levels; got {levels}. Give another file.")
    widths = [shape(shapes, f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels)]
    if not widths or any(each % width for each in widths):
        raise ConvertError(
            f"the channels of each level must be a multiple of the first {width}; got {widths}. Such a network cannot "
            "be built here."
        )
    attended = [i for i in range(levels) if f"encoder.down.{i}.attn.0.norm.weight" in shapes]
    return {
        "channels": width,
        "channel_multipliers": tuple(each // width for each in widths),
        "num_res_blocks": count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "attn_resolutions": tuple(RESOLUTION >> i for i in attended),
        "resolution": RESOLUTION,
        "image_channels": shape(shapes, "decoder.conv_out.weight", 4)[0],
        "latent_channels": latent,
        "norm_groups": norm_groups,
        "dtype": "float32",
    }


def _quantizer(shapes: Shapes) -> dict[str, Any]:
    """Returns the codebook's section; a Gumbel quantizer encodes to its likeliest codes, without noise."""
    gumbel = "quantize.embed.weight" in shapes
    rows = shape(shapes, "quantize.embed.weight" if gumbel else "quantize.embedding.weight", 2)[0]
    size = {"codebook_size": rows, "embed_dim": shape(shapes, "quant_conv.weight", 4)[0]}
    if gumbel:
        return size | {"kind": "gumbel", "temperature": (0.9, 1e-6, 1_000_001), "kl_weight": 1e-8}
    ema = "quantize.embedding.cluster_size" in shapes
    # Upstream's beta of 0.25 sits on the codebook's term; an average has no loss.
    return size | {"ema": ema, "codebook_weight": 0.0 if ema else 0.25, "commitment_weight": 1.0}


def _discriminator(shapes: Shapes) -> dict[str, Any] | None:
    """Returns the discriminator's section; None without one."""
    prefix = "loss.discriminator.main."
    if not any(name.startswith(prefix) for name in shapes):
        return None
    convolutions = [name for name, each in shapes.items() if name.startswith(prefix) and _is_kernel(name, each)]
    return {
        "channels": shape(shapes, prefix + "0.weight", 4)[0],
        "num_layers": max(len(convolutions) - 2, 1),
        "norm": "act" if prefix + "3.loc" in shapes else "batch",
    }


def _is_kernel(name: str, each: tuple[int, ...]) -> bool:
    return name.endswith(".weight") and len(each) == 4


def stage2(
    shapes: Shapes,
    tokenizer: Stage1,
    *,
    condition_tokenizer: Stage1 | None = None,
    own_tokenizer: bool = True,
    num_heads: int | None = None,
    condition: str | Mapping[str, Any] | None = None,
    order: str = "raster",
    num_codes: int | None = None,
    bidirectional_prefix: int = 0,
) -> Stage2:
    """Returns the config of a transformer by taming's names, which begin with `transformer.`.

    Args:
      shapes: of the tensors, by name.
      tokenizer: of the images.
      condition_tokenizer: of the condition's maps, where there is one.
      own_tokenizer: whether that is another one than the images'.
      num_heads: None is 16 for a published width.
      condition: its kind, or some keys of the config's section `condition`; None goes by its tokenizer's channels or
        by its length.
      order: of the codes.
      num_codes: of one image; None is what fits the positions and the condition, 256 before others.
      bidirectional_prefix: positions that see each other both ways.

    Raises:
      ConvertError: a tensor that is needed is missing, heads are not known, or the positions fit no condition.
    """
    vocab, width = shape(shapes, "transformer.head.weight", 2)
    depth = count(shapes, r"transformer\.blocks\.(\d+)\.")
    positions = shape(shapes, "transformer.pos_emb", 3)[1]
    factor = tokenizer.model.downsample_factor
    codes = num_codes or _codes(positions, condition_tokenizer is not None)
    side = math.isqrt(codes)
    if side * side != codes:
        raise ConvertError(f"the codes of an image must be a square grid; got {codes} of them. Convert a square model.")
    known = _known(positions - codes + 1, codes, vocab, condition_tokenizer, (depth, width))
    section = _condition(positions - codes + 1, condition_tokenizer, own_tokenizer, vocab, known, condition)
    size = side * factor
    frozen = {"codebook_size": tokenizer.quantizer.codebook_size, "downsample_factor": factor}
    if section.get("size") == size:
        section["size"] = 0
    sizes = {
        "depth": depth,
        "width": width,
        "num_heads": heads(width, num_heads, HEADS),
        "max_len": positions,
        "bidirectional_prefix": bidirectional_prefix,
        "order": order,
    }
    config = parsed(
        {
            "stage": 2,
            "steps": STEPS,
            "batch_size": 2,
            "data": DATA | {"image_size": size, "resize": (size, size)},
            "tokenizer": frozen | {"workdir": "tokenizer"},
            "condition": section,
            "transformer": GPT | sizes,
            "sampling": {"top_k": min(100, vocab)},
            "optimizer": ADAMW,
        }
    )
    needed = config.prefix().length + codes - 1
    if not (positions - 1 if num_codes is None else 1) <= needed <= positions:
        raise ConvertError(
            f"condition and codes must fill the {positions} positions of the checkpoint, or all but one; "
            f"{config.condition.kind!r} and {codes} codes need {needed}. Name another condition, or give num_codes."
        )
    return config


def heads(width: int, num_heads: int | None, known: Mapping[int, int]) -> int:
    """Returns the number of heads: `num_heads`, or the `known` one of a published width."""
    if num_heads is None and width not in known:
        raise ConvertError(
            f"the number of heads cannot be seen in the tensors; it is known for widths {', '.join(map(str, known))}, "
            f"this one is {width}. Give num_heads (`n_head` of the model's own config)."
        )
    return num_heads or known[width]


def _codes(positions: int, maps: bool) -> int:
    """Returns the codes of one image: a square that leaves a prefix of a known length; 256 if there is none.

    The last token is never an input, so that prefix and codes need one position less than they are; upstream's
    configs often have that one all the same.
    """
    for codes in (256, positions, (positions + 1) // 2):
        length, side = positions - codes + 1, math.isqrt(max(positions - codes + 1, 0))
        alike = length in (codes, codes + 1)
        known = length > 1 and side * side in (length, length - 1) if maps else length == 1 or length in LENGTHS
        if math.isqrt(codes) ** 2 == codes and (alike or known):
            return codes
    return 256


def _known(length: int, codes: int, vocab: int, tokenizer: Stage1 | None, size: tuple[int, int]) -> dict[str, Any]:
    """Returns what a tokenizer, a length (or one more than that) and the size of the prior tell of a condition."""
    known = {"num_classes": min(1000, vocab)} | PUBLISHED.get(size, {})
    if tokenizer:
        channels = tokenizer.model.image_channels
        kind = {1: "depth", 3: "low_resolution"}.get(channels, "segmentation")
        return known | {"kind": kind, "num_classes": channels}
    if length == 1:
        return {"kind": "class"} | known
    return known | {"kind": "coordinates" if length in (codes, codes + 1) else LENGTHS.get(length)}


def _condition(
    length: int, tokenizer: Stage1 | None, own: bool, vocab: int, known: dict[str, Any], wanted: Any
) -> dict[str, Any]:
    """Returns the condition's section: what is known of it, and before that what is wanted."""
    wanted = {"kind": wanted} if isinstance(wanted, str) else dict(wanted or {})
    kind = wanted.get("kind", known["kind"])
    if kind is None:
        raise ConvertError(
            f"the kind of a condition without a tokenizer is known by its length: 1, one a code, or {LENGTHS}; got "
            f"{length}. Name it: {', '.join(CONDITIONS)}; or give num_codes."
        )
    factor = tokenizer.model.downsample_factor if tokenizer else 16
    section = {
        "num_tokens": vocab,
        "size": math.isqrt(length) * factor if tokenizer else 0,
        "tokenizer": {
            "workdir": "condition" if tokenizer and own else "",
            "codebook_size": tokenizer.quantizer.codebook_size if tokenizer else 1024,
            "downsample_factor": factor,
        },
    }
    inferred = {"shared_vocab": True, "drop": 0.0} | section | known
    known_keys = keys(CONDITIONS[kind]) if kind in CONDITIONS else {}
    return {key: value for key, value in inferred.items() if key in known_keys} | wanted | {"kind": kind}
