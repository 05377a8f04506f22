"""Traces of some steps, and programs that a second process does not compile again."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest
from drill import SMALL, Job, rows, run
from etils import epath

from vqgan_jax import cli
from vqgan_jax.cli.train import window
from vqgan_jax.train import metrics
from vqgan_jax.train.watch import Profile


def traced(folder) -> list[int]:
    """Numbers of the steps in a trace."""
    (path,) = folder.rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return sorted(int(event["args"]["step_num"]) for event in events if event.get("name") == "train")


@pytest.mark.parametrize(("first", "found"), [(1, [2, 3]), (3, [3])])
def test_a_trace_has_the_steps_of_its_window(tmp_path, first, found):
    """Also of a run that goes on in the middle of it."""
    square = jax.jit(jnp.square)
    with Profile(epath.Path(tmp_path), (2, 3)) as profile:
        for step in range(first, 6):
            with profile.step(step):
                value = square(jnp.float32(step))
            profile.done(step, {"value": value})
            assert profile.running == (step == 2)
    assert traced(tmp_path) == found


def test_a_run_that_ends_within_the_window_writes_what_there_was(tmp_path):
    with Profile(epath.Path(tmp_path), (1, 100)) as profile, profile.step(1):
        jnp.square(2.0)
    assert traced(tmp_path) == [1]


def test_without_a_window_nothing_is_written(tmp_path):
    with Profile(epath.Path(tmp_path), None) as profile:
        for step in range(3):
            with profile.step(step):
                assert not profile.running
            profile.done(step, {})
    assert not list(tmp_path.iterdir())


def test_the_flag_is_two_steps():
    assert window(None) is None
    assert window("10:12") == (10, 12)
    for text in ("10", "12:10", "0:3", "a:b", "1:2:3", ":"):
        with pytest.raises(cli.UsageError, match="--profile"):
            window(text)


@pytest.mark.parametrize(
    ("flag", "environment", "kept"),
    [(None, None, "default"), (None, "env", "env"), ("given", "env", "given"), ("", "env", None), ("", None, None)],
)
def test_what_is_compiled_is_kept_where_the_flag_says(monkeypatch, tmp_path, getkey, flag, environment, kept):
    path = lambda name: name and str(tmp_path / name)
    settings = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in settings}
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", path(environment) or "")
    jax.config.update("jax_compilation_cache_dir", path(environment))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        with cli.compilation_cache(path(flag), path("default")):
            jax.jit(lambda x: jnp.sin(x) * 1.25)(jax.random.normal(getkey(), (3,)))
        assert jax.config.values["jax_compilation_cache_dir"] == path(environment)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert {folder.name for folder in tmp_path.iterdir() if any(folder.iterdir())} == ({kept} if kept else set())


@pytest.mark.slow
def test_a_second_process_does_not_compile_again(tmp_path):
    flags = (*SMALL, "--config.steps=3", "--config.loss.disc_weight=0.0")
    plain = {"XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": ""}  # as users compile
    cold = run(tmp_path, "cold", *flags, "--profile=2:3", **plain)
    kept = cold.workdir / "compilation_cache"
    programs = {path.name for path in kept.iterdir() if path.name.endswith("-cache")}
    assert any("train_step" in name for name in programs)
    warm = Job(tmp_path, "warm", *flags, f"--compilation_cache={kept}", **plain)
    assert warm.finish() == 0, warm.output()
    assert {path.name for path in kept.iterdir() if path.name.endswith("-cache")} == programs
    assert rows(warm.workdir) == rows(cold.workdir)
    told = [metrics.Writer.read(epath.Path(job.workdir) / "metrics.jsonl")[-1] for job in (cold, warm)]
    once, again = (line["goodput/compile"] * line["goodput/seconds"] for line in told)
    print(f"compiled for {once:.1f} s, and again for {again:.1f} s")
    assert again < 0.7 * once
    assert not (warm.workdir / "compilation_cache").exists()
    assert traced(cold.workdir / "profile") == [2, 3]
