"""The semantic loss: its gradient by brute force, its place in the step and in the state, and what refuses it."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import untrained
from jax.sharding import AbstractMesh, AxisType

from vqgan_jax import cli, models
from vqgan_jax.convert import write
from vqgan_jax.convert.lpips import load_lpips
from vqgan_jax.convert.read import open_checkpoint
from vqgan_jax.nn.perceptual import VGG16, SemanticDistance, imagenet
from vqgan_jax.train import sharding
from vqgan_jax.train.stage1 import Stage1

TINY = str(Path(__file__).with_name("tiny.py"))
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
F8 = ["model.channel_multipliers=(1,1,1,1)", "optimizer.learning_rate=1e-2", "loss.disc_weight=0.0"]
KEY = jax.random.key(2)
DINOV2 = "dinov2_vits14"


def page(*flags):
    """An f8 tokenizer: each of its codes stands where four of VGG16's features are."""
    return cli.load_config(f"{TINY}:smooth", [f"--config.{flag}" for flag in (*F8, *flags)])


@pytest.fixture(scope="module")
def frozen():
    return {"lpips": load_lpips()}


@pytest.fixture(scope="module")
def start():
    """A stage with the semantic loss, its first state, and a batch."""
    task = Stage1.from_config(page("loss.semantic_weight=2.0"))
    images = jax.random.randint(jax.random.key(1), (2, 8, 16, 16, 3), 0, 256).astype(jnp.uint8)
    return task, quick(task.init)(jax.random.key(0), images), {"image": images[0]}


@pytest.mark.slow
def test_gradients_are_those_of_the_whole_loss_by_brute_force(start, frozen):
    task, state, batch = start
    x = task.inputs(batch["image"])

    def whole(params, frozen):
        """Written out: the features of the four pixels are added up, and the cosine is a quotient."""
        rngs = dict(zip(("dropout", "gumbel"), jax.random.split(KEY), strict=True))
        recon, quantized = task.model.apply({"params": params["generator"]}, x, train=True, step=0, rngs=rngs)
        projection = params["semantic"]["projection"]
        kernel, bias = projection["kernel"][0, 0], projection["bias"]
        p = jnp.einsum("bhwd,dc->bhwc", quantized.quantized, kernel) + bias[None, None, None]
        features: Any = VGG16().apply({"params": frozen["lpips"]["vgg"]}, imagenet(x))
        f = features[2].reshape(8, 2, 2, 2, 2, 256).sum((2, 4))
        cosine = (p * f).sum(-1) / jnp.sqrt((p * p).sum(-1) * (f * f).sum(-1))
        return jnp.square(x - recon).mean() + quantized.loss + 2.0 * (1 - cosine).mean(), 1 - cosine.mean()

    (total, semantic), expected = quick(jax.value_and_grad(whole, has_aux=True))(dict(state.params), frozen)
    keys = jnp.stack([KEY, KEY])
    _, (grads, metrics), _ = quick(lambda *args: task.gradients(*args, keys))(state, frozen, {}, batch["image"])
    np.testing.assert_allclose(metrics["semantic_loss"], semantic, rtol=1e-5)
    np.testing.assert_allclose(metrics["total_loss"], total, rtol=1e-5)
    assert grads.keys() == {"generator", "semantic"}
    for name, tree in grads.items():
        for ours, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(expected[name]), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max() + 1e-7)
    assert np.abs(grads["semantic"]["projection"]["kernel"]).max() > 1e-4


@pytest.mark.slow
def test_steps_train_encoder_and_projection_until_codes_mean_what_is_seen(start, frozen):
    task, state, batch = start
    step = quick(task.train_step)
    first, values = state, []
    for _ in range(5):
        state, metrics = step(state, frozen, batch, KEY)
        values.append(float(metrics["semantic_loss"]))
    assert values[-1] < values[0] - 0.05
    assert np.isfinite(metrics["grad_norm"])
    moved = lambda tree, old: max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), tree, old)))
    for name in ("generator", "semantic"):
        assert moved(state.params[name], first.params[name]) > 1e-4
    assert state.ema.keys() == {"generator"}


@pytest.mark.parametrize(
    ("network", "width", "read"), [("vgg16", 256, set()), pytest.param(DINOV2, 384, {DINOV2}, marks=pytest.mark.slow)]
)
def test_the_projection_has_a_place_on_a_mesh_and_none_without_a_weight(network, width, read):
    mesh = AbstractMesh((1, 8, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
    config, plain = (page(f"loss.semantic={network}", f"loss.semantic_weight={weight}") for weight in (0.1, 0.0))
    state = models.state_shapes(config)
    where = sharding.shardings(state, mesh, zero1=True)
    assert where.params["semantic"]["projection"]["kernel"].shard_shape((1, 1, 8, width)) == (1, 1, 8, width // 8)
    assert state.params.keys() == state.opt_state.keys() == {"generator", "semantic"}
    assert Stage1.from_config(config).frozen_shapes().keys() == {"lpips"} | read
    state = models.state_shapes(plain)
    assert state.params.keys() == state.opt_state.keys() == {"generator"}
    assert Stage1.from_config(plain).frozen_shapes().keys() == {"lpips"}


@pytest.mark.slow
def test_a_step_reads_dinov2_and_trains_a_projection_of_its_width():
    config = page(f"loss.semantic={DINOV2}", "loss.semantic_weight=0.1")
    task, state = Stage1.from_config(config), models.state_shapes(config)
    key = jax.eval_shape(lambda: jax.random.key(0))
    frozen = {DINOV2: task.frozen_shapes()[DINOV2]}
    after, metrics = jax.eval_shape(task.train_step, state, frozen, task.batch_shapes(config), key)
    assert jax.tree.leaves(after) == jax.tree.leaves(state)
    assert metrics["semantic_loss"].shape == ()


@pytest.mark.slow
def test_a_tokenizer_has_no_projection_and_a_run_keeps_it(tmp_path):
    run = untrained.save_tokenizer(tmp_path / "run", flags=["--config.loss.semantic_weight=0.1"])
    plain = models.state_shapes(cli.load_config(TINY)).params["generator"]
    assert jax.tree.structure(models.load_tokenizer(run).params) == jax.tree.structure(plain)
    written = write.read_run(run)
    write.write_file(written, "taming", tmp_path / "taming.safetensors")
    assert not [name for name in open_checkpoint(tmp_path / "taming.safetensors").tensors if "projection" in name]
    write.write_file(written, "safetensors", tmp_path / "ours.safetensors")
    write.write_run(write.plan(open_checkpoint(tmp_path / "ours.safetensors")), tmp_path / "again")
    again = write.read_run(tmp_path / "again").networks["semantic"]
    jax.tree.map(np.testing.assert_array_equal, again, written.networks["semantic"])


def test_finer_codes_label_maps_and_unknown_networks_are_refused(frozen):
    codes, x = jnp.ones((1, 8, 8, 4)), jnp.zeros((1, 16, 16, 3))
    with pytest.raises(ValueError, match=r"divides 4 x 4, that of VGG16's relu3_3; got 8 x 8\."):
        SemanticDistance().init(jax.random.key(0), codes, x, frozen)
    with pytest.raises(ValueError, match=r"semantic_weight and disc_weight to 0; got \(0\.0, 0\.1, 0\.0\)"):
        cli.load_config(f"{TINY}:segmentation", ["--config.loss.semantic_weight=0.1"])
    with pytest.raises(ValueError, match=r"loss\.semantic` must be one of vgg16, dinov2_vits14; got 'clip'"):
        page("loss.semantic=clip")
