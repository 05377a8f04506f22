"""One table for both ways: from each array of our networks to the tensors that hold it in other people's files.

A path of ours begins with its network: "generator", "codebook" (its running averages), "discriminator", "batch_stats",
or "transformer". A row says which paths it is for, what they are called elsewhere, and how the numbers lie
there. `entries` turns the table around, so that what is read and what is written can never differ.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

from vqgan_jax.config import Stage1
from vqgan_jax.convert.tensors import ConvertError
from vqgan_jax.nn.discriminator import DISCRIMINATORS
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
      axis: its number.
      labels: what each is called in their name; none are the numbers from 0.
    """

    axis: int
    labels: tuple[str, ...] = ()


class Row(NamedTuple):
    r"""What some of our arrays are called there.

    Attributes:
      ours: a regular expression that fits all of a path.
      theirs: the name, "\1" for the first group of `ours` and "{}" for the label along an axis; or a function from our
        path to the name.
      layout: of each tensor.
      axes: along which the tensors are stacked here, in the order of the braces.
    """

    ours: str
    theirs: str | Callable[[str], str]
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
    named: dict[str, Entry] = {}
    for path, shape in shapes.items():
        row = next((row for row in table if _pattern(row.ours).fullmatch(path)), None)
        if row is None:
            raise ValueError(f"every array must have a name in the other format; `{path}` has none. Export without it.")
        template = row.theirs(path) if callable(row.theirs) else _pattern(row.ours).sub(row.theirs, path)
        labels = [axis.labels or tuple(map(str, range(shape[axis.axis]))) for axis in row.axes]
        for numbers in np.ndindex(*map(len, labels)):
            name = template.format(*(each[n] for each, n in zip(labels, numbers, strict=True)))
            if name in named:
                raise ValueError(f"one tensor must hold one array; `{name}` is {named[name].path} and {path}.")
            at = {axis.axis: n for axis, n in zip(row.axes, numbers, strict=True)}
            index = tuple(at.get(i, slice(None)) for i in range(len(shape)))
            part = np.broadcast_to(np.int8(0), shape)[index]  # no memory, whatever the shape
            named[name] = Entry(path, index, row.layout.theirs(part).shape, row.layout)
    return named


def put(entry: Entry, array: np.ndarray, tensor: np.ndarray) -> None:
    """Writes their tensor into its part of our array, cast to its dtype."""
    part = array[entry.index]
    part[...] = entry.layout.ours(tensor, part.shape)


def take(entry: Entry, array: np.ndarray) -> np.ndarray:
    """Returns their tensor out of our array; a view where NumPy can."""
    return entry.layout.theirs(array[entry.index])


# Autoencoders. By the rules of a format each regular expression is replaced in our path, one after the other.

Rules: TypeAlias = tuple[tuple[str, str], ...]

MODULES: Rules = (  # upstream's; its `up.0` is the level of full resolution, as ours
    ("^generator/", ""),
    (r"^encoder/level_(\d+)_", r"encoder.down.\1."),
    (r"^decoder/level_(\d+)_", r"decoder.up.\1."),
    (r"\.(block|attn)_(\d+)/", r".\1.\2."),
    ("/middle_block_0/", ".mid.block_1."),
    ("/middle_attn/", ".mid.attn_1."),
    ("/middle_block_1/", ".mid.block_2."),
    (r"(norm|conv)_(\d)/", r"\1\2/"),
    ("shortcut/", "nin_shortcut/"),
    (r"\.out/", ".proj_out/"),
    ("^pre_quantizer/", "quant_conv/"),
    ("^post_quantizer/", "post_quant_conv/"),
    ("^quantizer/logits/", "quantize.proj/"),
    ("^quantizer/codebook", "quantize.embedding/codebook"),
)
TORCH: Rules = (*MODULES, ("(kernel|scale|codebook)$", "weight"), ("/", "."))
UPSTREAM = {"vq": TORCH, "gumbel": (*TORCH, ("quantize.embedding", "quantize.embed"))}  # by kinds of quantizers


def renamed(rules: Rules, path: str) -> str:
    """Returns the name that the rules of a format give to a path of ours."""
    return functools.reduce(lambda name, rule: re.sub(*rule, name), rules, path)


def flipped(path: str, levels: int) -> str:
    """Returns a path whose level of the decoder is counted from the lowest resolution."""
    return re.sub(r"(?<=decoder/level_)\d+", lambda level: str(levels - 1 - int(level[0])), path)


def autoencoder(name: Callable[[str], str], kernel: Layout = CONV) -> Table:
    """Returns the table of a VQ model: `name` gives theirs for a path of ours, `kernel` is how convolutions lie."""
    return (Row("generator/.*/kernel", name, kernel), Row("generator/.*", name))


def vq_model(config: Stage1) -> Table:
    """Returns the table of upstream's whole file; ConvertError where upstream has no such quantizer."""
    kind, codebook = kind_of(config.quantizer, QUANTIZERS), "quantize.embedding"
    if kind not in UPSTREAM:
        raise ConvertError(f"upstream's quantizers are {', '.join(UPSTREAM)}; this tokenizer's is {kind!r}.")
    d = config.discriminator
    adversary = discriminator(d.num_layers, d.norm) if "discriminator" in networks_of(config) else ()
    return (
        *autoencoder(functools.partial(renamed, UPSTREAM[kind])),
        Row("codebook/hits", f"{codebook}.cluster_size"),
        Row("codebook/sums", f"{codebook}.embed_avg"),
        *adversary,
    )


def networks_of(config: Stage1) -> tuple[str, ...]:
    """Returns the networks of a tokenizer that upstream's file has a place for: of discriminators the patch one."""
    patch = kind_of(config.discriminator, DISCRIMINATORS) == "patch"
    return ("generator", "codebook", *(("discriminator", "batch_stats") if patch else ()))


def leaves(ours: str, theirs: str) -> Table:
    """Returns the rows of a convolution or a norm; which of the two, the leaf of the path tells."""
    return (
        Row(f"{ours}/kernel", f"{theirs}.weight", CONV),
        Row(f"{ours}/scale", f"{theirs}.weight"),
        Row(f"{ours}/bias", f"{theirs}.bias"),
    )


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


# Transformers.

LAYER = Axis(0)
QKV = ("query", "key", "value")


BLOCK = "transformer.blocks.{}"
GPT: Table = (  # upstream's; our layers are one stack, and our queries, keys and values one kernel
    Row("transformer/embedding", "transformer.tok_emb.weight"),
    Row("transformer/positions", "transformer.pos_emb", BATCH_OF_ONE),
    Row(r"transformer/layers/norm([12])/scale", rf"{BLOCK}.ln\1.weight", SAME, (LAYER,)),
    Row(r"transformer/layers/norm([12])/bias", rf"{BLOCK}.ln\1.bias", SAME, (LAYER,)),
    Row("transformer/layers/qkv/kernel", f"{BLOCK}.attn.{{}}.weight", OUT, (LAYER, Axis(2, QKV))),
    Row("transformer/layers/qkv/bias", f"{BLOCK}.attn.{{}}.bias", FLAT, (LAYER, Axis(1, QKV))),
    Row("transformer/layers/proj/kernel", f"{BLOCK}.attn.proj.weight", IN, (LAYER,)),
    Row("transformer/layers/proj/bias", f"{BLOCK}.attn.proj.bias", SAME, (LAYER,)),
    Row("transformer/layers/up/kernel", f"{BLOCK}.mlp.0.weight", OUT, (LAYER,)),
    Row("transformer/layers/up/bias", f"{BLOCK}.mlp.0.bias", SAME, (LAYER,)),
    Row("transformer/layers/down/kernel", f"{BLOCK}.mlp.2.weight", OUT, (LAYER,)),
    Row("transformer/layers/down/bias", f"{BLOCK}.mlp.2.bias", SAME, (LAYER,)),
    Row("transformer/norm/scale", "transformer.ln_f.weight"),
    Row("transformer/norm/bias", "transformer.ln_f.bias"),
    Row("transformer/head/kernel", "transformer.head.weight", OUT),
)
