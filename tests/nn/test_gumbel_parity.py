"""The Gumbel quantizer against upstream's, with its weights and the noise that it drew."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import GRADIENTS, VALUES, error, golden, pairs, translate, tree, under

from vqgan_jax.nn.quantizer import GumbelQuantizer

MODULE: Any = GumbelQuantizer(codebook_size=16, embed_dim=8)


@pytest.fixture(scope="module")
def recorded():
    return golden("gumbel")


@pytest.fixture(scope="module")
def params(recorded):
    like = jax.eval_shape(MODULE.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 6, 5, 8), jnp.float32))
    return tree(translate(under("state", recorded)), "generator", {"quantizer": like["params"]})["quantizer"]


@pytest.fixture
def sample(recorded, monkeypatch, getkey):
    """The quantizer in training, with upstream's noise."""
    monkeypatch.setattr(jax.random, "gumbel", lambda _, shape: recorded["gumbel_noise"].reshape(shape))
    temperature = float(recorded["temperature"])
    module = MODULE.clone(temperature=(temperature, temperature, 1), kl_weight=float(recorded["kl_weight"]))
    return lambda params, latents: module.apply({"params": params}, latents, train=True, rngs={"gumbel": getkey()})


def test_hard_choice_with_the_recorded_noise(recorded, params, sample):
    out = sample(params, jnp.asarray(recorded["latents"]))
    np.testing.assert_array_equal(out.indices, recorded["hard/indices"])
    assert error(out.quantized, recorded["hard/quantized"]) < VALUES
    assert error(out.loss, recorded["kl_loss"]) < VALUES


@pytest.mark.parametrize("case", ["hard", "kl"])
def test_gradients(recorded, params, sample, case):
    """Of the straight-through choice with the KL, and of the KL alone."""

    def functional(params, latents):
        out = sample(params, latents)
        chosen = jnp.mean(out.quantized * recorded["cotangent"]) if case == "hard" else 0.0
        return chosen + out.loss

    grads, grad_latents = jax.grad(functional, (0, 1))(params, jnp.asarray(recorded["latents"]))
    assert error(grad_latents, recorded[f"{case}/grad_latents"]) < GRADIENTS
    for ours, theirs in pairs({"quantizer": grads}, under(f"{case}/grad", recorded)):
        assert error(ours, theirs) < GRADIENTS


def test_evaluation_takes_the_likeliest_code_without_noise(recorded, params):
    out = MODULE.apply({"params": params}, jnp.asarray(recorded["latents"]))
    np.testing.assert_array_equal(out.indices, recorded["clean_indices"])
    assert error(out.quantized, recorded["clean_quantized"]) < VALUES
    codes = MODULE.apply({"params": params}, jnp.asarray(recorded["clean_indices"]), method="lookup")
    np.testing.assert_array_equal(codes, recorded["clean_quantized"])
