"""LPIPS against upstream's on the same weights: each of its five layers, their sum and the gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from reference import GRADIENTS, VALUES, error, golden, under

from vqgan_jax.convert.lpips import load_lpips
from vqgan_jax.losses import lpips_loss
from vqgan_jax.nn.perceptual import LPIPS

MODULE: Any = LPIPS()


def layers(module, x, y):
    compared = zip(module.features(x), module.features(y), module.heads, strict=True)
    return jnp.stack([lpips_loss(f - g, head) for f, g, head in compared], axis=-1)


@jax.jit
def measure(params, images, others):
    """Distances, their layers, and the gradient of the mean distance to `others`."""

    def apply(others, method=None):
        return MODULE.apply({"params": params}, images, others, method=method)

    distances, pull = jax.vjp(apply, others)
    (grad,) = pull(jnp.full_like(distances, 1 / distances.size))
    return {"lpips": distances, "layers": apply(others, layers), "grad_others": grad}


@pytest.fixture(scope="module")
def params():
    return load_lpips()


@pytest.mark.parametrize("size", ["even", pytest.param("odd", marks=pytest.mark.slow)])
def test_values_layers_and_gradients(params, size):
    recorded = under(size, golden("lpips"))
    ours = measure(params, recorded["images"], recorded["others"])
    assert error(ours["lpips"], recorded["lpips"]) < VALUES
    for layer in range(5):
        assert error(ours["layers"][:, layer], recorded["layers"][:, layer]) < VALUES
    assert error(ours["grad_others"], recorded["grad_others"]) < GRADIENTS
