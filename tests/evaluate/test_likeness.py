"""LPIPS of bytes is the published package's; SSIM and PSNR are those by hand, and of earlier evaluations."""

from pathlib import Path

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from skimage import data

from vqgan_jax.convert.lpips import load_lpips
from vqgan_jax.evaluate.features import vgg_features
from vqgan_jax.evaluate.likeness import lpips_vgg, nearest_images, nearest_labels, psnr, ssim
from vqgan_jax.nn.perceptual import LPIPS
from vqgan_jax.nn.pixels import check_levels, to_float, to_uint8


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


@pytest.mark.slow
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


# Pixel by pixel

EARLIER = [0.7464157342910767, -0.005769054871052504, 0.9785954356193542, 0.999992311000824, 9.99900366878137e-05, 1.0]


def pictures():
    """Pairs: a photograph with noise, noise alone, nearly flat ones, black against white."""
    draws = np.random.default_rng(0)
    photo = data.astronaut()[:64, 100:150]
    levels = lambda low, high: draws.integers(low, high, photo.shape).astype(np.uint8)
    noisy = np.clip(photo + draws.normal(0, 5, photo.shape), 0, 255).astype(np.uint8)
    flat = np.full_like(photo, 255)
    pairs = [(photo, noisy), (levels(0, 256), levels(0, 256)), (levels(253, 256), levels(253, 256)), (flat, flat - 1)]
    pairs += [(flat, np.zeros_like(flat)), (photo, photo)]
    return [np.stack(each) for each in zip(*pairs, strict=True)]


def by_hand(x, y):
    """Equation 13 of Wang et al. 2004 in float64, over all windows that lie within the picture and all channels."""
    weights = np.exp(-0.5 * np.square(np.arange(-5, 6) / 1.5))
    window = np.outer(weights, weights) / weights.sum() ** 2
    x, y = (sliding_window_view(v / 255.0, (11, 11), axis=(0, 1)) for v in (x, y))
    mean = lambda v: np.sum(window * v, axis=(-2, -1), keepdims=True)
    covariance = lambda u, v: mean((u - mean(u)) * (v - mean(v)))
    luminance = (2 * mean(x) * mean(y) + 0.01**2) / (mean(x) ** 2 + mean(y) ** 2 + 0.01**2)
    structure = (2 * covariance(x, y) + 0.03**2) / (covariance(x, x) + covariance(y, y) + 0.03**2)
    return np.mean(luminance * structure)


def test_ssim_by_hand_even_where_pictures_are_flat():
    x, y = pictures()
    expected = [by_hand(a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(ssim(x, y), expected, atol=1e-6)
    assert 0.3 < expected[0] < 0.9


def test_ssim_is_what_every_earlier_evaluation_computed():
    """Values of the float32 form on devices that scikit-image replaced."""
    np.testing.assert_allclose(ssim(*pictures()), EARLIER, atol=1e-6)


def test_a_picture_smaller_than_the_window_is_refused():
    small = np.zeros((1, 10, 32, 3), np.uint8)
    with pytest.raises(ValueError, match=r"at least 11 pixels for SSIM; got \(10, 32\)"):
        ssim(small, small)


def test_psnr_by_hand():
    black = np.zeros((4, 8, 8, 3), np.uint8)
    other = black.copy()
    other[0] = 255  # MSE 1
    other[1, :, :, 0] = 51  # a fifth of the range in a third of the values: 1 / 75
    other[2, 0, 0, 0] = 1
    expected = [0.0, 10 * np.log10(75), 10 * np.log10(8 * 8 * 3 * 255**2), 100.0]
    np.testing.assert_allclose(psnr(jnp.asarray(black), jnp.asarray(other)), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(psnr(jnp.asarray(black), jnp.asarray(other)), psnr(jnp.asarray(other), black))


def test_every_level_survives_the_way_through_floats():
    levels = jnp.arange(256, dtype=jnp.uint8)
    np.testing.assert_array_equal(to_uint8(to_float(levels)), levels)
    # Half a level is rounded, never cut off.
    np.testing.assert_array_equal(to_uint8(to_float(levels) + 0.98 / 255), levels)
    np.testing.assert_array_equal(to_uint8(to_float(levels) - 0.98 / 255), levels)
