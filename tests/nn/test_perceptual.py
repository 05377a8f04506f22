import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFilter

from vqgan_jax.convert.lpips import load_lpips
from vqgan_jax.nn.perceptual import LPIPS, normalise


@pytest.fixture(scope="module")
def params():
    return {"params": load_lpips()}


@pytest.fixture(scope="module")
def lpips(params):
    """The distance as a function of two batches, compiled; weights as constants would take the compiler a minute."""
    distance = jax.jit(lambda params, x, y: LPIPS().apply(params, x, y))
    return functools.partial(distance, params)


@pytest.fixture(scope="module")
def value_and_gradient(params):
    """The sum of the distances, and its gradient at the second batch, compiled."""
    compiled = jax.jit(jax.value_and_grad(lambda params, x, y: LPIPS().apply(params, x, y).sum(), argnums=2))
    return functools.partial(compiled, params)


@pytest.fixture(scope="module")
def pictures():
    """Coloured tiles with noise, and the same after ever stronger blur; 4 1 32 32 3, in [-1, 1]."""
    noise = np.random.default_rng(0)
    tiles = noise.integers(0, 256, (8, 8, 3)).repeat(4, axis=0).repeat(4, axis=1) + noise.normal(0, 10, (32, 32, 3))
    sharp = Image.fromarray(np.clip(tiles, 0, 255).astype(np.uint8))
    blurred = [sharp.filter(ImageFilter.GaussianBlur(radius)) for radius in (0.5, 1, 2)]
    return jnp.asarray(np.stack([np.asarray(i)[None] for i in [sharp, *blurred]]), jnp.float32) / 127.5 - 1.0


def test_an_image_has_no_distance_from_itself(lpips, pictures):
    assert float(lpips(pictures[0], pictures[0])[0]) < 1e-9


def test_the_distance_is_symmetric(lpips, pictures):
    np.testing.assert_allclose(lpips(pictures[0], pictures[2]), lpips(pictures[2], pictures[0]), rtol=1e-6)


def test_the_distance_grows_with_blur(lpips, pictures):
    distances = [float(lpips(pictures[0], blurred)[0]) for blurred in pictures[1:]]
    assert 0.0 < distances[0] < distances[1] < distances[2] < 1.5


def test_every_image_has_its_own_distance(lpips, pictures):
    x, y = jnp.concatenate([pictures[0], pictures[0]]), jnp.concatenate([pictures[2], pictures[0]])
    np.testing.assert_allclose(lpips(x, y), [lpips(pictures[0], pictures[2])[0], 0.0], rtol=1e-5)


def test_the_distance_is_the_published_formula(params, lpips, pictures):
    """Zhang et al. 2018, equation 1, from the features on."""
    x, y = pictures[0], pictures[2]
    features = jax.jit(lambda params, x: LPIPS().apply(params, x, method="features"))
    total = 0.0
    for i, (f, g) in enumerate(zip(features(params, x), features(params, y), strict=True)):
        lengths = np.linalg.norm(np.asarray(f), axis=-1)
        np.testing.assert_allclose(lengths[lengths > 0], 1.0, atol=1e-5)
        difference = np.square(np.asarray(f, np.float64) - np.asarray(g, np.float64))
        total += (difference @ np.asarray(params["params"][f"head_{i}"], np.float64)).mean((1, 2))
    np.testing.assert_allclose(lpips(x, y), total, rtol=1e-5)


def test_the_trained_heads_never_reward_a_difference(params):
    for i in range(5):
        assert float(params["params"][f"head_{i}"].min()) >= 0.0


def test_dropout_is_random_only_when_on_and_right_on_average(params, lpips, pictures):
    x, y = pictures[0], pictures[2]
    draw = lambda params, key: LPIPS(dropout=True).apply(params, x, y, rngs={"dropout": key})[0]
    noisy = jax.jit(jax.vmap(draw, (None, 0)))(params, jax.random.split(jax.random.key(0), 32))
    sure = float(lpips(x, y)[0])
    assert float(noisy.std()) > 0.01 * sure
    np.testing.assert_allclose(noisy.mean(), sure, rtol=0.05)


def test_a_grey_channel_equals_three_equal_ones(lpips, pictures):
    x, y = pictures[0][..., :1], pictures[2][..., :1]
    np.testing.assert_allclose(lpips(x, y), lpips(x.repeat(3, -1), y.repeat(3, -1)), rtol=1e-5)


@pytest.mark.parametrize("level", [None, -1.0, 0.0])
def test_the_gradient_is_finite_at_identical_and_at_flat_images(value_and_gradient, pictures, level):
    x = pictures[0] if level is None else jnp.full((1, 32, 32, 3), level)
    value, gradient = value_and_gradient(x, x)
    assert value < 1e-9
    assert np.isfinite(gradient).all()
    _, away = value_and_gradient(pictures[0], x if level is not None else 0.9 * x)
    assert np.isfinite(away).all()
    assert away.any()


def test_following_the_gradient_lowers_the_distance(value_and_gradient, lpips, pictures):
    x, y = pictures[0], pictures[3]
    _, gradient = value_and_gradient(x, y)
    step = 0.02 * gradient / jnp.abs(gradient).max()
    assert float(lpips(x, y - step)[0]) < float(lpips(x, y)[0]) < float(lpips(x, y + step)[0])


@pytest.mark.slow
def test_bfloat16_gives_nearly_the_same_distance_and_gradient(params, pictures):
    x, y = pictures[0], pictures[2]

    def pull(dtype):
        distance = lambda params, y: LPIPS(dtype=dtype).apply(params, x, y).sum()
        return jax.jit(jax.value_and_grad(distance, argnums=1))(params, y)

    (narrow, narrow_gradient), (wide, gradient) = pull(jnp.bfloat16), pull(jnp.float32)
    np.testing.assert_allclose(narrow, wide, rtol=0.02)
    assert np.corrcoef(np.ravel(narrow_gradient), np.ravel(gradient))[0, 1] > 0.98


def test_normalise_is_zero_with_zero_gradient_at_zero():
    zeros = jnp.zeros((1, 1, 1, 4))
    assert not normalise(zeros).any()
    assert not jax.grad(lambda x: normalise(x).sum())(zeros).any()
    np.testing.assert_allclose(normalise(jnp.array([3.0, 4.0])[None, None, None])[0, 0, 0], [0.6, 0.8], rtol=1e-6)
