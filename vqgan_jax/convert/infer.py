"""Configs out of names and shapes: what a checkpoint's tensors tell of its networks, and published values for the rest.

Not to be seen in tensors are heads, the kind of a condition that has no parameters, dropout, data, losses and the
optimiser. Heads and conditions of published sizes are known; all else is upstream's training.
"""

import itertools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

from vqgan_jax import config as configs
from vqgan_jax.conditions import CONDITIONS
from vqgan_jax.config import Stage1, Stage2
from vqgan_jax.convert.tensors import ConvertError, Tensor
from vqgan_jax.nn.fields import keys

Tensors: TypeAlias = Mapping[str, Tensor]
Section: TypeAlias = dict[str, Any]  # of a config

RESOLUTION = 256  # the side at which attention is placed; upstream's is nominal too, and 256 everywhere
MOST_LEVELS = 9  # then an image of that side is one code

HEADS: dict[int, int] = dict.fromkeys((1024, 1280, 1408, 1536, 1664), 16)  # by width, of the published models
# Conditions of published sizes, by layers and channels, where the length alone does not tell.
PUBLISHED: dict[tuple[int, int], Section] = {
    (24, 1664): {"kind": "none"},  # FFHQ, CelebA-HQ
    (40, 1408): {"num_classes": 171, "paper": True},  # scenes of COCO
    (36, 1536): {"num_classes": 340},  # scenes of Open Images
}
# Upstream's published training, which no tensor tells: where it differs from the defaults of our configs.
RATE = 4.5e-6  # the learning rate of one example in the batch
STEPS = 1_000_000
DATA: Section = {"source": "folder:images", "flip": False}
LOSS: Section = {"lpips_dropout": True, "disc_start": 0, "disc_ramp": 0, "shared_forward": False}
FIELDS = {1: "depth", 3: "image"}  # what an autoencoder of so many channels learns; of any other, segmentations
LABEL_LOSS: Section = {"pixel": "binary_cross_entropy", "perceptual_weight": 0.0, "disc_weight": 0.0}
# Upstream's beta of 0.25 sits on the codebook's term.
CODES: Section = {"codebook_weight": 0.25, "commitment_weight": 1.0}
NONE: Section = {}
ADAM: Section = {"clip_norm": 0.0, "schedule": "constant", "warmup_steps": 0, "final_fraction": 1.0, "ema_decay": 0.0}
GPT: Section = {
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


def shape(tensors: Tensors, name: str, rank: int) -> tuple[int, ...]:
    """Returns one shape that nothing can be inferred without.

    Raises:
      ConvertError: there is no such tensor, or it is empty or of another rank.
    """
    if name not in tensors:
        raise ConvertError(
            f"the checkpoint must have a tensor `{name}`; it has none. Give a whole file, or its format."
        )
    sizes = tensors[name].shape
    if len(sizes) != rank or 0 in sizes:
        raise ConvertError(f"`{name}` must have {rank} axes, none empty; got shape {sizes}. Give another file.")
    return sizes


def count(names: Collection[str], name: Callable[[int], str]) -> int:
    """Returns how many of the names of number 0, 1, 2 and so on there are, one after the other.

    Not the largest number: a name in a file must not be able to ask for a network larger than the file.
    """
    return next(i for i in itertools.count() if name(i) not in names)


def parsed(config: dict[str, Any]) -> Any:
    """Returns the config, checked like one from a file; ConvertError if it contradicts itself."""
    try:
        return configs.read(config)
    except ValueError as error:
        raise ConvertError(f"the checkpoint's shapes must make a config; they do not: {error}") from error


def stage1(
    tensors: Tensors,
    name: Callable[[str], str],
    *,
    flax: bool = False,
    model: Section = NONE,
    quantizer: Section = CODES,
    discriminator: Section = NONE,
) -> Stage1:
    """Returns the config of a VQ model.

    An image of three channels is a picture, one of one channel depth, one of any other number a label map.

    Args:
      tensors: of the file.
      name: from a path of ours to theirs.
      flax: whether convolutions lie as Flax has them: height, width, in, out; else as torch has: out, in, ...
      model, quantizer: keys of these sections that no shape tells.
      discriminator: the section; empty where the file has none.

    Raises:
      ConvertError: a tensor that is needed is missing, or the shapes are those of another kind of model.
    """
    section = _model(tensors, name, flax) | model
    channels, size = section["image_channels"], max(RESOLUTION, 2 ** (len(section["channel_multipliers"]) - 1))
    loss = LOSS if discriminator else LOSS | {"disc_weight": 0.0}
    codebook = name("generator/quantizer/codebook")
    if codebook not in tensors:
        raise ConvertError(f"a VQ model must have codes, `{codebook}`; a KL autoencoder has none. Give a VQ model.")
    rows, width = shape(tensors, codebook, 2)
    return parsed(
        {
            "stage": 1,
            "steps": STEPS,
            "batch_size": 12,
            "model": section,
            "quantizer": {"codebook_size": rows, "embed_dim": width} | quantizer,
            "loss": loss if channels in FIELDS else loss | LABEL_LOSS,
            "data": DATA | {"image_size": size, "resize": (size, size), "field": FIELDS.get(channels, "segmentation")},
            "discriminator": discriminator,
            "optimizer": ADAM | {"learning_rate": 12 * RATE, "disc_learning_rate": 12 * RATE},
        }
    )


def _model(tensors: Tensors, name: Callable[[str], str], flax: bool) -> dict[str, Any]:
    """Returns the autoencoder's section."""

    def channels(path: str) -> tuple[int, ...]:
        """Returns the channels that a convolution makes, and those that it reads."""
        kernel = shape(tensors, name(f"generator/{path}/kernel"), 4)
        return (kernel[3], kernel[2]) if flax else kernel[:2]

    width, latent = channels("encoder/conv_in")[0], channels("pre_quantizer")[1]
    block = "encoder/level_{}_block_{}/conv_1"
    levels = count(tensors, lambda level: name(f"generator/{block.format(level, 0)}/kernel"))
    if not 0 < levels <= MOST_LEVELS:
        raise ConvertError(f"a VQ model must have 1 to {MOST_LEVELS} levels; got {levels}. Give another file.")
    widths = [channels(block.format(level, 0))[0] for level in range(levels)]
    if any(each % width for each in widths):
        raise ConvertError(f"each level must have a multiple of {width} channels; got {widths}. Give another file.")
    attended = [i for i in range(levels) if name(f"generator/encoder/level_{i}_attn_0/norm/scale") in tensors]
    return {
        "channels": width,
        "channel_multipliers": tuple(each // width for each in widths),
        "num_res_blocks": count(tensors, lambda number: name(f"generator/{block.format(0, number)}/kernel")),
        "attn_resolutions": tuple(RESOLUTION >> level for level in attended),
        "resolution": RESOLUTION,
        "image_channels": channels("decoder/conv_out")[0],
        "latent_channels": latent,
        "dtype": "float32",
    }


def stage2(
    tensors: Tensors,
    tokenizer: Stage1,
    maps: Section = NONE,
    *,
    num_heads: int | None = None,
    condition: str | Mapping[str, Any] | None = None,
    num_codes: int | None = None,
    **transformer: Any,
) -> Stage2:
    """Returns the config of a transformer by upstream's names, which begin with `transformer.`.

    Args:
      tensors: of the file.
      tokenizer: of the images.
      maps: what `map_condition` gives, where the condition has a tokenizer.
      num_heads: None is 16 for a published width.
      condition: its kind, or some keys of the config's section `condition`; None goes by `maps` or by its length.
      num_codes: of one image; None is what fits the positions and the condition, 256 before others.
      transformer: more keys of that section.

    Raises:
      ConvertError: a tensor that is needed is missing, heads are not known, or the positions fit no condition.
    """
    vocab, width = shape(tensors, "transformer.head.weight", 2)
    depth = count(tensors, "transformer.blocks.{}.ln1.weight".format)
    positions = shape(tensors, "transformer.pos_emb", 3)[1]
    codes = num_codes or _codes(positions, bool(maps))
    sizes = {"depth": depth, "width": width, "num_heads": heads(width, num_heads, HEADS), "max_len": positions}
    known = {"kind": "class", "num_classes": min(1000, vocab), "num_tokens": vocab}
    known |= PUBLISHED.get((depth, width), NONE) | maps
    chosen = {"kind": condition} if isinstance(condition, str) else dict(condition or {})
    config = prior(
        tokenizer.quantizer.codebook_size,
        tokenizer.model.downsample_factor,
        codes,
        batch_size=2,
        condition=_condition(positions - codes + 1, codes, tokenizer.model.downsample_factor, known, chosen),
        transformer=sizes | transformer,
        sampling={"top_k": min(100, vocab)},
        optimizer={"learning_rate": 2 * RATE, "weight_decay": 0.01},
    )
    needed = config.prefix().length + codes - 1
    if not (positions - 1 if num_codes is None else 1) <= needed <= positions:
        raise ConvertError(
            f"condition and codes must fill the {positions} positions of the checkpoint, or all but one; "
            f"{config.condition.kind!r} and {codes} codes need {needed}. Name another condition, or give num_codes."
        )
    return config


def prior(
    codebook_size: int, factor: int, codes: int, *, transformer: Section, optimizer: Section, **others: Any
) -> Stage2:
    """Returns the config of a transformer.

    Args:
      codebook_size, factor: of the tokenizer: its codes, and how much smaller than an image their grid is.
      codes: of one image.
      transformer, optimizer: keys of these sections where they are not upstream's.
      others: other keys and sections.

    Raises:
      ConvertError: the codes are no square grid, or values contradict each other.
    """
    side = math.isqrt(codes)
    if side * side != codes or not codes:
        raise ConvertError(f"an image's codes must be a square grid; got {codes or 'none'}. Give num_codes, as 256.")
    size = side * factor
    return parsed(
        {
            "stage": 2,
            "steps": STEPS,
            "data": DATA | {"image_size": size, "resize": (size, size)},
            "tokenizer": {"workdir": "tokenizer", "codebook_size": codebook_size, "downsample_factor": factor},
            "transformer": GPT | transformer,
            "optimizer": ADAM | optimizer,
        }
        | others
    )


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


def map_condition(tokenizer: Stage1, *, own: bool) -> dict[str, Any]:
    """Returns what the tokenizer of a condition's maps tells of it; `own` is whether the images have another one."""
    channels = tokenizer.model.image_channels
    return {
        "kind": {1: "depth", 3: "low_resolution"}.get(channels, "segmentation"),
        "num_classes": channels,
        "tokenizer": {
            "workdir": "condition" if own else "",
            "codebook_size": tokenizer.quantizer.codebook_size,
            "downsample_factor": tokenizer.model.downsample_factor,
        },
    }


def _condition(length: int, codes: int, factor: int, known: Section, chosen: Section) -> Section:
    """Returns the condition's section: what its kind has of what is known, and whatever is chosen.

    A condition without a tokenizer is told by its length, or by one more than that. Maps of the images' size keep it.
    """
    if "tokenizer" in known:
        size = math.isqrt(max(length, 0)) * known["tokenizer"]["downsample_factor"]
        known = known | {"size": 0 if size == math.isqrt(codes) * factor else size}
    elif length > 1:
        known = known | {"kind": "coordinates" if length in (codes, codes + 1) else LENGTHS.get(length)}
    section = {"shared_vocab": True, "drop": 0.0} | known | chosen
    kind = section["kind"]
    if kind is None:
        raise ConvertError(
            f"the length of a condition must tell its kind: 1, that of the codes, or {', '.join(map(str, LENGTHS))}; "
            f"got {length}. Name it: {', '.join(CONDITIONS)}; or give num_codes."
        )
    has = keys(CONDITIONS[kind]) if kind in CONDITIONS else {}
    return {key: value for key, value in section.items() if key == "kind" or key in has or key in chosen}
