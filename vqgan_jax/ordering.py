"""Orders in which a grid of codes is generated (section 4.1 of the paper, figure 47), and their inverses."""

import numpy as np
from jaxtyping import Int


def raster(height: int, width: int) -> Int[np.ndarray, "_"]:
    """Row by row, from left to right."""
    return np.arange(height * width)


def alternate(height: int, width: int) -> Int[np.ndarray, "_"]:
    """Row by row, every second one from right to left."""
    grid = np.arange(height * width).reshape(height, width)
    grid[1::2] = grid[1::2, ::-1]
    return grid.reshape(-1)


def bits(height: int, width: int, name: str) -> Int[np.ndarray, "2 p _"]:
    """The bits of each position's row and column, lowest first."""
    if height != width or height & (height - 1):
        raise ValueError(
            f"the order {name!r} needs a square grid whose side is a power of two; got {height} x {width}. "
            "Choose another order."
        )
    places = np.arange(max(height.bit_length() - 1, 1))[:, None]
    position = np.arange(height * width)
    return np.stack([position // width >> places & 1, position % width >> places & 1])


def z_curve(height: int, width: int) -> Int[np.ndarray, "_"]:
    """By Morton code: quadrant by quadrant, at every scale."""
    row, column = bits(height, width, "z_curve")
    interleaved = np.stack([column, row], axis=1).reshape(-1, height * width)  # lowest first: column, row, column, ...
    return np.lexsort(interleaved)


def subsample(height: int, width: int) -> Int[np.ndarray, "_"]:
    """A coarse grid first, then finer ones between its points."""
    row, column = bits(height, width, "subsample")
    interleaved = np.stack([row, column], axis=1).reshape(-1, height * width)
    return np.lexsort(interleaved[::-1])


def spiral_out(height: int, width: int) -> Int[np.ndarray, "_"]:
    """From the middle outwards, in runs up, right, down and left of lengths 1, 1, 2, 2, 3, 3, ..."""
    if height != width or height % 2:
        raise ValueError(
            f"a spiral needs a square grid with an even side; got {height} x {width}. Choose another order."
        )
    row, column = height // 2, width // 2 - 1
    path = [(row, column)]
    for run in range(2 * width):
        down, right = ((-1, 0), (0, 1), (1, 0), (0, -1))[run % 4]
        for _ in range(run // 2 + 1):
            row, column = row + down, column + right
            path.append((row, column))
    return np.array([row * width + column for row, column in path[: height * width]])


def spiral_in(height: int, width: int) -> Int[np.ndarray, "_"]:
    """From a corner inwards: `spiral_out` backwards."""
    return spiral_out(height, width)[::-1].copy()


def random(height: int, width: int) -> Int[np.ndarray, "_"]:
    """One fixed permutation, upstream's (NumPy's legacy generator with seed 1)."""
    return np.random.RandomState(1).permutation(height * width)


ORDERS = {
    "raster": raster,
    "alternate": alternate,
    "z_curve": z_curve,
    "subsample": subsample,
    "spiral_in": spiral_in,
    "spiral_out": spiral_out,
    "random": random,
}


def order(name: str, height: int, width: int) -> Int[np.ndarray, "_"]:
    """The order `name` of a grid: entry k is the row-major number of the position that is generated k-th.

    So `codes[:, order]` are the tokens of row-major `codes`, and `tokens[:, inverse(order)]` the codes again.

    Raises:
      ValueError: an unknown name, or a grid that the order does not fit.
    """
    if name not in ORDERS:
        raise ValueError(f"the order must be one of {', '.join(ORDERS)}; got {name!r}.")
    return ORDERS[name](height, width)


def inverse(order: Int[np.ndarray, "t"]) -> Int[np.ndarray, "t"]:
    """The permutation that undoes `order`."""
    return np.argsort(order)
