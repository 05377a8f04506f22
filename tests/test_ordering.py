"""The orders of generation against those of the published code, and as permutations of any grid."""

import hashlib

import numpy as np
import pytest

from vqgan_jax import ordering

ON_FOUR = {
    "raster": "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",
    "alternate": "0 1 2 3 7 6 5 4 8 9 10 11 15 14 13 12",
    "z_curve": "0 1 4 5 2 3 6 7 8 9 12 13 10 11 14 15",
    "subsample": "0 2 8 10 1 3 9 11 4 6 12 14 5 7 13 15",
    "spiral_out": "9 5 6 10 14 13 12 8 4 0 1 2 3 7 11 15",
    "spiral_in": "15 11 7 3 2 1 0 4 8 12 13 14 10 6 5 9",
    "random": "3 13 7 2 6 10 4 1 14 0 15 9 8 12 11 5",
}
# MD5 of the order of a 16 x 16 grid and of its inverse, as little-endian int64.
ON_SIXTEEN = {
    "alternate": ("35d95c0a1dcc00079c99abf9e172ef8c", "35d95c0a1dcc00079c99abf9e172ef8c"),
    "z_curve": ("ba491da5ae867148ca586fc34be5eca5", "a64249f3c801bc5e911104a8805e71b5"),
    "subsample": ("e2a734acf0d52ee6f693b651e84b51e8", "f1854c00f562cfa3d112c7c63d66e09a"),
    "spiral_out": ("5b12e05fab05987e54779ab5656e50f9", "2319700edd8171286c80ffb3c894c1a6"),
    "spiral_in": ("d926d4c81c0feca2ed8c633ee351ace6", "a3f5ab0b5399a0240d405d24eab65b14"),
    "random": ("0a2cc81ec39aad9cb511b9132d7c2568", "4cd640db8f23a287300499442907ef9d"),
}


def md5(order) -> str:
    return hashlib.md5(order.astype("<i8").tobytes()).hexdigest()


@pytest.mark.parametrize("name", ordering.ORDERS)
def test_the_published_order_of_a_small_grid(name):
    assert " ".join(map(str, ordering.order(name, 4, 4))) == ON_FOUR[name]


@pytest.mark.parametrize("name", ON_SIXTEEN)
def test_the_published_order_of_sixteen_by_sixteen(name):
    order = ordering.order(name, 16, 16)
    assert (md5(order), md5(ordering.inverse(order))) == ON_SIXTEEN[name]


@pytest.mark.parametrize("name", ordering.ORDERS)
@pytest.mark.parametrize("side", [2, 8, 32])
def test_there_and_back(name, side):
    order, codes = ordering.order(name, side, side), np.arange(side * side) * 3
    np.testing.assert_array_equal(np.sort(order), np.arange(side * side))
    np.testing.assert_array_equal(codes[order][ordering.inverse(order)], codes)


@pytest.mark.parametrize("name", ["raster", "alternate", "random"])
def test_some_orders_fit_any_grid(name):
    np.testing.assert_array_equal(np.sort(ordering.order(name, 3, 5)), np.arange(15))


@pytest.mark.parametrize(
    ("name", "grid"), [("z_curve", (6, 6)), ("subsample", (4, 8)), ("spiral_out", (5, 5)), ("spiral_in", (4, 6))]
)
def test_a_grid_that_does_not_fit_is_an_error(name, grid):
    with pytest.raises(ValueError, match=f"got {grid[0]} x {grid[1]}"):
        ordering.order(name, *grid)


def test_an_unknown_order_is_an_error():
    with pytest.raises(ValueError, match=r"one of raster, .* got 'snake'"):
        ordering.order("snake", 4, 4)


@pytest.mark.parametrize("name", ["alternate", "spiral_out", "spiral_in"])
def test_neighbours_in_the_order_are_neighbours_in_the_grid(name):
    row, column = np.divmod(ordering.order(name, 8, 8), 8)
    np.testing.assert_array_equal(np.abs(np.diff(row)) + np.abs(np.diff(column)), 1)


def test_subsample_begins_with_a_coarse_grid():
    row, column = np.divmod(ordering.order("subsample", 8, 8)[:16], 8)
    assert not np.any(row % 2)
    assert not np.any(column % 2)
