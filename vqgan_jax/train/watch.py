"""Watches a run: how far it is, where its time goes, what interrupts it, and a trace of some steps."""

import contextlib
import datetime
import faulthandler
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from rich import progress
from rich.console import Console
from rich.text import Text

from vqgan_jax.data import storage

SECTIONS: tuple[str, ...] = ("steps", "compile", "data", "evaluation", "checkpoint", "start", "restart")
COMPILED = "/jax/core/compile/backend_compile_duration"


class Rate(progress.ProgressColumn):
    """The rate of a bar: steps or images a second."""

    def render(self, task: progress.Task) -> Text:
        """Returns the rate of one bar."""
        return Text(f"{task.speed or 0.0:,.1f} / s")


@contextlib.contextmanager
def tracking(console: Console) -> Iterator[Callable[[str, int | None], Callable[..., None]]]:
    """Shows a bar for each part of the work; on a terminal only, since a log has the lines.

    Yields:
      A function of the part's name and of how much there is to do, None where that is not known. It returns a function
      of how much is done and, where that is known only then, of how much there is to do.
    """
    columns: tuple[progress.ProgressColumn, ...] = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        Rate(),
    )
    with progress.Progress(*columns, console=console, disable=not console.is_terminal) as bars:

        def track(name: str, total: int | None) -> Callable[..., None]:
            task = bars.add_task(name, total=total)
            return lambda done, total=None: bars.update(task, completed=done, total=total)

        yield track


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
        last = next((line for line in reversed(kept) if "goodput/seconds" in line), None)
        if last is None:
            return
        self.seconds["restart"], self.seconds["start"] = self.seconds["start"], 0.0
        self.before, self.lost_steps = last["goodput/seconds"], int(last["goodput/lost_steps"])
        for name in SECTIONS:
            self.seconds[name] += last[f"goodput/{name}"] * self.before
        if dropped:
            lost = max(dropped[-1]["time"] - last["time"], 0.0)
            self.seconds["restart"] += lost
            self.before += lost
            self.lost_steps += dropped[-1]["step"] - last["step"]

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
        text = "  ".join(f"{name} [bold]{shares[name]:.1%}[/]" for name in SECTIONS if shares[name] >= 5e-4)
        lost = f"  steps done twice [bold]{self.lost_steps}[/]" if self.lost_steps else ""
        return f"[dim]goodput[/] of {datetime.timedelta(seconds=round(shares['seconds']))}  {text}{lost}"


class Stop:
    """Turns SIGTERM and the first Ctrl-C into a flag; a second Ctrl-C interrupts as usual.

    In a cluster the signal is left to `jax.distributed`, which brings it to all processes at the same step.
    """

    requested = False

    def __enter__(self) -> "Stop":
        signals = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self.previous = {number: signal.signal(number, self.request) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def request(self, *_: Any) -> None:
        """The signals' handler."""
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def deadline(seconds: int, batch: str, source: str) -> Iterator[None]:
    """What waits inside, for a named batch from a source, may take so long; 0, and other threads, wait for ever.

    Raises:
      TimeoutError: it took longer. Where each thread stands is printed to stderr.
    """

    def late(*_: Any) -> None:
        faulthandler.dump_traceback()
        raise TimeoutError(
            f"the {batch} must come within config.data.timeout_seconds = {seconds}; process "
            f"{jax.process_index()} of {jax.process_count()} got none from {source}. Where its threads are "
            "is printed above. Look at that storage, then run the same command again; or raise the timeout."
        )

    if threading.current_thread() is not threading.main_thread():  # only that one is given signals
        yield
        return
    previous = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def in_time(batches: Iterable[Any], seconds: int, name: str, source: str) -> Iterator[Any]:
    """The batches, each in time; they are counted from 1 for the error of `deadline`."""
    waiting = iter(batches)
    for number in itertools.count(1):
        with deadline(seconds, f"{name} {number}", source):
            try:
                batch = next(waiting)
            except StopIteration:
                return
        yield batch


class Profile:
    """Traces the steps `first` to `last`, both included, of every process into `folder`; without a window, nothing.

    A run that begins within the window traces the rest of it, and one that ends there what there was.
    """

    def __init__(self, folder: epath.Path, window: tuple[int, int] | None) -> None:
        self.folder, (self.first, self.last) = folder, window or (1, 0)
        self.running, self.files = False, contextlib.ExitStack()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """One step, called by its number in the trace."""
        if self.first <= number <= self.last and not self.running:
            folder = self.files.enter_context(storage.local_folder(self.folder))
            jax.profiler.start_trace(str(folder))
            self.running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def done(self, number: int, metrics: Any) -> None:
        """Ends the trace behind its last step, when the devices are done with that."""
        if self.running and number >= self.last:
            jax.block_until_ready(metrics)
            self.stop()

    def stop(self) -> None:
        """Writes the trace, if there is one."""
        if self.running:
            self.running = False
            jax.profiler.stop_trace()
            self.files.close()
