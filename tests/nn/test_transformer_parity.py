"""The transformer against upstream's GPT, with its weights: logits, loss and gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import GPT, GRADIENTS, VALUES, error, golden, gpt_params, under

from vqgan_jax.losses import cross_entropy

# Upstream allows more bidirectional positions than the condition has: two codes see each other.
MODULES: Any = {"causal": GPT, "unmasked": GPT.clone(bidirectional_prefix=6)}


@pytest.fixture(scope="module")
def recorded():
    return golden("gpt", stage=2)


@pytest.fixture(scope="module")
def params(recorded):
    """Upstream's weights, in exactly the paths and shapes of ours."""
    params = gpt_params(under("state", recorded))
    like: Any = jax.eval_shape(GPT.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 40), jnp.int32))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, like["params"])
    return params


@pytest.fixture(scope="module", params=MODULES)
def case(request, recorded, params):
    """Upstream's logits and loss; ours, and our gradients."""
    module, tokens = MODULES[request.param], jnp.concatenate([recorded["c"], recorded["z"]], axis=1)
    start = recorded["c"].shape[1]

    def loss(params):
        """Of the codes, the first of them predicted from the condition alone."""
        logits = module.apply({"params": params}, tokens[:, :-1])
        return cross_entropy(logits[:, start - 1 :], tokens[:, start:]).mean()

    everything = jax.jit(lambda p: (module.apply({"params": p}, tokens), *jax.value_and_grad(loss)(p)))
    theirs = recorded if request.param == "causal" else under("unmasked", recorded)
    return theirs, *everything(params)


def test_logits(case):
    recorded, logits, _, _ = case
    assert error(logits[: len(recorded["logits"])], recorded["logits"]) < VALUES


def test_loss(case):
    recorded, _, loss, _ = case
    assert error(loss, recorded["loss"]) < VALUES


@pytest.mark.parametrize("case", ["causal"], indirect=True)
def test_gradient_to_every_parameter(case):
    recorded, _, _, grads = case
    errors = jax.tree.map(error, grads, gpt_params(under("grad", recorded)))
    assert max(jax.tree.leaves(errors)) < GRADIENTS, errors


def test_softmax_cancels_the_bias_of_keys(case):
    """Its gradient is rounding noise, there and here: nothing can be held against where AdamW takes it."""
    queries, keys, values = np.abs(np.moveaxis(case[-1]["layers"]["qkv"]["bias"], 1, 0)).max((1, 2, 3))
    assert keys < 1e-5 * min(queries, values)
