"""From what a caller says to a prior's prefix: checked, as tokens, with the grid of codes that it asks for."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from vqgan_jax import sliding
from vqgan_jax.data.conditions import ClassLabel, Codes, Condition, Coordinates, Objects
from vqgan_jax.models import Prior


class Prefix(NamedTuple):
    """What stands before the codes of each image, wherever the window is.

    Attributes:
      tokens: b s of an image of the training size, and of a condition that is the same for every window; b rows
        columns of one whose tokens belong to places; b n m s of one with tokens of its own for each window's origin,
        zeros for an origin where the window never stands.
      grid: rows and columns of codes of each image.
    """

    tokens: Int[Array, "b ..."]
    grid: tuple[int, int]


def prefix(
    prior: Prior, *, labels: Any, condition: Any, count: int | None, size: tuple[int, int] | None, stride: int = 1
) -> Prefix:
    """The prefix of each image.

    Args:
      prior: from `load_prior`.
      labels, condition, count, size, stride: see `api.sample_indices`.

    Raises:
      ValueError: something is missing, out of range, or does not fit the prior or the rest.
    """
    kind, f = prior.module.condition, prior.tokenizer.downsample_factor
    wanted = "labels" if isinstance(kind, ClassLabel) else "condition" if isinstance(kind, Codes | Objects) else "count"
    given = {"labels": labels, "condition": condition}
    for name, value in given.items():
        if (value is not None) != (wanted == name):
            raise ValueError(_explain(prior, name, wanted))
    if isinstance(kind, Codes):
        check_map(prior, kind, condition)
        size = _agree(size, condition.shape[1:3])
    grid = grid_of(prior, size)
    if wanted != "count":
        found = len(given[wanted]) if np.ndim(given[wanted]) else None
        if count is not None and count != found:
            raise ValueError(f"`{wanted}` must be as many as the images, {count}; got {found}.")
    elif count is None or count < 1:
        raise ValueError(f"a prior without a condition of yours needs `count`, the number of images; got {count}.")
    if isinstance(kind, ClassLabel):
        return Prefix(check_labels(kind, labels), grid)
    if isinstance(kind, Objects):
        return Prefix(check_objects(prior, kind, condition, grid), grid)
    if isinstance(kind, Codes):
        return Prefix(of_map(prior, kind, jnp.asarray(condition), grid, stride), grid)
    batch: dict[str, Any] = {"": jnp.zeros((count, 1))}
    if isinstance(kind, Coordinates):
        height, width = grid[0] * f, grid[1] * f
        position = jnp.arange(height * width, dtype=jnp.float32).reshape(1, height, width, 1) / (height * width)
        batch = {kind.field: jnp.broadcast_to(position, (count or 1, *position.shape[1:]))}
    return Prefix(placed(prior, _encode(prior, batch), grid), grid)


@jax.jit
def _encode(prior: Prior, batch: Any) -> Any:
    return prior.module.condition.encode(prior.frozen, batch)


def of_map(prior: Prior, kind: Codes, maps: Array, grid: tuple[int, int], stride: int) -> Int[Array, "b ..."]:
    """Tokens of maps as `Prefix` has them: cut out of the whole, or those of each window's part of the map."""
    window = prior.module.grid
    if grid == window or kind.is_cut(window):
        return placed(prior, _encode(prior, {kind.field: maps}), grid)
    sliding.check_order(prior.module)
    origins = sliding.visited(sliding.runs(grid, window, rule_of(kind), stride))
    shape = (grid[0] - window[0] + 1, grid[1] - window[1] + 1)
    return _encode_windows(prior, maps, origins, shape)


@functools.partial(jax.jit, static_argnames="shape")
def _encode_windows(prior: Prior, maps: Array, origins: Array, shape: tuple[int, int]) -> Int[Array, "b n m s"]:
    """Tokens of the part of the maps in the window at each of the origins (k 2), which lie in a table of that shape."""
    kind, f = prior.module.condition, prior.tokenizer.downsample_factor
    height, width = (side * f for side in prior.module.grid)

    def encode(origin: Int[Array, "2"]) -> Int[Array, "b s"]:
        rows = jax.lax.dynamic_slice_in_dim(maps, origin[0] * f, height, axis=1)
        part = jax.lax.dynamic_slice_in_dim(rows, origin[1] * f, width, axis=2)
        return kind.encode(prior.frozen, {kind.field: part})

    tokens = jnp.moveaxis(jax.lax.map(encode, origins), 0, 1)
    table = jnp.zeros((len(maps), *shape, kind.length), tokens.dtype)
    return table.at[:, origins[:, 0], origins[:, 1]].set(tokens)


def rule_of(condition: Condition) -> str:
    """Where the window is around the code that is drawn; see `sliding.RULES`."""
    return "scene" if isinstance(condition, Objects) else "center"


def grid_of(prior: Prior, size: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of codes of images of `size` pixels; those of training by default.

    Raises:
      ValueError: a side that is no multiple of the downsample factor, or smaller than the training images'.
    """
    f, smallest = prior.tokenizer.downsample_factor, prior.module.grid
    if size is None:
        return smallest
    grid = (size[0] // f, size[1] // f)
    if (grid[0] * f, grid[1] * f) != tuple(size):
        near = tuple(-(-side // f) * f for side in size)
        raise ValueError(
            f"`size` must be height and width in multiples of {f} pixels; got {tuple(size)}. Ask for {near}."
        )
    if grid[0] < smallest[0] or grid[1] < smallest[1]:
        least = (smallest[0] * f, smallest[1] * f)
        raise ValueError(
            f"`size` must be at least {least}, the window that the prior was trained on; got {tuple(size)}. Draw that "
            "and cut it."
        )
    return grid


def placed(prior: Prior, tokens: Int[Array, "b s"], grid: tuple[int, int]) -> Int[Array, "b ..."]:
    """Row-major tokens of an image of that many codes, as `Prefix` has them."""
    condition, window = prior.module.condition, prior.module.grid
    if grid == window or condition.grid is None:
        return tokens
    rows, columns = (own * side // part for own, side, part in zip(condition.grid, grid, window, strict=True))
    return tokens.reshape(-1, rows, columns)


def window_of(condition: Condition, tokens: Int[Array, "b ..."], window: tuple[int, int]) -> Any:
    """A function of a window's origin (row, column), in codes, to its prefix (b s); `window` is its size."""

    def at(row: Any, column: Any) -> Int[Array, "b s"]:
        if tokens.ndim == 2:
            return tokens
        if tokens.ndim == 4:
            return tokens[:, row, column]
        assert condition.grid is not None
        own = condition.grid
        start = (jnp.zeros((), jnp.int32), row * own[0] // window[0], column * own[1] // window[1])
        return jax.lax.dynamic_slice(tokens, start, (len(tokens), *own)).reshape(len(tokens), -1)

    return at


def check_labels(kind: ClassLabel, labels: Any) -> Int[Array, "b 1"]:
    """Classes as tokens; ValueError for what is none."""
    dtype = jnp.result_type(labels)
    if jnp.ndim(labels) != 1 or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"`labels` must be integers of shape (b,), the class of each image; got {dtype} of shape "
            f"{jnp.shape(labels)}."
        )
    check_range("labels", labels, kind.num_classes)
    return marked(labels, kind.num_classes)[:, None]


def check_map(prior: Prior, kind: Codes, maps: Any) -> None:
    """Raises ValueError for a map of another shape, type or range than the prior's condition has."""
    channels = kind.module.image_channels
    integer = jnp.issubdtype(jnp.result_type(maps), jnp.integer)
    if kind.field == "segmentation":
        fine, form = integer and jnp.ndim(maps) == 3, "integers of shape (b, H, W), below the number of classes"
    elif channels == 1:
        fine = not integer and jnp.ndim(maps) == 4 and maps.shape[-1] == 1
        form = "floats in [-1, 1] of shape (b, H, W, 1)"
    else:
        fine = jnp.result_type(maps) == jnp.uint8 and jnp.ndim(maps) == 4 and maps.shape[-1] == 3
        form = "uint8 of shape (b, H, W, 3)"
    if not fine:
        raise ValueError(
            f"`condition` must be the {kind.field} of each image, {form}; got {jnp.result_type(maps)} of shape "
            f"{jnp.shape(maps)}."
        )
    if kind.field == "segmentation":
        check_range("condition", maps, channels)
    factor = kind.module.downsample_factor
    if kind.is_cut(prior.module.grid) and (maps.shape[1] % factor or maps.shape[2] % factor):
        raise ValueError(
            f"the sides of a {kind.field} must be multiples of {factor}, its tokenizer's downsample factor; got "
            f"{maps.shape[1:3]}. Crop it."
        )


def check_objects(prior: Prior, kind: Objects, tokens: Any, grid: tuple[int, int]) -> Int[Array, "b ..."]:
    """Tokens of a layout, or of one for each window; ValueError for what is neither."""
    window, length = prior.module.grid, kind.length
    origins = tuple(side - part + 1 for side, part in zip(grid, window, strict=True))
    shape = (length,) if grid == window else (*origins, length)
    if jnp.shape(tokens)[1:] != shape or not jnp.issubdtype(jnp.result_type(tokens), jnp.integer):
        made_by = "encode" if grid == window else "windows"
        raise ValueError(
            f"`condition` must be integers of shape {('b', *shape)}, as `Layout.{made_by}` gives them; got "
            f"{jnp.result_type(tokens)} of shape {jnp.shape(tokens)}."
        )
    check_range("condition", tokens, kind.layout.num_tokens)
    return marked(tokens, kind.layout.num_tokens)


def on_host(values: Any) -> bool:
    """Whether values can be looked at without waiting for a device: NumPy's and Python's, but no `jax.Array`."""
    return not isinstance(values, jax.Array)


def check_range(name: str, values: Any, limit: int, hint: str = "Leave the others out.") -> None:
    """Raises ValueError for values on the host that are outside [0, limit)."""
    if on_host(values) and not np.all((np.asarray(values) >= 0) & (np.asarray(values) < limit)):
        raise ValueError(
            f"`{name}` must be in [0, {limit}); got values in [{np.min(values)}, {np.max(values)}]. {hint}"
        )


def marked(values: Any, limit: int) -> Int[Array, "..."]:
    """Values as int32, those outside [0, limit) as -1: what cannot raise, because it is on a device, shows."""
    values = jnp.asarray(values)
    return jnp.where((values >= 0) & (values < limit), values, -1).astype(jnp.int32)


def _agree(size: tuple[int, int] | None, shape: tuple[int, ...]) -> tuple[int, int]:
    if size is not None and tuple(size) != tuple(shape):
        raise ValueError(f"`size` must be that of the condition, {tuple(shape)}; got {tuple(size)}. Leave it out.")
    return shape[0], shape[1]


def _explain(prior: Prior, name: str, wanted: str) -> str:
    kind = prior.module.condition.kind
    if name == wanted:
        needs = {"labels": "the class of each image", "condition": f"the {kind} of each image"}
        return f"this prior's condition is {kind!r}: it needs `{name}`, {needs[name]}; none were given."
    if name == "labels":
        return f"`labels` are for a class-conditional prior; the condition of this one is {kind!r}. Leave them out."
    return f"`condition` is for a prior over maps or objects; the condition of this one is {kind!r}. Leave it out."
