"""Real trainings that were made to go wrong, each in one way: what a diagnosis says of them, and of one that is well.

The steps and the lines of metrics are the program's; there is no file and, for tokenizers, nothing held out, because
VGG16 would take most of the time.
"""

import itertools
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax import cli, losses
from vqgan_jax.report.diagnosis import History, diagnose
from vqgan_jax.train import program, stage2
from vqgan_jax.train.metrics import Window
from vqgan_jax.train.stage1 import Stage1
from vqgan_jax.train.stage2 import Stage2
from vqgan_jax.train.state import skipping
from vqgan_jax.train.watch import Goodput

pytestmark = pytest.mark.slow
PAGES = Path(__file__).parents[1] / "train"
KEY = jax.random.key(1)
TOKENIZER = {
    "steps": 90,
    "batch_size": 4,
    "model.channels": 16,
    "model.norm_groups": 8,
    "model.latent_channels": 16,
    "data.resize": (16, 16),
    "quantizer.revive_below": 0.0,
    "loss.disc_start": 45,
    "loss.disc_ramp": 0,
    "optimizer.learning_rate": 3e-3,
    "optimizer.disc_learning_rate": 1e-3,
    "log.metrics_every": 3,
}
PRIOR = {"steps": 60, "loss.keep": 1.0, "optimizer.learning_rate": 3e-3, "log.metrics_every": 5}
PLAIN_CODES = {"quantizer.unit_length": False, "quantizer.kmeans_batches": 0, "quantizer.codebook_size": 192}


def settings(page, base, **changes):
    keys = base | {name.replace("__", "."): value for name, value in changes.items()}
    return cli.load_config(str(PAGES / page), [f"--config.{name}={value}" for name, value in keys.items()])


def lines(config, state, step, batches, held_out=None):
    """Trains, and returns what a run would have written."""
    window, found = Window(), []
    with Goodput() as goodput:
        for number in range(1, config.steps + 1):
            with goodput.section("data"):
                batch = next(batches)
            with goodput.section("steps"):
                state, metrics = step(state, {}, batch, KEY)
                metrics = jax.device_get(metrics)
            window.add({name: np.asarray(value) for name, value in metrics.items()})
            if number % config.log.metrics_every == 0:
                values = goodput.take(window.steps) | window.take(config.batch_size)
                found.append({"step": number} | {f"train/{name}": value for name, value in values.items()})
                if held_out is not None:
                    found.append({"step": number} | {f"eval/{k}": v for k, v in held_out(state).items()})
    return found


def tokenizer(**changes):
    """The findings of a tokenizer's training."""
    config = settings("tiny.py", TOKENIZER, **changes)
    stage, source = Stage1.from_config(config), program.open_split(config, "train")
    batches = ({"image": batch["image"]} for batch in program.training_batches(config, source))
    images = jnp.stack([next(batches)["image"] for _ in range(stage.start_batches)])
    state = jax.jit(stage.init)(jax.random.key(0), images)
    step = jax.jit(stage.train_step, donate_argnums=0)
    return diagnose(History.of(config, lines(config, state, step, batches)))


def prior(make_batches, *, held_out=False, **changes):
    """The findings of a prior's training on codes; `make_batches` takes their shape."""
    config = settings("tiny_prior.py:unconditional", PRIOR, **changes)
    stage = Stage2.from_config(config)
    state, step = jax.jit(stage.init)(jax.random.key(0)), jax.jit(skipping(stage.train_step), donate_argnums=0)
    shape = stage.batch_shapes(config)["tokens"].shape

    @jax.jit
    def sums(params, tokens):
        return stage.evaluate(params, {}, {"tokens": tokens}, jnp.ones(shape[0], bool))

    def measure(state):
        return stage.figures(jax.device_get(sums(state.params["transformer"], codes(0, shape))))

    return diagnose(History.of(config, lines(config, state, step, make_batches(shape), measure if held_out else None)))


def codes(seed, shape):
    """Codes with a rule: each is the one before, or the next one."""
    steps = np.random.default_rng(seed).integers(0, 2, shape)
    return ((np.cumsum(steps, axis=1) + steps[:, :1]) % 32).astype(np.int32)


def many(shape):
    return ({"tokens": codes(seed, shape)} for seed in itertools.count(1))


def eight(shape):
    return itertools.repeat({"tokens": codes(1, shape)})


def late(shape):
    """Batches that come from far away."""
    for batch in many(shape):
        time.sleep(0.1)
        yield batch


def test_a_tokenizer_that_is_well():
    assert not tokenizer()


def test_a_heavy_adversary_breaks_the_reconstructions():
    found = tokenizer(loss__adaptive=False, loss__disc_weight=30.0)
    assert list(found) == ["divergence after disc_start"]


def test_a_pixel_loss_that_is_a_sum_takes_the_adaptive_weight_to_its_bound():
    """Of 256 x 256 x 3 values, where the losses here are means."""
    found = tokenizer(loss__pixel_weight=256.0 * 256 * 3)
    assert list(found) == ["adaptive weight at its bound"], found


def test_a_discriminator_that_does_not_learn_sleeps_and_plain_codes_die():
    found = tokenizer(optimizer__disc_learning_rate=1e-8, **{k.replace(".", "__"): v for k, v in PLAIN_CODES.items()})
    assert {"dead codes", "adversary asleep"} == set(found)


def test_a_generator_that_does_not_learn_is_beaten():
    found = tokenizer(optimizer__learning_rate=1e-8)
    assert {"adversary too strong", "learning rate too low"} == set(found)


def test_a_tokenizer_whose_steps_are_too_large():
    """Its codes die, too."""
    assert {"learning rate too high", "dead codes"} == set(tokenizer(optimizer__learning_rate=10.0))


def test_a_prior_that_is_well():
    assert not prior(many, held_out=True)


@pytest.mark.parametrize(("rate", "name"), [(1e-8, "learning rate too low"), (10.0, "learning rate too high")])
def test_a_prior_whose_steps_are_too_small_or_too_large(rate, name):
    assert list(prior(many, optimizer__learning_rate=rate)) == [name]


def test_a_prior_learns_eight_images_by_heart():
    found = prior(eight, held_out=True, steps=120)
    assert list(found) == ["over-fitting"]


def test_data_that_come_late():
    assert list(prior(late, steps=30)) == ["starved input"]


def test_a_step_that_is_not_finite(monkeypatch):
    """The loss of one batch, whose codes are all 7, is not a number."""

    def poisoned(logits, tokens, smoothing):
        bad = jnp.all(tokens == 7, axis=-1, keepdims=True)
        return losses.cross_entropy(logits, tokens, smoothing) * jnp.where(bad, jnp.nan, 1.0)

    def batches(shape):
        for number, batch in enumerate(many(shape)):
            yield {"tokens": np.full(shape, 7, np.int32)} if number == 12 else batch

    monkeypatch.setattr(stage2, "losses", types.SimpleNamespace(cross_entropy=poisoned))
    found = prior(batches)
    assert list(found) == ["steps that are not finite"]
    assert "1 steps were skipped, the first of them before step 15" in found["steps that are not finite"].reading
