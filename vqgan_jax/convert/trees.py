"""From a file's tensors to our trees: what is there, what is not, and arrays that are put together one at a time."""

import fnmatch
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from vqgan_jax.config import Stage1, Stage2
from vqgan_jax.convert import names
from vqgan_jax.convert.names import Entry
from vqgan_jax.convert.tensors import ConvertError, Tensor
from vqgan_jax.nn.perceptual import LPIPS
from vqgan_jax.nn.quantizer import CodebookStats
from vqgan_jax.train.sharding import path_name

Tensors: TypeAlias = Mapping[str, Tensor]
Shapes: TypeAlias = dict[str, tuple[int, ...]]
Tree: TypeAlias = dict[str, Any]


class Report(NamedTuple):
    """What became of each tensor, by its name in the file.

    Attributes:
      used: are read.
      missing: are not in the file; zeros stand for them.
      unexpected: belong to nothing here.
      misshaped: have another shape than their place here, or are no floating point numbers; zeros stand for them.
      dropped: are not needed.
    """

    used: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()


class Moments(NamedTuple):
    """Adam's state: steps, and the running averages of gradients and of their squares, as trees like the parameters."""

    count: int
    mu: Tree
    nu: Tree


class Converted(NamedTuple):
    """A model in our shape.

    Attributes:
      config: the `Stage1` or `Stage2` of a run that would have made it.
      networks: trees of float32 arrays by the networks of `names`: "generator" or "transformer", and as far as the file
        has them "discriminator", "batch_stats" (of its norms), "codebook" (a running average) and "lpips".
      report: on every tensor of the file.
      moments: Adam's, by network, where they are in the file.
      step: of the training.
      tokenizer: of the images that a transformer makes.
      condition: the tokenizer of a transformer's condition, where it has one of its own.
    """

    config: Any
    networks: Tree
    report: Report
    moments: dict[str, Moments]
    step: int = 0
    tokenizer: "Converted | None" = None
    condition: "Converted | None" = None

    @property
    def is_prior(self) -> bool:
        """Returns whether it is a transformer, else a tokenizer."""
        return "transformer" in self.networks

    @property
    def params(self) -> Tree:
        """Returns the parameters of the generator or of the transformer."""
        return self.networks["transformer" if self.is_prior else "generator"]

    @property
    def stats(self) -> Tree:
        """Returns statistics as `TrainState` has them."""
        found, networks = {}, self.networks
        if "discriminator" in networks:
            found["discriminator"] = networks.get("batch_stats", {})
        if "codebook" in networks:
            found["codebook"] = CodebookStats(**networks["codebook"])
        return found


def compare(entries: Mapping[str, Entry], tensors: Tensors, dropped: Sequence[str] = (), prefix: str = "") -> Report:
    """Accounts for every tensor of a network and of the file.

    Args:
      entries: what the network needs.
      tensors: what the file has.
      dropped: patterns, as of file names, of tensors that are not needed.
      prefix: of all names, in the report only.
    """
    found: dict[str, list[str]] = {field: [] for field in Report._fields}
    for name, tensor in tensors.items():
        if name in entries:
            found["used" if _fits(entries[name], tensor) else "misshaped"].append(prefix + name)
        else:
            found["dropped" if _any(name, dropped) else "unexpected"].append(prefix + name)
    found["missing"] = [prefix + name for name in entries if name not in tensors]
    return Report(**{field: tuple(names) for field, names in found.items()})


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def joined(reports: Sequence[Report]) -> Report:
    """Returns one report of several."""
    return Report(*(sum(lists, start=()) for lists in zip(*reports, strict=True)))


def check(report: Report, allow: Sequence[str] = ()) -> None:
    """Raises ConvertError if tensors are missing, unexpected or of another shape that no pattern of `allow` fits."""
    found = []
    for kind in ("missing", "unexpected", "misshaped"):
        wrong = [name for name in getattr(report, kind) if not _any(name, allow)]
        more = f" and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        found += [f"{kind} ({len(wrong)}): {', '.join(wrong[:20])}{more}"] if wrong else []
    if found:
        raise ConvertError(
            f"every tensor of a checkpoint must have its place; got {'; '.join(found)}. Allow them by name or pattern "
            "if the rest is to be converted without them, or give another format."
        )


def assemble(shapes: Shapes, entries: Mapping[str, Entry], tensors: Tensors) -> Tree:
    """Returns nested dicts of float32 arrays, each a `Tensor` that reads its parts when it is read itself.

    What the file lacks, or has in another shape, is zero: see `compare`.
    """
    parts: dict[str, list[tuple[Entry, Tensor]]] = {path: [] for path in shapes}
    missing = set()
    for name, entry in entries.items():
        if name in tensors and _fits(entry, tensors[name]):
            parts[entry.path].append((entry, tensors[name]))
        else:
            missing.add(entry.path)
    leaves = {
        path: Tensor(shape, np.dtype(np.float32), functools.partial(_read, shape, parts[path], path in missing))
        for path, shape in shapes.items()
    }
    return unflatten_dict(leaves, sep="/")


def load(
    module: Any,
    inputs: Sequence[jax.ShapeDtypeStruct],
    table: names.Table,
    tensors: Tensors,
    dropped: Sequence[str] = (),
) -> Tree:
    """Returns parameters of a module whose every shape is known, as jax Arrays of their own.

    Args:
      module, inputs: tell the shapes.
      table: what they are called in the file.
      tensors: what the file has.
      dropped: see `compare`.

    Raises:
      ConvertError: a tensor is missing, unexpected or of another shape.
    """
    shapes = flat(_init(module, *inputs)["params"])
    entries = names.entries(table, shapes)
    check(compare(entries, tensors, dropped))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf.read()), assemble(shapes, entries, tensors))


def _read(shape: tuple[int, ...], parts: Sequence[tuple[Entry, Tensor]], zeros: bool) -> np.ndarray:
    """Returns one of our arrays; a tensor is freed before the next one is read."""
    array = (np.zeros if zeros else np.empty)(shape, np.float32)
    for entry, tensor in parts:
        names.put(entry, array, tensor.read())
    return array


def _fits(entry: Entry, tensor: Tensor) -> bool:
    return tuple(tensor.shape) == entry.shape and bool(jnp.issubdtype(tensor.dtype, jnp.floating))


def planned(
    config: Stage1 | Stage2,
    shapes: Shapes,
    entries: Mapping[str, Entry],
    tensors: Tensors,
    dropped: Sequence[str] = (),
    prefix: str = "",
) -> Converted:
    """Returns a model whose arrays are read when they are asked for; see `assemble` and `compare`."""
    return Converted(config, assemble(shapes, entries, tensors), compare(entries, tensors, dropped, prefix), {})


def tokenizer(
    config: Stage1,
    entries: Callable[[Shapes], Mapping[str, Entry]],
    tensors: Tensors,
    dropped: Sequence[str] = (),
    allow: Sequence[str] = (),
) -> Converted:
    """Returns the generator of a tokenizer; ConvertError if the file has not exactly its tensors, see `check`."""
    shapes = stage1_shapes(config)
    found = planned(config, shapes, entries(shapes), tensors, dropped)
    check(found.report, allow)
    return found


def by_path(tree: Any) -> dict[str, Any]:
    """Returns a tree's leaves by path."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def whole(converted: Converted) -> Converted:
    """Returns the model; ConvertError if it is a transformer without its tokenizer."""
    if converted.is_prior and converted.tokenizer is None:
        raise ConvertError(
            "a transformer must come with the tokenizer of its images; this file has none. Give that one's file too: "
            "`tokenizer` in Python, --tokenizer of vqgan convert."
        )
    return converted


def read(planned: Converted) -> Converted:
    """Returns a plan with arrays for its tensors, one read after the other."""
    return jax.tree.map(lambda leaf: leaf.read() if isinstance(leaf, Tensor) else leaf, planned)


@functools.lru_cache(maxsize=8)  # tracing takes a second, and tokenizers are often alike
def stage1_shapes(config: Stage1, *, discriminator: bool = False, lpips: bool = False) -> Shapes:
    """Returns shapes of every array of a tokenizer, and of what it is trained with, by path; see `names`."""
    image = _image(config.model.downsample_factor, config.model.image_channels)
    found = {"generator": _init(config.make_vqgan(), image)["params"]}
    if config.quantizer.ema:
        k, d = config.quantizer.codebook_size, config.quantizer.embed_dim
        found["codebook"] = {"hits": jax.ShapeDtypeStruct((k,), jnp.float32)}
        found["codebook"] |= {"sums": jax.ShapeDtypeStruct((k, d), jnp.float32)}
    module = config.make_discriminator() if discriminator else None
    if module is not None:
        variables = _init(module, _image(256, config.model.image_channels), train=True)
        found |= {"discriminator": variables["params"], "batch_stats": variables.get("batch_stats", {})}
    if lpips:
        found["lpips"] = _init(LPIPS(), _image(32, 3), _image(32, 3))["params"]
    return flat(found)


@functools.lru_cache(maxsize=8)
def stage2_shapes(config: Stage2) -> Shapes:
    """Returns shapes of every array of a transformer, by path; see `names`."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)  # no parameter's shape depends on the input's
    return flat({"transformer": _init(config.make_network(), tokens)["params"]})


# By stage: shapes of every array of a model, given its config and the names of the networks that a file has.
SHAPES: dict[int, Callable[[Any, Collection[str]], Shapes]] = {
    1: lambda config, has: stage1_shapes(config, discriminator="discriminator" in has, lpips="lpips" in has),
    2: lambda config, has: stage2_shapes(config),
}


def flat(tree: Any) -> Shapes:
    """Returns shapes of a tree's leaves, by path."""
    return {path: tuple(leaf.shape) for path, leaf in by_path(tree).items()}


def _image(side: int, channels: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)


def _init(module: Any, *inputs: jax.ShapeDtypeStruct, **options: Any) -> Tree:
    """Returns shapes of a module's variables, ConvertError if it cannot be; nothing is computed."""
    init = functools.partial(module.init, **options)
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        return jax.eval_shape(init, {"params": key, "gumbel": key}, *inputs)
    except Exception as error:  # of whatever layer first finds that its numbers make no sense
        raise ConvertError(
            f"the checkpoint's shapes must be those of a network; {type(error).__name__}: {str(error)[:300]} Give the "
            "file of a whole model."
        ) from error
