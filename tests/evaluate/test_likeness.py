"""LPIPS of bytes is the published package's; the nearest picture of a stream is found wherever it comes."""

from pathlib import Path

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax.convert.lpips import load_lpips
from vqgan_jax.evaluate.features import vgg_features
from vqgan_jax.evaluate.likeness import lpips_vgg, nearest_images, nearest_labels
from vqgan_jax.nn.perceptual import LPIPS
from vqgan_jax.nn.pixels import check_levels, to_float


@pytest.fixture(scope="module")
def params():
    return load_lpips()


@pytest.fixture(scope="module")
def recorded():
    with np.load(Path(__file__).parents[1] / "golden" / "lpips.npz") as arrays:
        return dict(arrays)


def test_heads_are_those_of_the_package_bit_for_bit(params, recorded):
    for i in range(5):
        np.testing.assert_array_equal(params[f"head_{i}"], recorded[f"head_{i}"])


def test_distances_are_those_of_the_package_and_the_same_twice(params, recorded):
    x, y = map(jnp.asarray, drawn.pairs())
    found = lpips_vgg(params, x, y)
    np.testing.assert_allclose(found, recorded["lpips"], rtol=1e-5)
    np.testing.assert_array_equal(lpips_vgg(params, x, y), found)
    # What images in [0, 1] would give is another number, so that only bytes are taken.
    assert np.abs(recorded["lpips_of_halves"] / recorded["lpips"] - 1).max() > 0.01


def test_floats_are_refused():
    with pytest.raises(ValueError, match="uint8; got float32"):
        check_levels(jnp.zeros((1, 8, 8, 3)))


def test_features_for_fd_vgg_are_means_of_the_last_activation(params):
    images = jnp.asarray(drawn.pairs()[0])
    found = vgg_features(params, images)
    assert found.shape == (3, 512)
    assert float(found.min()) >= 0.0
    assert float(found.max()) > 1.0
    # LPIPS has the same activation, divided by its length at each position.
    last = jax.jit(lambda params, x: LPIPS().apply({"params": params}, to_float(x), method="features")[-1])
    unit = np.asarray(last(params, images))
    lengths = np.linalg.lstsq(unit[0].reshape(9, 512).T, 9 * np.asarray(found[0]), rcond=None)[0]
    assert lengths.min() > 0.0
    np.testing.assert_allclose(lengths @ unit[0].reshape(9, 512) / 9, found[0], atol=1e-4)
    # Not a pair's: an image's features do not depend on its neighbours in the batch.
    np.testing.assert_allclose(vgg_features(params, images[::-1])[::-1], found, rtol=1e-4, atol=1e-5)


def test_the_nearest_of_a_stream_by_lpips(params):
    x, y = drawn.pairs()
    draws = np.random.default_rng(0)
    others = draws.integers(0, 256, (4, 48, 48, 3)).astype(np.uint8)
    near = np.clip(x + draws.integers(-3, 4, x.shape), 0, 255).astype(np.uint8)
    stream = np.concatenate([others, y, near[::-1]])
    numbers, distances = nearest_images(params, x, np.split(stream, [1, 6]), count=2, batch_size=4)
    np.testing.assert_array_equal(numbers[:, 0], [9, 8, 7])
    direct = np.stack([lpips_vgg(params, jnp.asarray(x), jnp.asarray(stream[numbers[:, i]])) for i in range(2)], axis=1)
    np.testing.assert_allclose(distances, direct, rtol=1e-3, atol=1e-6)
    assert (distances[:, 0] < distances[:, 1]).all()
    labels = nearest_labels(params, x, stream, np.arange(10) * 10, batch_size=4)
    np.testing.assert_array_equal(labels, [90, 80, 70])
