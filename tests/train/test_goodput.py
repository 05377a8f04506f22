"""Where the time goes, by a clock that a test sets."""

import json
import time
from pathlib import Path

import jax
import pytest
from etils import epath
from rich.console import Console

from vqgan_jax import cli
from vqgan_jax.train import loop, metrics
from vqgan_jax.train.watch import COMPILED, SECTIONS, Goodput

TINY = str(Path(__file__).with_name("tiny.py"))


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def live(clock: Clock, goodput: Goodput, **seconds: float) -> None:
    """Some time in each section."""
    for name, s in seconds.items():
        with goodput.section(name):
            clock.sleep(s)


def test_each_section_has_its_share_and_the_rest_is_nobodys(clock):
    goodput = Goodput()
    live(clock, goodput, start=1, compile=2, data=1, steps=12)
    live(clock, goodput, data=1, evaluation=2)
    clock.sleep(1)
    shares = goodput.shares()
    assert {name: 20 * shares[name] for name in SECTIONS} == pytest.approx(
        {"start": 1, "compile": 2, "data": 2, "steps": 12, "evaluation": 2, "checkpoint": 0, "restart": 0}
    )
    assert (shares["seconds"], shares["lost_steps"]) == (20, 0)


def test_a_section_that_fails_is_counted_too(clock):
    goodput = Goodput()

    def fail():
        with goodput.section("checkpoint"):
            clock.sleep(3)
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert goodput.seconds["checkpoint"] == 3


def test_what_the_compiler_takes_is_taken_out_of_the_section_that_it_is_in(clock):
    with Goodput() as goodput:
        with goodput.section("evaluation"):
            clock.sleep(5)
            jax.monitoring.record_event_duration_secs(COMPILED, 3.0)
            jax.monitoring.record_event_duration_secs("/another/event", 1.0)
        jax.monitoring.record_event_duration_secs(COMPILED, 7.0)  # in no section: not ours
    jax.monitoring.record_event_duration_secs(COMPILED, 9.0)  # and no longer heard
    assert (goodput.seconds["evaluation"], goodput.seconds["compile"]) == (2, 3)


def test_jax_tells_of_its_compilations(getkey):
    """The event's name is jax's own, and would change in silence."""
    with Goodput() as goodput, goodput.section("steps"):
        began = time.perf_counter()
        jax.jit(lambda x: x @ x + 1.2345)(jax.random.normal(getkey(), (7, 7))).block_until_ready()
        took = time.perf_counter() - began
    assert 0 < goodput.seconds["compile"] < took


def test_the_wait_for_data_is_of_the_steps_since_the_last_window(clock):
    goodput = Goodput()
    live(clock, goodput, compile=100, data=1, steps=3)
    assert goodput.take(2) == {"input_wait": 0.25}
    live(clock, goodput, data=6, steps=2, evaluation=50)
    assert goodput.take(2) == {"input_wait": 0.75}


def test_of_several_processes_the_slowest_is_named(clock, monkeypatch):
    goodput = Goodput()
    live(clock, goodput, data=1, steps=3)
    rows = [[0.5, 2.0], [0.0, 1.0], [0.85, 3.0]]

    def gather(own):
        assert own.tolist() == [0.25, 2.0], "waited a quarter; two seconds a step"
        return jax.numpy.array(rows)

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr("vqgan_jax.train.watch.multihost_utils.process_allgather", gather)
    taken = goodput.take(2)
    assert taken == pytest.approx(
        {
            "input_wait": 0.45,
            "input_wait_slowest": 0.85,
            "slowest_process": 2,
            "step_seconds": 2.0,
            "step_seconds_slowest": 3.0,
        }
    )


def said(goodput: Goodput, step: int, now: float) -> dict:
    """The line of metrics that the loop would write."""
    return {"step": step, "time": now} | {f"goodput/{name}": value for name, value in goodput.shares().items()}


def test_three_lives_add_up(clock):
    """The first is killed 4 steps and 5 seconds after its checkpoint, the second at once, before it has its own."""
    first = Goodput()
    live(clock, first, start=2, steps=7, data=1)
    saved, last = said(first, 10, 1000.0), {"step": 14, "time": 1005.0}
    second = Goodput()
    live(clock, second, start=3)
    second.recall([{"step": 10, "train/loss": 1.0}, saved], [{"step": 12, "time": 1002.0}, last])
    assert (second.seconds["start"], second.seconds["restart"], second.lost_steps) == pytest.approx((2, 3 + 5, 4))
    assert second.shares()["seconds"] == pytest.approx(10 + 5 + 3)
    began, last = said(second, 10, 2000.0), {"step": 11, "time": 2001.5}
    third = Goodput()
    live(clock, third, start=4, steps=6)
    third.recall([saved, began], [last])
    assert {n: round(s, 6) for n, s in third.seconds.items() if s} == {
        "start": 2, "steps": 13, "data": 1, "restart": 3 + 5 + 4 + 1.5
    }  # fmt: skip
    assert third.lost_steps == 4 + 1
    assert sum(third.shares()[name] for name in SECTIONS) == pytest.approx(1.0)


def test_a_run_that_stopped_by_itself_lost_nothing(clock):
    first = Goodput()
    live(clock, first, start=2, steps=8)
    second = Goodput()
    live(clock, second, start=1)
    second.recall([said(first, 10, 1000.0)], [])
    assert (second.seconds["restart"], second.lost_steps) == (1, 0)


def test_a_first_life_remembers_nothing(clock):
    goodput = Goodput()
    live(clock, goodput, start=2)
    goodput.recall([{"step": 10, "time": 1.0, "train/loss": 1.0}], [{"step": 12, "time": 2.0}])
    assert (goodput.seconds["start"], goodput.seconds["restart"], goodput.shares()["seconds"]) == (2, 0, 2)


def lines_of(workdir: Path, name: str) -> list[dict]:
    return [line for line in metrics.Writer.read(epath.Path(workdir) / "metrics.jsonl") if name in line]


@pytest.mark.slow
def test_a_run_and_its_resume_write_where_their_time_went(tmp_path):
    """Five steps, and five more; between them as if killed at step 6. The clock is real."""
    console = Console(record=True, width=200, quiet=False)
    flags = ["--config.log.eval_every=5", "--config.loss.disc_weight=0.0"]
    config = lambda steps: cli.load_config(TINY, [*flags, f"--config.steps={steps}"])
    began = time.perf_counter()
    assert loop.train(config(5), epath.Path(tmp_path), console)
    took = time.perf_counter() - began
    told = lines_of(tmp_path, "goodput/seconds")
    assert [line["step"] for line in told] == [0, 3, 5]
    assert 0.5 * took < told[-1]["goodput/seconds"] < took
    shares = [told[-1][f"goodput/{name}"] for name in SECTIONS]
    assert 0.9 < sum(shares) <= 1.0
    assert min(shares) >= 0
    assert told[-1]["goodput/compile"] > 0.3, "a tiny run is mostly compiled"
    waits = [line["train/input_wait"] for line in lines_of(tmp_path, "train/input_wait")]
    assert len(waits) == 5
    assert all(0 <= wait < 1 for wait in waits)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "time": told[-1]["time"] + 2.5}) + "\n")
    assert loop.train(config(8), epath.Path(tmp_path), console)
    resumed, *_, last = lines_of(tmp_path, "goodput/seconds")[3:]
    assert resumed["step"] == 5
    assert resumed["goodput/lost_steps"] == last["goodput/lost_steps"] == 1
    assert resumed["goodput/seconds"] > told[-1]["goodput/seconds"] + 2.5
    assert resumed["goodput/restart"] * resumed["goodput/seconds"] > 2.5
    assert "steps done twice 1" in console.export_text()
