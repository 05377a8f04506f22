"""SSIM and PSNR by hand, and as earlier evaluations had them."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from skimage import data

from vqgan_jax.evaluate.structural import psnr, ssim
from vqgan_jax.nn.pixels import to_float, to_uint8

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
