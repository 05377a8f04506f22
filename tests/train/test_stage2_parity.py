"""Ten whole AdamW steps against upstream's, from the same weights on the same codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import PRIOR, error, golden, gpt_params, under

from vqgan_jax.config.sections import Optimizer, TokenLoss
from vqgan_jax.train.stage2 import Stage2
from vqgan_jax.train.state import TrainState, make_optimizer

EACH_STEP = 1e-5  # of the loss; upstream in float64 is 2e-7 away from itself in float32
MOVEMENT = 1e-3  # of the way that an array went in ten steps; there upstream is 2e-4 away from itself


OPTIMIZER = Optimizer(
    learning_rate=1e-3,
    b1=0.9,
    b2=0.95,
    weight_decay=0.01,
    clip_norm=0.0,
    schedule="constant",
    warmup_steps=0,
    final_fraction=1.0,
    ema_decay=0.0,
    nonfinite="stop",
)
TASK = Stage2(
    prior=PRIOR,
    tokenizer=None,
    optimizer=make_optimizer(OPTIMIZER, OPTIMIZER.learning_rate, 10),
    loss=TokenLoss(keep=1.0, label_smoothing=0.0),
    drop=0.0,
    ema_decay=0.0,
    accumulate=1,
)


@pytest.fixture(scope="module")
def recorded():
    return golden("ten_steps", stage=2)


@pytest.fixture(scope="module")
def params():
    return gpt_params(under("state", golden("gpt", stage=2)))


@pytest.fixture(scope="module")
def ten_steps(recorded, params):
    """Our losses, and the way of every parameter."""
    opt_state = {"transformer": TASK.optimizer.init(params)}
    state = TrainState(jnp.zeros((), jnp.int32), {"transformer": params}, opt_state, {}, {})
    step = jax.jit(TASK.train_step)
    losses = []
    for tokens in jnp.concatenate([recorded["c"], recorded["z"]], axis=-1):
        state, metrics = step(state, {}, {"tokens": tokens}, jax.random.key(0))
        losses.append(metrics["loss"])
    return np.stack(losses), jax.tree.map(jnp.subtract, state.params["transformer"], params)


def test_the_loss_at_every_step(recorded, ten_steps):
    np.testing.assert_allclose(ten_steps[0], recorded["losses"], rtol=EACH_STEP)


def test_every_parameter_went_the_same_way(recorded, ten_steps):
    ours, theirs = ten_steps[1], gpt_params(under("way", recorded))
    for way in (ours, theirs):  # AdamW takes full steps of the rounding noise that the bias of keys has for a gradient
        qkv = way["layers"]["qkv"]
        qkv["bias"] = qkv["bias"][:, jnp.array([0, 2])]
    errors = jax.tree.map(error, ours, theirs)
    assert max(jax.tree.leaves(errors)) < MOVEMENT, errors


def test_weight_decay_of_the_same_parameters(recorded, params):
    """Without a gradient the decay is all that moves: it is too small to show beside ten steps of Adam."""
    ways = under("way", recorded).items()
    decay = gpt_params({name: np.full_like(way, d) for (name, way), d in zip(ways, recorded["decay"], strict=True)})
    at_rest = jax.jit(lambda p: TASK.optimizer.update(jax.tree.map(jnp.zeros_like, p), TASK.optimizer.init(p), p)[0])
    expected = jax.tree.map(lambda d, p: -OPTIMIZER.learning_rate * d * p, decay, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), at_rest(params), expected)
