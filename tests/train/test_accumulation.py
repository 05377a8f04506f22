"""A batch in parts: the same rows, losses and gradients as the whole one, and no row leaves its device."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax import cli
from vqgan_jax.plan import hlo, lowering
from vqgan_jax.train import sharding
from vqgan_jax.train.program import open_program
from vqgan_jax.train.stage1 import Stage1
from vqgan_jax.train.stage2 import Stage2
from vqgan_jax.train.state import in_parts

TINY, PRIOR = (str(Path(__file__).with_name(name)) for name in ("tiny.py", "tiny_prior.py"))
SMALL = [  # 8 x 8 codes of 16 pixels, one level
    "--config.model.channels=32", "--config.model.latent_channels=32", "--config.model.channel_multipliers=(1,)",
    "--config.model.num_res_blocks=0", "--config.data.image_size=8", "--config.data.resize=(8,8)",
    "--config.discriminator.num_layers=1", "--config.discriminator.channels=8", "--config.loss.disc_start=0",
    "--config.loss.disc_ramp=0", "--config.optimizer.ema_decay=0.0", "--config.optimizer.clip_norm=0.0",
]  # fmt: skip
INDEPENDENT = ["--config.discriminator.norm=act", "--config.loss.adaptive=False"]
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KEY = jax.random.key(1)


def test_parts_go_round_the_rows_and_come_back_in_order():
    """Of three parts of nine rows each has every third; a device's three rows are one of each part."""

    def part(carry, batch, keys):
        return carry * 10 + batch["x"][0], {"mean": batch["x"].mean(), "draw": jax.random.uniform(keys[0])}, batch["x"]

    carry, means, rows = in_parts(3, part, jnp.zeros(()), {"x": jnp.arange(9.0)}, KEY[None])
    assert carry == 12  # 0, 1, 2 were the first rows
    np.testing.assert_array_equal(rows, np.arange(9.0))
    assert means["mean"] == pytest.approx(4.0)
    draws = [float(jax.random.uniform(jax.random.fold_in(KEY, i))) for i in range(3)]
    assert len(set(draws)) == 3
    assert float(means["draw"]) == pytest.approx(np.mean(draws))


def assert_near(one, other, tolerance):
    """Norm of the difference over the norm, network by network: single numbers near zero are noise."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (one, other))
    assert np.linalg.norm(a) > 0
    assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(a)


def moments(opt_state):
    """After one step from zero: the gradients, scaled, and their squares."""
    return [(part.mu, part.nu) for part in opt_state if hasattr(part, "mu")]


@pytest.mark.parametrize("count", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_a_prior_learns_from_parts_what_it_learns_from_the_whole(count):
    whole, cut = (
        Stage2.from_config(cli.load_config(f"{PRIOR}:plain", [f"--config.accumulate={parts}"])) for parts in (1, count)
    )
    state = jax.jit(whole.init)(jax.random.key(0))
    batch = {"tokens": jax.random.randint(KEY, (8, 65), 0, 11)}
    steps = [quick(task.train_step)(state, {}, batch, KEY) for task in (whole, cut)]
    (one, metrics), (other, in_metrics) = steps
    assert_near(moments(one.opt_state["transformer"]), moments(other.opt_state["transformer"]), 1e-5)
    for name in ("loss", "accuracy", "grad_norm"):
        assert float(in_metrics[name]) == pytest.approx(float(metrics[name]), rel=1e-5)


@functools.cache
def tokenizer_step(count: int, *flags: str):
    """One step of a tokenizer, its codebook revived, in so many parts of eight images."""
    config = cli.load_config(f"{TINY}:smooth", [*SMALL, *flags, f"--config.accumulate={count}"])
    task = Stage1.from_config(config)
    images = jax.random.randint(KEY, (1, 8, 8, 8, 3), 0, 256).astype(jnp.uint8)
    state = quick(task.init)(jax.random.key(0), images)
    return jax.device_get(quick(task.train_step)(state, {}, {"image": images[0]}, KEY))


@pytest.mark.slow
@pytest.mark.parametrize("order", ["True", "False"])
def test_where_no_image_sees_another_a_tokenizer_learns_the_same_from_parts(order):
    flags = (*INDEPENDENT, f"--config.loss.shared_forward={order}")
    (one, metrics), (other, in_metrics) = (tokenizer_step(count, *flags) for count in (1, 4))
    for name in ("generator", "discriminator"):
        assert_near(moments(one.opt_state[name]), moments(other.opt_state[name]), 1e-5)
    np.testing.assert_array_equal(metrics.pop("code_hits"), in_metrics["code_hits"])
    for name, value in metrics.items():
        assert float(in_metrics[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-7), name
    assert_near(one.params["generator"]["quantizer"], other.params["generator"]["quantizer"], 1e-5)
    np.testing.assert_allclose(one.stats["codebook"].hits, other.stats["codebook"].hits, rtol=1e-6)


@pytest.mark.slow
def test_batch_norm_and_adaptive_weight_are_of_each_part_and_its_statistics_go_on():
    """Four parts move the running statistics eight times, fake and real, where the whole batch moves them twice."""
    (one, metrics), (other, in_metrics) = (tokenizer_step(count) for count in (1, 4))
    means = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(s.stats["discriminator"])]) for s in (one, other)]
    start = np.concatenate([np.ravel(x) for x in jax.tree.leaves(tokenizer_start())])
    moved = [np.linalg.norm(mean - start) for mean in means]
    assert 1.5 * moved[0] < moved[1]
    assert in_metrics["adaptive_weight"] != metrics["adaptive_weight"]
    assert in_metrics["rec_loss"] == pytest.approx(metrics["rec_loss"], rel=1e-5)
    np.testing.assert_array_equal(metrics["code_hits"], in_metrics["code_hits"])


def tokenizer_start():
    """BatchNorm's statistics before any step: means of 0 and variances of 1."""
    stats = tokenizer_step(1)[0].stats["discriminator"]
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.full_like(leaf, float(sharding.path_name(path).endswith("var"))), stats
    )


@pytest.mark.parametrize("page", [f"{PRIOR}:plain", pytest.param(TINY, marks=pytest.mark.slow)])
def test_no_row_of_the_batch_leaves_its_device(page):
    """Along `data` the compiled step of four parts sums, once a part, and moves nothing else."""
    mesh, sent = sharding.make_mesh(8, 1, 1), {}
    for count in (1, 4):
        flags = ["--config.batch_size=32", f"--config.accumulate={count}"]
        function, arguments = lowering.call(cli.load_config(page, flags), mesh, "step")
        program = hlo.read(function.lower(*arguments).compile().as_text())
        collectives = program.collectives(dict(mesh.shape))
        assert {kind: list(axes) for kind, axes in collectives.items()} == {"all-reduce": ["data"]}
        sent[count] = collectives["all-reduce"]["data"]
    assert sent[4] == pytest.approx(4 * sent[1], rel=0.02)


def test_parts_that_do_not_divide_the_rows_of_a_device_are_an_error():
    mesh = sharding.make_mesh(2, 4, 1)
    sharding.check_batch(48, mesh, 3)
    with pytest.raises(ValueError, match=r"8 devices .* times the 3 of config.accumulate; got 32\. Set it to 48"):
        sharding.check_batch(32, mesh, 3)
    config = dataclasses.replace(cli.load_config(PRIOR), accumulate=3)
    with pytest.raises(ValueError, match=r"times the 3 of config\.accumulate; got 8"):
        open_program(config, mesh)
    with pytest.raises(ValueError, match=r"`config.accumulate` must be at least 1, .* got 0"):
        cli.load_config(PRIOR, ["--config.accumulate=0"])
