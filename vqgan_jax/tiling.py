"""Decoding grids of codes of any size in bounded memory: tile after tile, blended where they overlap."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def starts(side: int, tile: int, overlap: int) -> Int[np.ndarray, "n"]:
    """Where the tiles along an axis begin: a tile's distance apart, the last one flush with the end."""
    count = max(-(-(side - 2 * overlap) // tile), 1)
    return np.minimum(np.arange(count) * tile, max(side - tile - 2 * overlap, 0))


def weights(side: int, tile: int, overlap: int, factor: int) -> Float[np.ndarray, "n p"]:
    """Of each tile's pixels along an axis: those of all tiles add up to 1 everywhere.

    A tile rises from 0 to 1 along the 2 overlaps of codes that it shares with the one before, which falls meanwhile.
    """
    start = starts(side, tile, overlap)[:, None]
    pixel = start * factor + np.arange(min(tile + 2 * overlap, side) * factor) + 0.5  # its centre, in the image
    risen = lambda number: np.clip(
        # Without an overlap the rise is a step, between two pixels.
        (pixel - (number * tile + overlap) * factor) / max(2 * overlap * factor, 1) + 0.5, 0, 1
    )  # fmt: skip
    number = np.arange(len(start))[:, None]
    rise = np.where(number == 0, 1.0, risen(number))
    fall = np.where(number == len(start) - 1, 0.0, risen(number + 1))
    return (rise - fall).astype(np.float32)


def decode(
    decode_fn: Callable[[Int[Array, "b h w"]], Float[Array, "b H W c"]],
    indices: Int[Array, "b h w"],
    *,
    factor: int,
    tile: int,
    overlap: int,
) -> Float[Array, "b H W c"]:
    """Decodes tiles one after the other; memory holds the result and what one tile of each image needs.

    Tiles have `tile + 2 * overlap` codes a side. Neighbours share the last and first `2 * overlap`, along which one
    fades linearly into the other. What fits into one tile is decoded whole: the result is `decode_fn`'s own.

    Otherwise it is not what `decode_fn` would make of the whole: GroupNorm takes its statistics from a tile, and the
    attention in the middle of a decoder sees no further. Tiles that are as large as the training images keep to what
    the decoder has learnt; larger ones come nearer to the whole.

    Args:
      decode_fn: from indices to images, `factor` times larger.
      indices: codes of any grid.
      factor: pixels along a side of a code.
      tile: codes from one tile to the next.
      overlap: codes by which a tile reaches beyond that, on each side.

    Returns:
      float32, of the scale that `decode_fn` gives.

    Raises:
      ValueError: a tile that is smaller than 1 or than two overlaps, so that three would meet; a negative overlap.
    """
    if not 0 <= 2 * overlap <= tile or tile < 1:
        raise ValueError(
            f"`tile` must be positive and at least twice the `overlap`; got {tile} and {overlap}. Enlarge the tile."
        )
    batch, height, width = indices.shape
    part = (min(tile + 2 * overlap, height), min(tile + 2 * overlap, width))
    if part == (height, width):
        return decode_fn(indices).astype(jnp.float32)
    rows, columns = starts(height, tile, overlap), starts(width, tile, overlap)
    down, across = (jnp.asarray(weights(side, tile, overlap, factor)) for side in (height, width))

    def add(image: Array, number: Array) -> tuple[Array, None]:
        i, j = number // len(columns), number % len(columns)
        row, column = jnp.asarray(rows)[i], jnp.asarray(columns)[j]
        codes = jax.lax.dynamic_slice(indices, (0, row, column), (batch, *part))
        pixels = decode_fn(codes).astype(jnp.float32) * (down[i][:, None] * across[j][None])[None, :, :, None]
        at = (0, row * factor, column * factor, 0)
        return jax.lax.dynamic_update_slice(image, jax.lax.dynamic_slice(image, at, pixels.shape) + pixels, at), None

    channels = jax.eval_shape(decode_fn, jax.ShapeDtypeStruct((batch, *part), indices.dtype)).shape[-1]
    image = jnp.zeros((batch, height * factor, width * factor, channels), jnp.float32)
    return jax.lax.scan(add, image, jnp.arange(len(rows) * len(columns)))[0]
