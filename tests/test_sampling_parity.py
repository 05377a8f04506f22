"""Filters and greedy decoding against upstream's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import PRIOR, golden, gpt_params, under

from vqgan_jax import sampling
from vqgan_jax.prior import sample

PROBABILITIES = 1e-6


@pytest.fixture(scope="module")
def filters():
    return under("filters", golden("sampling", stage=2))


def assert_same_distribution(logits, probs):
    """Exactly the same tokens can be drawn, and as often."""
    ours = jax.nn.softmax(logits, axis=-1)
    np.testing.assert_array_equal(ours > 0, probs > 0)
    np.testing.assert_allclose(ours, probs, atol=PROBABILITIES, rtol=0)


def test_the_distribution_to_draw_from(filters):
    """Temperature, top-k and top-p, alone and together; upstream clamps k to the vocabulary, ours asks for that."""
    logits = jnp.asarray(filters["logits"])
    for (temperature, top_k, top_p), probs in zip(filters["draws"].tolist(), filters["probs"], strict=True):
        settings = sampling.Settings(
            temperature=temperature,
            top_k=min(int(top_k), logits.shape[1]) or None,
            top_p=None if top_p == 1.0 else top_p,
        )
        sampling.check(settings, logits.shape[1])
        assert_same_distribution(sampling.filtered(logits, settings), probs)


def test_top_k_keeps_ties(filters):
    """As `top_k_logits` does."""
    logits = jnp.asarray(filters["logits"])
    kept = (filters["top_k_probs"] > 0).sum(-1)
    assert (kept > filters["top_k"][:, None]).any()  # there are ties to keep
    for k, probs in zip(filters["top_k"].tolist(), filters["top_k_probs"], strict=True):
        assert_same_distribution(sampling.keep_top_k(logits, k), probs)


@pytest.mark.parametrize("k", [1, 2, 7, 49, 50])
def test_the_kth_largest_is_that_of_a_sort(k):
    rows = 100.0 * np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32)
    rows[1] = np.round(rows[1] / 50)  # ties
    rows[2] = -np.abs(rows[2])
    rows[3, :45] = -np.inf
    rows[4, 3] = np.inf
    rows[5] = [0.0, -0.0] * 25
    np.testing.assert_array_equal(sampling.kth_largest(jnp.asarray(rows), k)[:, 0], np.sort(rows)[:, -k])


def test_greedy_token_for_token():
    """By the cache here and there; upstream's tokens are the same without one."""
    recorded = under("greedy", golden("sampling", stage=2))
    params = gpt_params(under("state", golden("gpt", stage=2)))
    prompt = jnp.zeros((len(recorded["tokens"]), *PRIOR.grid), int)
    keys = jax.random.split(jax.random.key(0), len(prompt))
    greedy = lambda params, c: sample(PRIOR, params, c, keys, sampling.Settings(greedy=True), prompt, prompt > 0)
    grids = jax.jit(greedy)(params, jnp.asarray(recorded["c"]))
    np.testing.assert_array_equal(grids.reshape(len(prompt), -1), recorded["tokens"])
