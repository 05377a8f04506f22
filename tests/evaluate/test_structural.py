"""SSIM is scikit-image's with the stated window and range; PSNR by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data
from skimage.metrics import structural_similarity

from vqgan_jax.evaluate.structural import psnr, ssim
from vqgan_jax.nn.pixels import to_float, to_uint8


def theirs(x, y):
    """Of one picture, in float64."""
    return structural_similarity(
        x / 255.0, y / 255.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0,
        channel_axis=-1,
    )  # fmt: skip


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


def test_ssim_equals_scikit_image_even_where_pictures_are_flat():
    x, y = pictures()
    expected = [theirs(a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(ssim(jnp.asarray(x), jnp.asarray(y)), expected, atol=1e-6)
    assert 0.3 < expected[0] < 0.9


def test_a_range_of_two_would_be_told_apart():
    x, y = pictures()
    wrong = structural_similarity(
        x[0] / 255.0, y[0] / 255.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2.0,
        channel_axis=-1,
    )  # fmt: skip
    assert wrong > float(ssim(jnp.asarray(x), jnp.asarray(y))[0]) + 0.05


def test_a_picture_smaller_than_the_window_is_refused():
    small = jnp.zeros((1, 10, 32, 3), jnp.uint8)
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
