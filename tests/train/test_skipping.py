"""Steps that are not finite: stopped at, or skipped without a trace in the state."""

import functools
import io
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from vqgan_jax import cli
from vqgan_jax.train import loop, program, sharding, stage2
from vqgan_jax.train.checkpoint import Checkpoints
from vqgan_jax.train.metrics import Window, Writer
from vqgan_jax.train.stage1 import Stage1
from vqgan_jax.train.stage2 import Stage2
from vqgan_jax.train.state import TrainState, skipping
from vqgan_jax.train.watch import Goodput

TINY, PRIOR = (str(Path(__file__).with_name(name)) for name in ("tiny.py", "tiny_prior.py"))
KEY = jax.random.key(1)
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def same(tree, other) -> bool:
    """Bit for bit."""
    equal = jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), tree, other)
    return all(jax.tree.leaves(equal))


def check_skipped(before: TrainState, after: TrainState, metrics) -> None:
    assert metrics["skipped"] == 1
    assert int(after.step) == int(before.step) + 1, "the step, which is the data's place, goes on"
    assert same(after.replace(step=before.step), before)


def check_taken(before: TrainState, after: TrainState, metrics) -> None:
    assert metrics["skipped"] == 0
    assert all(np.isfinite(value).all() for value in jax.tree.leaves((metrics, after)))
    for part in ("params", "opt_state", "ema", "stats"):
        assert not jax.tree.leaves(getattr(before, part)) or not same(getattr(after, part), getattr(before, part))


# The step of stage 1


@pytest.fixture(scope="module")
def autoencoder():
    """A fresh state with codes that are revived, BatchNorm and an average; a step; two good batches."""
    task = Stage1.from_config(cli.load_config(TINY, ["--config.loss.disc_start=0"]))
    images = jax.random.uniform(jax.random.key(0), (2, 4, 16, 16, 3), minval=-1.0)
    state = quick(task.init)(KEY, images[:1])
    return state, quick(skipping(task.train_step)), images


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_batch_with_one_bad_pixel_leaves_no_trace_in_a_tokenizer(autoencoder, bad):
    state, step, images = autoencoder
    assert {"codebook", "discriminator"} <= state.stats.keys()
    after, metrics = step(state, {}, {"image": images[0]}, KEY)
    check_taken(state, after, metrics)
    skipped, metrics = step(after, {}, {"image": images[1].at[2, 3, 4, 0].set(bad)}, KEY)
    assert not np.isfinite(metrics["grad_norm"])
    check_skipped(after, skipped, metrics)
    again, metrics = step(skipped, {}, {"image": images[1]}, KEY)
    check_taken(skipped, again, metrics)


# The step of stage 2


def poisoned(logits, tokens, smoothing=0.0):
    """Cross-entropy that is not finite where a sequence is all 7, tokens having no bad values of their own."""
    bad = jnp.all(tokens == 7, axis=-1, keepdims=True)
    return jnp.mean(jnp.square(logits), axis=-1) * jnp.where(bad, jnp.nan, 1.0)


def test_a_bad_batch_leaves_no_trace_in_a_prior(monkeypatch, getkey):
    monkeypatch.setattr(stage2.losses, "cross_entropy", poisoned)
    task = Stage2.from_config(cli.load_config(f"{PRIOR}:gpt", ["--config.transformer.depth=1"]))
    step = task.train_step
    state = quick(task.init)(KEY)
    good = jax.random.randint(getkey(), (4, 65), 0, 11)
    guarded = quick(skipping(step))
    after, metrics = guarded(state, {}, {"tokens": good}, KEY)
    check_taken(state, after, metrics)
    skipped, metrics = guarded(after, {}, {"tokens": good.at[2, 1:].set(7)}, KEY)
    check_skipped(after, skipped, metrics)


# The program


def lowered(step, **options) -> str:
    """Text of the program of a step of one parameter."""
    mesh = sharding.make_mesh(data=8, fsdp=1, tensor=1)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    state = TrainState(number, {"w": number}, {}, {}, {})
    where = jax.tree.map(lambda _: sharding.replicated(mesh), state)
    batch = jax.ShapeDtypeStruct((8,), jnp.float32)
    return program.compiled_step(step, where, mesh, **options).lower(state, {}, batch, {}).as_text()


def test_stopping_costs_nothing():
    """The program of "stop" is the step's own; that of "skip" asks whether numbers are finite, and chooses."""

    def step(state, frozen, batch, key):
        w = state.params["w"] - batch.sum()
        return state.replace(params={"w": w}), {"loss": batch.sum(), "param_norm": w}

    stop, skip = (lowered(step, nonfinite=value) for value in ("stop", "skip"))
    assert ("is_finite" in stop, "stablehlo.select" in stop) == (False, False)
    assert "is_finite" in skip
    assert "stablehlo.select" in skip


def test_what_is_not_finite_stops_unless_the_config_says_otherwise():
    assert cli.load_config(TINY).optimizer.nonfinite == "stop"
    with pytest.raises(ValueError, match=r"optimizer\.nonfinite` must be one of stop, skip; got 'ignore'"):
        cli.load_config(TINY, ["--config.optimizer.nonfinite=ignore"])


# What is told


def step_metrics(loss: float, **more: float) -> dict[str, np.ndarray]:
    return {name: np.asarray(value, np.float32) for name, value in {"loss": loss, **more}.items()}


def test_a_window_leaves_skipped_steps_out_of_its_means():
    window = Window()
    window.add(step_metrics(1.0, skipped=0) | {"code_hits": np.array([4, 0])})
    window.add(step_metrics(np.nan, skipped=1) | {"code_hits": np.array([0, 9])})
    window.add(step_metrics(5.0, skipped=0) | {"code_hits": np.array([4, 0])})
    means = window.take(1)
    assert (means["loss"], means["skipped"], means["codebook_usage"]) == (3.0, 1.0, 0.5)
    window.add(step_metrics(np.nan, skipped=1))
    assert window.take(1).keys() - {"images_per_second"} == {"skipped"}
    window.add(step_metrics(1.0))
    assert "skipped" not in window.take(1)


@pytest.fixture
def recorder():
    """Of a run that writes nothing yet; what it says to people is in `console.file`."""
    run, writer = mock.Mock(spec=program.Program), mock.Mock(spec=Writer)
    run.config = mock.Mock(**{"log.metrics_every": 1000})
    checkpoints = mock.Mock(spec=Checkpoints, latest=40, folder="runs/a/checkpoints")
    return loop.Recorder(run, checkpoints, writer, Goodput(), Console(file=io.StringIO(), width=200))


def feed(recorder, *losses: float, skip: bool = True) -> None:
    for step, loss in enumerate(losses, start=41):
        more = {"skipped": not np.isfinite(loss)} if skip else {}
        recorder.step(step, step_metrics(loss, **more))
    recorder.flush()


def test_ten_skipped_steps_in_a_row_pass_and_the_eleventh_stops(recorder):
    feed(recorder, 1.0, *[np.nan] * 10, 1.0, *[np.nan] * 10, 1.0)
    assert "step 42 is skipped: `loss` is nan" in recorder.console.file.getvalue()
    with pytest.raises(FloatingPointError, match=r"at step 51, after 10 steps skipped in a row.*good checkpoint is"):
        feed(recorder, *[np.nan] * 11)


def test_without_the_key_the_first_one_stops(recorder):
    with pytest.raises(FloatingPointError, match=r"`loss` is nan at step 42\. The last good checkpoint is step 40"):
        feed(recorder, 1.0, np.nan, skip=False)


def test_a_step_that_was_taken_and_left_bad_parameters_stops(recorder):
    recorder.step(41, step_metrics(1.0, skipped=0, param_norm=np.inf))
    with pytest.raises(FloatingPointError, match="`param_norm` is inf at step 41"):
        recorder.flush()
