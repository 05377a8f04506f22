"""LeCAM, augmentation, another discriminator, and times as shares of the run, in whole steps of stage 1."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax import cli, losses
from vqgan_jax.config import Loss
from vqgan_jax.train.stage1 import Stage1

pytestmark = pytest.mark.slow  # whole steps of both networks, compiled anew for each case

TINY = str(Path(__file__).with_name("tiny.py"))
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def test_lecam_pushes_back_what_went_further_than_the_other_sides_past():
    average = losses.LeCam(jnp.float32(0.5), jnp.float32(-0.2))
    loss = lambda real, fake: losses.lecam_loss(jnp.full((2, 3, 3), real), jnp.full((2, 3, 3), fake), average)
    np.testing.assert_allclose(loss(1.0, -1.0), 1.2**2 + 1.5**2, rtol=1e-6)
    np.testing.assert_allclose(loss(-0.5, -1.0), 1.5**2, rtol=1e-6)
    assert loss(-0.5, 0.6) == 0


def stage(*flags):
    """A tiny stage 1 whose adversary counts from the first step, and its start."""
    flags = ["loss.disc_start=0", "loss.disc_ramp=0", *flags]
    task = Stage1.from_config(cli.load_config(f"{TINY}:smooth", [f"--config.{flag}" for flag in flags]))
    images = jax.random.randint(jax.random.key(1), (2, 8, 16, 16, 3), 0, 256).astype(jnp.uint8)
    return task, jax.jit(task.init)(jax.random.key(0), images), {"image": images[0]}


def moves(one, other):
    """The largest difference between two states' parameters, by network."""
    largest = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one.params, other.params)
    return {name: max(jax.tree.leaves(tree)) for name, tree in largest.items()}


def test_lecam_remembers_the_means_of_the_steps_before():
    """In the first step the averages are zero; in the second they hold a share of the first one's logits."""
    task, state, batch = stage("loss.lecam_weight=0.5", "loss.lecam_decay=0.75")
    step = quick(lambda state: task.train_step(state, {}, batch, jax.random.key(2)))
    average = losses.LeCam(0.0, 0.0)
    for _ in range(3):
        state, metrics = step(state)
        real, fake = metrics["logits_real"], metrics["logits_fake"]
        expected = np.maximum(real - average.fake, 0) ** 2 + np.maximum(average.real - fake, 0) ** 2
        np.testing.assert_allclose(metrics["lecam_loss"], expected, rtol=1e-5, atol=1e-7)
        average = losses.LeCam(0.75 * average.real + 0.25 * real, 0.75 * average.fake + 0.25 * fake)
        np.testing.assert_allclose(state.stats["lecam"], average, rtol=1e-6)


def test_lecam_moves_the_discriminator_alone():
    (plain, state, batch), (held, same, _) = stage(), stage("loss.lecam_weight=10.0")
    state = state.replace(stats=state.stats | {"lecam": losses.LeCam(jnp.float32(0.3), jnp.float32(-0.3))})
    one, _ = quick(held.train_step)(state, {}, batch, jax.random.key(2))
    without = state.replace(stats={name: part for name, part in state.stats.items() if name != "lecam"})
    other, _ = quick(plain.train_step)(without, {}, batch, jax.random.key(2))
    moved = moves(one, other)
    assert moved["discriminator"] > 1e-5
    assert moved["generator"] < 1e-7, "the generator does not see it"
    assert same.stats["lecam"] == (0.0, 0.0)


@pytest.mark.parametrize(
    "flags",
    [
        ["loss.disc_augment=('color','translation','cutout')"],
        ["loss.disc_augment=('translation',)", "loss.shared_forward=False", "loss.adaptive=False"],
        ["discriminator.kind=patch_v2", "discriminator.channels=32", "discriminator.num_stages=2"],
        ["loss.disc_augment=('cutout',)", "loss.lecam_weight=0.1", "accumulate=2"],
    ],
    ids=["augmented", "augmented_published_order", "patch_v2", "in_parts"],
)
def test_a_step_moves_both_networks_and_is_finite(flags):
    task, state, batch = stage(*flags)
    new, metrics = quick(task.train_step)(state, {}, batch, jax.random.key(2))
    assert all(np.isfinite(value).all() for value in jax.tree.leaves(metrics))
    for name in ("generator", "discriminator"):
        assert any(
            np.any(a != b) for a, b in zip(*(jax.tree.leaves(s.params[name]) for s in (new, state)), strict=True)
        )


def test_times_below_1_are_shares_of_the_run():
    loss = Loss(disc_start=0.25, disc_ramp=0.1, disc_train_start=30.0)
    in_steps = loss.in_steps(2000)
    assert (in_steps.disc_start, in_steps.disc_ramp, in_steps.disc_train_start) == (500, 200, 30)
    assert dataclasses.replace(in_steps, disc_start=0.25, disc_ramp=0.1) == loss
    assert Stage1.from_config(cli.load_config(TINY, ["--config.loss.disc_start=0.5"])).loss.disc_start == 5


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(ValueError, match="must be one of color, translation, cutout; got 'rotate'"):
        Loss(disc_augment=("color", "rotate")).check()
