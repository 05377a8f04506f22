"""Where the wall time of a run goes, over all its lives: one that is killed and started again has several."""

import contextlib
import datetime
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

SECTIONS: tuple[str, ...] = ("steps", "compile", "data", "evaluation", "checkpoint", "start", "restart")
COMPILED = "/jax/core/compile/backend_compile_duration"


class Goodput:
    """A clock of which the loop's sections are entered one after another, `with goodput.section("data")`.

    What the compiler takes goes to `compile`, whatever section calls it. `data` is what the loop waits for its next
    batch, while the devices may still be at the step before; `checkpoint` what saving holds up, not what is written
    behind the steps; `start` the opening of all files. `restart` is the same of every later life, and what the life
    before had done after the checkpoint that is gone on from: as far as its lines of metrics tell, and nothing of a
    life killed before it came to its first step. The time in which no process ran is not counted.
    """

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(SECTIONS, 0.0)
        self.began, self.before, self.lost_steps = time.perf_counter(), 0.0, 0
        self.entered, self.window = "", (0.0, 0.0)

    def __enter__(self) -> "Goodput":
        jax.monitoring.register_event_duration_secs_listener(self.compiled)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self.compiled)

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Counts the time inside for one of `SECTIONS`; they are not nested."""
        self.entered, began = name, time.perf_counter()
        try:
            yield
        finally:
            self.entered = ""
            self.seconds[name] += time.perf_counter() - began

    def compiled(self, event: str, duration_secs: float, **_: Any) -> None:
        """The listener: takes a compilation out of the section that it is in."""
        if event == COMPILED and self.entered:
            self.seconds["compile"] += duration_secs
            self.seconds[self.entered] -= duration_secs

    def recall(self, kept: list[dict[str, Any]], dropped: list[dict[str, Any]]) -> None:
        """Adds what the lives before this one wrote: the lines up to the step that it begins with, and those after.

        Without a line of ours among `kept`, this is the first life of which anything is known.
        """
        told = next((line for line in reversed(kept) if "goodput/seconds" in line), None)
        if told is None:
            return
        self.seconds["restart"], self.seconds["start"] = self.seconds["start"], 0.0
        self.before, self.lost_steps = told["goodput/seconds"], int(told["goodput/lost_steps"])
        for name in SECTIONS:
            self.seconds[name] += told[f"goodput/{name}"] * self.before
        if dropped:
            lost = max(dropped[-1]["time"] - told["time"], 0.0)
            self.seconds["restart"] += lost
            self.before += lost
            self.lost_steps += dropped[-1]["step"] - told["step"]

    def shares(self) -> dict[str, float]:
        """The share of each section in all `seconds` until now, and the number of steps that were done twice.

        What is missing to 1 is the loop's own.
        """
        total = self.before + time.perf_counter() - self.began
        return {name: s / total for name, s in self.seconds.items()} | {"seconds": total, "lost_steps": self.lost_steps}

    def take(self, steps: int) -> dict[str, float]:
        """Of so many steps since the last call: `input_wait`, the share of their time that was waited for data.

        With several processes, which must all call it, that is their mean; beside it are the longest wait, whose it
        is (`slowest_process`), and the mean and the longest time of a step.
        """
        now = self.seconds["data"], self.seconds["steps"]
        (waited, worked), self.window = (b - a for a, b in zip(self.window, now, strict=True)), now
        wait, step = waited / max(waited + worked, 1e-9), (waited + worked) / max(steps, 1)
        if jax.process_count() == 1:
            return {"input_wait": wait}
        waits, seconds = multihost_utils.process_allgather(np.array([wait, step], np.float32)).T
        return {
            "input_wait": float(waits.mean()),
            "input_wait_slowest": float(waits.max()),
            "slowest_process": int(waits.argmax()),
            "step_seconds": float(seconds.mean()),
            "step_seconds_slowest": float(seconds.max()),
        }

    def line(self) -> str:
        """All of it for people."""
        shares = self.shares()
        told = "  ".join(f"{name} [bold]{shares[name]:.1%}[/]" for name in SECTIONS if shares[name] >= 5e-4)
        lost = f"  steps done twice [bold]{self.lost_steps}[/]" if self.lost_steps else ""
        return f"[dim]goodput[/] of {datetime.timedelta(seconds=round(shares['seconds']))}  {told}{lost}"
