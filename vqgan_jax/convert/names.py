"""One table for both ways: from each array of our networks to the tensors that hold it in other people's files.

A path of ours begins with its network: "generator", "codebook" (its running averages), "discriminator", "batch_stats",
"lpips" or "transformer". A row says which paths it is for, what they are called elsewhere, and how the numbers lie
there. `entries` turns the table around, so that what is read and what is written can never differ.
"""

import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from vqgan_jax.config import Stage1
from vqgan_jax.convert.tensors import ConvertError
from vqgan_jax.nn.fields import kind_of
from vqgan_jax.nn.quantizer import QUANTIZERS

Shape: TypeAlias = tuple[int, ...]


class Layout(NamedTuple):
    """How the numbers of one tensor lie here and there: both functions only move them, and undo each other.

    Attributes:
      ours: from a tensor, and the shape that is wanted here, to our array.
      theirs: from our array to the tensor.
    """

    ours: Callable[[np.ndarray, Shape], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x, shape: x, lambda x: x)
CONV = Layout(lambda x, shape: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # OIHW and HWIO
LINEAR_OF_CONV = Layout(lambda x, shape: x.T[None, None], lambda x: x[0, 0].T)  # a 1x1 convolution, there a linear map
# Linear maps are (out, in) there; here one of the two may be several axes, heads and channels of a head.
OUT = Layout(lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(x.shape[0], -1).T)
IN = Layout(lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(-1, x.shape[-1]).T)
FLAT = Layout(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1))
CHANNELS = Layout(lambda x, shape: x.reshape(shape), lambda x: x.reshape(1, -1, 1, 1))
BATCH_OF_ONE = Layout(lambda x, shape: x[0], lambda x: x[None])


class Axis(NamedTuple):
    """An axis of our array along which there are several tensors.

    Attributes:
      name: its place in braces in their name.
      axis: of our array.
      labels: what stands in that place, one for each; none are the numbers from 0.
    """

    name: str
    axis: int
    labels: tuple[str, ...] = ()


class Row(NamedTuple):
    r"""What some of our arrays are called there.

    Attributes:
      ours: a regular expression that fits all of a path.
      theirs: the name: "\1" is the first group of `ours`, "{layer}" the label along an axis.
      layout: of each tensor.
      axes: along which the tensors are stacked here.
    """

    ours: str
    theirs: str
    layout: Layout = SAME
    axes: tuple[Axis, ...] = ()


class Entry(NamedTuple):
    """One of their tensors: a part of one of our arrays.

    Attributes:
      path: of our array.
      index: of the part, as NumPy takes it.
      shape: of their tensor.
      layout: how its numbers lie.
    """

    path: str
    index: tuple[int | slice, ...]
    shape: Shape
    layout: Layout


Table: TypeAlias = tuple[Row, ...]
_pattern = functools.cache(re.compile)


def entries(table: Table, shapes: Mapping[str, Shape]) -> dict[str, Entry]:
    """Returns every tensor that holds a part of our arrays, by its name there.

    Args:
      table: the first row that fits a path decides.
      shapes: of our arrays, by path.

    Raises:
      ValueError: a path that no row fits, or two parts of one name.
    """
    found: dict[str, Entry] = {}
    for path, shape in shapes.items():
        fits = ((row, _pattern(row.ours).fullmatch(path)) for row in table)
        row, match = next(((row, match) for row, match in fits if match), (None, None))
        if row is None or match is None:
            raise ValueError(f"every array must have a name in the other format; `{path}` has none. Export without it.")
        labels = [axis.labels or tuple(map(str, range(shape[axis.axis]))) for axis in row.axes]
        for numbers in itertools.product(*(range(len(each)) for each in labels)):
            chosen = {axis.name: each[n] for axis, each, n in zip(row.axes, labels, numbers, strict=True)}
            name = match.expand(row.theirs).format(**chosen)
            if name in found:
                raise ValueError(f"one tensor must hold one array; `{name}` is {found[name].path} and {path}.")
            at = {axis.axis: n for axis, n in zip(row.axes, numbers, strict=True)}
            index = tuple(at.get(i, slice(None)) for i in range(len(shape)))
            part = np.broadcast_to(np.int8(0), shape)[index]  # no memory, whatever the shape
            found[name] = Entry(path, index, row.layout.theirs(part).shape, row.layout)
    return found


def put(entry: Entry, array: np.ndarray, tensor: np.ndarray) -> None:
    """Writes their tensor into its part of our array, cast to its dtype."""
    part = array[entry.index]
    part[...] = entry.layout.ours(tensor, part.shape)


def take(entry: Entry, array: np.ndarray) -> np.ndarray:
    """Returns their tensor out of our array; a view where NumPy can."""
    return entry.layout.theirs(array[entry.index])


# Autoencoders. Upstream's `up.0` is the level of full resolution, as ours.

MODULES = (
    (r"encoder/level_(\d+)_(block|attn)_(\d+)", r"encoder.down.\1.\2.\3"),
    (r"decoder/level_(\d+)_(block|attn)_(\d+)", r"decoder.up.\1.\2.\3"),
    (r"encoder/level_(\d+)_downsample", r"encoder.down.\1.downsample"),
    (r"decoder/level_(\d+)_upsample", r"decoder.up.\1.upsample"),
    (r"(encoder|decoder)/middle_block_0", r"\1.mid.block_1"),
    (r"(encoder|decoder)/middle_attn", r"\1.mid.attn_1"),
    (r"(encoder|decoder)/middle_block_1", r"\1.mid.block_2"),
    (r"(encoder|decoder)", r"\1"),
)
PARTS = {
    "norm_1": "norm1",
    "conv_1": "conv1",
    "norm_2": "norm2",
    "conv_2": "conv2",
    "shortcut": "nin_shortcut",
    "out": "proj_out",
} | {name: name for name in ("norm", "q", "k", "v", "conv", "conv_in", "norm_out", "conv_out")}


def leaves(ours: str, theirs: str) -> Table:
    """Returns the rows of a convolution or a norm; which of the two, the leaf of the path tells."""
    return (
        Row(f"{ours}/kernel", f"{theirs}.weight", CONV),
        Row(f"{ours}/scale", f"{theirs}.weight"),
        Row(f"{ours}/bias", f"{theirs}.bias"),
    )


def autoencoder(codebook: str = "quantize.embedding") -> Table:
    """Returns the table of a VQ model; `codebook` is its name without the leaf."""
    modules = [
        row
        for module, name in MODULES
        for part, leaf in PARTS.items()
        for row in leaves(f"generator/{module}/{part}", f"{name}.{leaf}")
    ]
    return (
        *modules,
        *leaves("generator/pre_quantizer", "quant_conv"),
        *leaves("generator/post_quantizer", "post_quant_conv"),
        *leaves("generator/quantizer/logits", "quantize.proj"),
        Row("generator/quantizer/codebook", f"{codebook}.weight"),
        Row("codebook/hits", f"{codebook}.cluster_size"),
        Row("codebook/sums", f"{codebook}.embed_avg"),
    )


def renamed(name: str, pairs: Sequence[tuple[str, str]], levels: int, *, back: bool = False) -> str:
    """Translates a name of upstream's into one of another format, or `back`.

    Args:
      name: of a tensor.
      pairs: parts of names, upstream's and the other's, exchanged one pair after the other. In both "#" is a number,
        and "~" is the number of a level that the other format counts from the lowest resolution.
      levels: of the autoencoder.
      back: from the other format to upstream's.
    """
    for pair in reversed(pairs) if back else pairs:
        old, new = reversed(pair) if back else pair
        match = re.search(re.escape(old).replace(r"\#", r"(\d{1,4})").replace("\\~", r"(\d{1,4})"), name)
        if match:
            counted = zip(re.findall("[#~]", old), map(int, match.groups()), strict=True)
            numbers = [number if sign == "#" else levels - 1 - number for sign, number in counted]
            name = name[: match.start()] + re.sub("[#~]", "{}", new).format(*numbers) + name[match.end() :]
    return name


# What the losses bring along.


def discriminator(num_layers: int, norm: str, prefix: str = "loss.discriminator.main") -> Table:
    """Returns the table of the patch discriminator, there a list: a convolution, then layers of three modules each."""
    rows = [*leaves("discriminator/conv_0", f"{prefix}.0")]
    for layer in range(1, num_layers + 1):
        rows += leaves(f"discriminator/conv_{layer}", f"{prefix}.{3 * layer - 1}")
        ours, theirs = f"norm_{layer}", f"{prefix}.{3 * layer}"
        if norm == "act":
            rows += [Row(f"discriminator/{ours}/{leaf}", f"{theirs}.{leaf}", CHANNELS) for leaf in ("loc", "scale")]
        else:
            rows += leaves(f"discriminator/{ours}", theirs)
            rows += [Row(f"batch_stats/{ours}/{leaf}", f"{theirs}.running_{leaf}") for leaf in ("mean", "var")]
    return (*rows, *leaves("discriminator/conv_out", f"{prefix}.{3 * num_layers + 2}"))


# Of each VGG16 convolution, the slice that LPIPS made of torchvision's list and the number in that list.
VGG16 = tuple(
    f"slice{piece}.{number}"
    for piece, numbers in enumerate(((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), start=1)
    for number in numbers
)


def lpips(prefix: str = "loss.perceptual_loss") -> Table:
    """Returns the table of LPIPS: VGG16 and its heads, whose number 0 is a dropout."""
    vgg = [row for i, name in enumerate(VGG16) for row in leaves(f"lpips/vgg/conv_{i}", f"{prefix}.net.{name}")]
    return (*vgg, Row(r"lpips/head_(\d)", rf"{prefix}.lin\1.model.1.weight", CHANNELS))


CODEBOOKS = {"vq": "quantize.embedding", "gumbel": "quantize.embed"}


def vq_model(config: Stage1) -> Table:
    """Returns the table of a whole file of stage 1; ConvertError where upstream has no such quantizer."""
    kind, d = kind_of(config.quantizer, QUANTIZERS), config.discriminator
    if kind not in CODEBOOKS:
        raise ConvertError(f"upstream's quantizers are {', '.join(CODEBOOKS)}; this tokenizer's is {kind!r}.")
    return (*autoencoder(CODEBOOKS[kind]), *discriminator(d.num_layers, d.norm), *lpips())


# Transformers.

LAYER = Axis("layer", 0)
QKV = ("query", "key", "value")


def gpt(prefix: str = "transformer.") -> Table:
    """Returns the table of upstream's GPT; our layers are one stack, and our queries, keys and values one kernel."""
    ours, block = "transformer/layers", f"{prefix}blocks.{{layer}}"
    attn = f"{block}.attn.{{part}}"
    return (
        Row("transformer/embedding", f"{prefix}tok_emb.weight"),
        Row("transformer/positions", f"{prefix}pos_emb", BATCH_OF_ONE),
        Row(rf"{ours}/norm([12])/scale", rf"{block}.ln\1.weight", SAME, (LAYER,)),
        Row(rf"{ours}/norm([12])/bias", rf"{block}.ln\1.bias", SAME, (LAYER,)),
        Row(f"{ours}/qkv/kernel", f"{attn}.weight", OUT, (LAYER, Axis("part", 2, QKV))),
        Row(f"{ours}/qkv/bias", f"{attn}.bias", FLAT, (LAYER, Axis("part", 1, QKV))),
        Row(f"{ours}/proj/kernel", f"{block}.attn.proj.weight", IN, (LAYER,)),
        Row(f"{ours}/proj/bias", f"{block}.attn.proj.bias", SAME, (LAYER,)),
        Row(f"{ours}/up/kernel", f"{block}.mlp.0.weight", OUT, (LAYER,)),
        Row(f"{ours}/up/bias", f"{block}.mlp.0.bias", SAME, (LAYER,)),
        Row(f"{ours}/down/kernel", f"{block}.mlp.2.weight", OUT, (LAYER,)),
        Row(f"{ours}/down/bias", f"{block}.mlp.2.bias", SAME, (LAYER,)),
        Row("transformer/norm/scale", f"{prefix}ln_f.weight"),
        Row("transformer/norm/bias", f"{prefix}ln_f.bias"),
        Row("transformer/head/kernel", f"{prefix}head.weight", OUT),
    )
