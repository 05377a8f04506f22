"""Muon for the kernels of a transformer's layers, Adam for all else."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from vqgan_jax import cli
from vqgan_jax.config import Optimizer
from vqgan_jax.nn.transformer import Transformer
from vqgan_jax.train import sharding
from vqgan_jax.train.state import kinds_of_leaves, make_optimizer

MODULE = Transformer(2, 16, 2, max_len=12, vocab_size=24, mlp="swiglu", positions="learned", dtype=jnp.float32)
PLAIN = Optimizer(warmup_steps=0, schedule="constant", weight_decay=0.0, clip_norm=0.0)
MUON = dataclasses.replace(PLAIN, matrices="muon")


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODULE.init)(jax.random.key(0), jnp.zeros((1, 12), jnp.int32))["params"]


@pytest.fixture(scope="module")
def grads(params):
    tokens = jax.random.randint(jax.random.key(1), (4, 12), 0, 24)
    loss = lambda params: jnp.mean(jnp.square(MODULE.apply({"params": params}, tokens) - 1.0))
    return jax.jit(jax.grad(loss))(params)


def step(config, params, grads):
    optimizer = make_optimizer(config, 1.0, 10)
    updates, state = jax.jit(lambda g: optimizer.update(g, optimizer.init(params), params))(grads)
    return updates, state


def matrices(updates):
    """Every matrix of the layers, as inputs x outputs."""
    layers = updates["layers"]
    for layer in range(2):
        for part in range(3):
            yield layers["qkv"]["kernel"][layer, :, part].reshape(16, 16)
        yield layers["proj"]["kernel"][layer].reshape(16, 16)
        for name in ("up", "gate", "down"):
            yield layers[name]["kernel"][layer]


def test_each_matrix_moves_in_all_directions_alike(params, grads):
    """Singular values lie about one value: 0.2 sqrt(larger side). Muon's iteration leaves them in 0.5 to 1.5 of it.

    But for the least of sixteen, which in a gradient may be next to nothing.
    """
    spread = lambda updates: np.stack([np.linalg.svd(update, compute_uv=False)[:15] for update in matrices(updates)])
    updates, _ = step(MUON, params, grads)
    longest = np.array([[0.2 * max(update.shape) ** 0.5] for update in matrices(updates)])
    values, before = spread(updates) / longest, spread(grads)
    assert 0.4 < values.min() <= values.max() < 1.6
    assert (before.max(1) / before.min(1)).max() > 20, "which the gradient's do not"


def test_each_matrix_moves_by_itself(params, grads):
    """Ten times the gradient of one layer's keys changes no update but, by the scale, nothing at all."""
    larger = jax.tree.map(jnp.copy, grads)
    larger["layers"]["qkv"]["kernel"] = larger["layers"]["qkv"]["kernel"].at[1, :, 1].multiply(10.0)
    one, other = (step(MUON, params, g)[0] for g in (grads, larger))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one, other)


def test_what_is_no_matrix_of_a_layer_moves_as_by_adam(params, grads):
    one, other = (step(config, params, grads)[0] for config in (PLAIN, MUON))
    kinds = kinds_of_leaves(params)
    same = jax.tree.map(lambda kind, a, b: (kind == "muon") or bool(np.all(a == b)), kinds, one, other)
    assert all(jax.tree.leaves(same))
    found = [sharding.path_name(path) for path, kind in jax.tree_util.tree_leaves_with_path(kinds) if kind == "muon"]
    assert sorted(found) == [f"layers/{name}/kernel" for name in ("down", "gate", "proj", "qkv", "up")]


def test_a_modulation_by_the_class_moves_by_adam():
    shapes = jax.eval_shape(MODULE.clone(adaln=True).init, jax.random.key(0), jnp.zeros((1, 12), jnp.int32))["params"]
    assert kinds_of_leaves(shapes)["layers"]["modulation"]["kernel"] == "adam"


def test_updates_are_as_long_as_adams_mostly_are(params, grads):
    updates, _ = step(MUON, params, grads)
    rms = [float(jnp.sqrt(jnp.mean(jnp.square(update)))) for update in matrices(updates)]
    assert 0.1 < min(rms) <= max(rms) < 0.3


def test_a_sharded_step_equals_one_device(params, grads):
    mesh = jax.make_mesh((2, 2, 2), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    optimizer = make_optimizer(MUON, 1.0, 10)
    alone, _ = step(MUON, params, grads)
    state = optimizer.init(params)
    places = [sharding.shardings({"params": {"transformer": params}}, mesh)["params"]["transformer"]]
    places += [sharding.shardings({"opt_state": {"transformer": state}}, mesh)["opt_state"]["transformer"]]
    assert len(places[0]["layers"]["qkv"]["kernel"].device_set) == 8
    spread = jax.device_put(grads, places[0]), jax.device_put(state, places[1])
    together, _ = jax.jit(lambda g, s: optimizer.update(g, s, params), out_shardings=tuple(places))(*spread)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), together, alone)


def test_an_unknown_optimiser_is_refused():
    with pytest.raises(ValueError, match="must be one of adam, muon; got 'sgd'"):
        dataclasses.replace(PLAIN, matrices="sgd").check()


@pytest.mark.parametrize(
    ("page", "why"),
    [("tiny.py", "a tokenizer has none"), ("tiny_prior.py:pixelsnail,raster", "PixelSNAIL.* has none")],
)
def test_where_there_are_no_layers_it_would_move_nothing(page, why):
    with pytest.raises(ValueError, match=f"'muon' moves the kernels of a transformer's layers.*{why}"):
        cli.load_config(str(Path(__file__).parent / page), ["--config.optimizer.matrices=muon"])
