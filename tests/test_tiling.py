"""Tiles: what overlaps adds up, decoders that look at one code cannot tell, and memory stays that of a tile."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from untrained import tokenizer

from vqgan_jax import api

# Compiling takes most of the time here; buffers stay as they are.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
FACTOR = 2
SIZES = [(8, 2, 11, 12), (4, 2, 9, 31), (6, 1, 40, 5), (5, 0, 12, 20), (1, 0, 3, 4)]


def pointwise(indices):
    """Two channels that say what each code is, each over a square of pixels."""
    pixels = jnp.repeat(jnp.repeat(indices, FACTOR, 1), FACTOR, 2)
    return jnp.stack([pixels, -2.0 * pixels], axis=-1)


def ramp(shape):
    """Codes that are all different."""
    return jnp.arange(np.prod(shape), dtype=jnp.int32).reshape(shape)


@functools.partial(fast_jit, static_argnames=("decode_fn", "factor", "tile", "overlap"))
def decode(decode_fn, indices, *, factor=FACTOR, tile, overlap):
    return api.decode_tiles(decode_fn, indices, factor=factor, tile=tile, overlap=overlap)


@pytest.mark.parametrize(("tile", "overlap", "height", "width"), SIZES)
def test_a_decoder_that_sees_one_code_cannot_tell(tile, overlap, height, width):
    indices = ramp((2, height, width))
    tiled = decode(pointwise, indices, tile=tile, overlap=overlap)
    np.testing.assert_allclose(tiled, pointwise(indices), rtol=1e-6)


@pytest.mark.parametrize(("tile", "overlap"), [(8, 2), (8, 4), (5, 0), (1, 0), (16, 3)])
def test_weights_add_up_to_one_and_fall_to_nothing_at_a_tiles_edge(tile, overlap):
    for side in range(1, 60):
        start = api.tile_starts(side, tile, overlap)
        weights = api.tile_weights(side, tile, overlap, FACTOR)
        total = np.zeros(side * FACTOR)
        for first, row in zip(start, weights, strict=True):
            assert row.min() >= 0
            total[first * FACTOR : first * FACTOR + len(row)] += row
        np.testing.assert_allclose(total, 1.0, atol=1e-6)
        assert start[0] == 0
        assert start[-1] + weights.shape[1] // FACTOR == side
        if overlap:  # half a pixel's step away from zero
            assert (weights[1:, 0] <= 0.5 / (2 * overlap * FACTOR) + 1e-6).all()
            assert (weights[:-1, -1] <= 0.5 / (2 * overlap * FACTOR) + 1e-6).all()
        assert len(start) == 1 or side > tile + 2 * overlap


def test_two_tiles_by_hand():
    """Tiles of 4 codes over 6, a code to each side shared: a rise of 2 codes, at the centres of 4 pixels."""
    np.testing.assert_array_equal(api.tile_starts(6, 2, 1), [0, 2])
    fall = [0.875, 0.625, 0.375, 0.125]
    np.testing.assert_array_equal(api.tile_weights(6, 2, 1, 2), [[1] * 4 + fall, fall[::-1] + [1] * 4])


def test_no_seam_shows_where_tiles_disagree():
    """A decoder that paints each tile in one colour: the image goes from one to the next in equal steps."""
    painted = lambda codes: jnp.broadcast_to(codes[:, :1, :1, None], (1, 12 * FACTOR, 12 * FACTOR, 1)) * 1.0
    indices = jnp.zeros((1, 20, 20), jnp.int32).at[:, 8:].set(3).at[:, :, 8:].add(5)
    tiled = decode(painted, indices, tile=8, overlap=2)[0, ..., 0]
    np.testing.assert_allclose([tiled[0, 0], tiled[-1, 0], tiled[0, -1], tiled[-1, -1]], [0, 3, 5, 8])
    steps = 2 * 2 * FACTOR
    np.testing.assert_allclose(np.diff(tiled[:, 0])[8 * FACTOR : 12 * FACTOR - 1], 3 / steps, rtol=1e-5)
    assert np.abs(np.diff(tiled, axis=0)).max() <= 3 / steps + 1e-6
    assert np.abs(np.diff(tiled, axis=1)).max() <= 5 / steps + 1e-6


@pytest.mark.parametrize("shape", [(1, 5, 3), (2, 8, 8), (1, 8, 1)])
def test_what_fits_into_one_tile_is_decoded_once(shape):
    calls = []

    def decode_fn(codes):
        calls.append(codes.shape)
        return pointwise(codes)

    np.testing.assert_array_equal(
        api.decode_tiles(decode_fn, ramp(shape), factor=FACTOR, tile=4, overlap=2), pointwise(ramp(shape))
    )
    assert calls == [shape]


@pytest.mark.parametrize(("tile", "overlap"), [(3, 2), (0, 0), (4, -1)])
def test_tiles_that_three_would_share_are_refused(tile, overlap):
    with pytest.raises(ValueError, match=f"at least twice the `overlap`; got {tile} and {overlap}. Enlarge"):
        api.decode_tiles(pointwise, ramp((1, 9, 9)), factor=FACTOR, tile=tile, overlap=overlap)


# A real network


@pytest.fixture(scope="module")
def vqgan():
    """An untrained one as a function of indices, with attention in its middle and GroupNorm throughout."""
    model = tokenizer()
    return lambda codes: model.module.apply({"params": model.params}, codes, method="decode_indices")


def test_a_decoder_sees_its_tile_only(vqgan):
    """So tiles come near to the whole, but are not it; larger ones come nearer."""
    indices = jax.random.randint(jax.random.key(0), (1, 24, 24), 0, 16)
    whole = fast_jit(vqgan)(indices)
    errors = [jnp.abs(decode(vqgan, indices, tile=tile, overlap=tile // 4) - whole).mean() for tile in (4, 12)]
    assert 1e-2 * jnp.std(whole) < errors[1] < 0.5 * errors[0]


def test_memory_is_that_of_a_tile_whatever_the_image(vqgan):
    def temporary(side, **how):
        run = (lambda codes: api.decode_tiles(vqgan, codes, factor=FACTOR, **how)) if how else vqgan
        memory = fast_jit(run).lower(jax.ShapeDtypeStruct((1, side, side), jnp.int32)).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    tile = temporary(24)
    image = lambda side: (FACTOR * side) ** 2 * 3 * 4
    for side in (48, 96):
        assert temporary(side, tile=16, overlap=4) < 1.5 * tile + 2 * image(side)
    assert temporary(96) > 10 * temporary(96, tile=16, overlap=4)
