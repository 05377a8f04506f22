"""From a file's tensors to our trees: what is there, what is not, and arrays that are put together one at a time."""

import fnmatch
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from vqgan_jax import models
from vqgan_jax.config import Stage1, Stage2
from vqgan_jax.convert import names
from vqgan_jax.convert.names import Entry
from vqgan_jax.convert.tensors import ConvertError, Tensor
from vqgan_jax.train.sharding import path_name

Tensors: TypeAlias = Mapping[str, Tensor]
Shapes: TypeAlias = dict[str, tuple[int, ...]]
Tree: TypeAlias = dict[str, Any]
FLOAT32 = np.dtype(np.float32)


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


class Converted(NamedTuple):
    """A model in our shape.

    Attributes:
      config: the `Stage1` or `Stage2` of a run that would have made it.
      networks: trees of float32 arrays by the networks of `names`: "generator" or "transformer", and as far as the file
        has them "discriminator", "semantic", "batch_stats" (of its norms) and "codebook" (a running average).
      report: on every tensor of the file.
      moments: Adam's state by network, where it is in the file: "count", the steps, and trees like the parameters, "mu"
        and "nu", the running averages of gradients and of their squares.
      step: of the training.
      tokenizer: of the images that a transformer makes.
      condition: the tokenizer of a transformer's condition, where it has one of its own.
    """

    config: Any
    networks: Tree
    report: Report
    moments: dict[str, Tree]
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


def compare(entries: Mapping[str, Entry], tensors: Tensors, dropped: Sequence[str] = (), prefix: str = "") -> Report:
    """Accounts for every tensor of a network and of the file.

    Args:
      entries: what the network needs.
      tensors: what the file has.
      dropped: patterns, as of file names, of tensors that are not needed.
      prefix: of all names, in the report only.
    """
    names_of: dict[str, list[str]] = {field: [] for field in Report._fields}
    for name, tensor in tensors.items():
        if name in entries:
            names_of["used" if _fits(entries[name], tensor) else "misshaped"].append(prefix + name)
        else:
            names_of["dropped" if _any(name, dropped) else "unexpected"].append(prefix + name)
    names_of["missing"] = [prefix + name for name in entries if name not in tensors]
    return Report(**{field: tuple(names) for field, names in names_of.items()})


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def joined(reports: Sequence[Report]) -> Report:
    """Returns one report of several."""
    return Report(*(sum(lists, start=()) for lists in zip(*reports, strict=True)))


def check(report: Report, allow: Sequence[str] = ()) -> None:
    """Raises ConvertError if tensors are missing, unexpected or of another shape that no pattern of `allow` fits."""
    problems = []
    for kind in ("missing", "unexpected", "misshaped"):
        wrong = [name for name in getattr(report, kind) if not _any(name, allow)]
        more = f" and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        problems += [f"{kind} ({len(wrong)}): {', '.join(wrong[:20])}{more}"] if wrong else []
    if problems:
        listed = "; ".join(problems)
        raise ConvertError(
            f"every tensor of a checkpoint must have its place; got {listed}. Allow them by name or pattern "
            "if the rest is to be converted without them, or give another format."
        )


def assemble(shapes: Shapes, entries: Mapping[str, Entry], tensors: Tensors) -> Tree:
    """Returns nested dicts of float32 arrays, each a `Tensor` that reads its parts when it is read itself.

    What the file lacks, or has in another shape, is zero: see `compare`.
    """
    parts: dict[str, list[tuple[Entry, Tensor]]] = {path: [] for path in shapes}
    for name, entry in entries.items():
        if name in tensors and _fits(entry, tensors[name]):
            parts[entry.path].append((entry, tensors[name]))
    read = lambda path: functools.partial(_read, shapes[path], parts[path])
    return unflatten_dict({path: Tensor(shape, FLOAT32, read(path)) for path, shape in shapes.items()}, sep="/")


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
    shapes = flat(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])
    entries = names.entries(table, shapes)
    check(compare(entries, tensors, dropped))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf.read()), assemble(shapes, entries, tensors))


def _read(shape: tuple[int, ...], parts: Sequence[tuple[Entry, Tensor]]) -> np.ndarray:
    """Returns one of our arrays; a tensor is freed before the next one is read."""
    array = np.zeros(shape, FLOAT32)
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


def tokenizer(config: Stage1, table: names.Table, tensors: Tensors, dropped: Sequence[str] = ()) -> Converted:
    """Returns a tokenizer by the names of a table; see `planned`."""
    shapes = network_shapes(config)
    return planned(config, shapes, names.entries(table, shapes), tensors, dropped)


def by_path(tree: Any) -> dict[str, Any]:
    """Returns a tree's leaves by path."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def whole(converted: Converted) -> Converted:
    """Returns the model; ConvertError if it is a transformer without its tokenizer."""
    if converted.is_prior and converted.tokenizer is None:
        raise ConvertError(
            "a transformer must come with its images' tokenizer; this file has none. Give that one's file: `tokenizer` "
            "in Python, --tokenizer of vqgan convert."
        )
    return converted


def read(planned: Converted) -> Converted:
    """Returns a plan with arrays for its tensors, one read after the other."""
    return jax.tree.map(lambda leaf: leaf.read() if isinstance(leaf, Tensor) else leaf, planned)


@functools.lru_cache(maxsize=8)  # tracing takes a second, and tokenizers are often alike
def network_shapes(config: Stage1 | Stage2) -> Shapes:
    """Returns shapes of every array of a run's networks, by path; see `names`. Nothing is computed.

    Raises:
      ConvertError: there can be no such network.
    """
    try:
        state = models.state_shapes(config)
    except Exception as error:  # of whatever layer first finds that its numbers make no sense
        text = f"{type(error).__name__}: {str(error)[:300]}"
        raise ConvertError(f"the checkpoint's shapes must be a network's; got {text}. Give a whole file.") from error
    stats = {"batch_stats": state.stats.get("discriminator", {}), "codebook": state.stats.get("codebook", {})}
    return flat(state.params | stats)


def flat(tree: Any) -> Shapes:
    """Returns shapes of a tree's leaves, by path."""
    return {path: tuple(leaf.shape) for path, leaf in by_path(tree).items()}
