"""Runs the jobs of a study, each verb in a process of its own, and reads what they leave.

A kill loses nothing: `vqgan train` goes on from its newest checkpoint, a token cache from its shards, and what was
measured is in a file. Each folder that a process writes is locked by it, and the lock is the child's, too: who comes
after a kill waits for a process that is still at work, instead of doing the same beside it.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from rich.console import Console

import vqgan_jax
from vqgan_jax.data import storage
from vqgan_jax.evaluate import protocol
from vqgan_jax.studies.plan import Job
from vqgan_jax.studies.results import PROTOCOL, Record
from vqgan_jax.train import metrics
from vqgan_jax.train.watch import Stop

PAUSE = 0.2  # seconds between looks at a child
LONGEST = 20  # points of a curve
TRAINED, USAGE = "trained.json", "usage.json"  # in a run's folder
FIGURES, BY_PAGE = "figures.json", "function.json"  # in the folder of what is measured


class Failed(Exception):
    """A job's process ended with an error; the text is a line for people."""


class Stopped(Exception):
    """A signal stopped the study; what ran is saved."""


@dataclasses.dataclass
class Runner:
    """Does jobs, each thing once.

    Attributes:
      workdir: of all studies, a folder of this machine.
      console: for people.
      stop: its `requested` ends every child, which saves what it has.
      failures: why a folder could not be made, so that nobody tries it again in this call.
    """

    workdir: epath.Path
    console: Console
    stop: Stop
    failures: dict[str, str] = dataclasses.field(default_factory=dict)

    def finish(self, job: Job) -> Record:
        """Trains and measures a job as far as it is not yet, and returns its record.

        Raises:
          Failed: a process ended with an error, now or before in this call.
          Stopped: a signal came.
        """
        if not (job.measured / FIGURES).exists():
            self.train(job)
            with self.locked(job.folder, job.measured) as lock:
                if not (job.measured / FIGURES).exists():
                    self.measure(job, lock)
        return record_of(job)

    def train(self, job: Job) -> None:
        """Trains a job, and before it what it needs."""
        for other in job.needs:
            self.train(other)
        if job.cache is not None:
            with self.locked(job.cache, job.cache) as lock:
                if not (job.cache / "tokens.json").exists():
                    self.call(job.cache, lock, job.tokenize(), f"{job.name}: the token cache of {job.needs[0].name}")
        with self.locked(job.folder, job.folder) as lock:
            if is_trained(job):
                return
            is_over, began = lambda: bool(job.minutes) and minutes_of(lines_of(job), job) >= job.minutes, time.time()
            # A process that was only just started would die of the signal instead of saving.
            may_end = lambda: is_over() and (Path(job.folder) / "metrics.jsonl").stat().st_mtime > began
            self.call(job.folder, lock, job.train(), f"{job.name}: {job.config.steps:,} steps", may_end)
            lines = lines_of(job)
            reached = int(lines[-1]["step"]) if lines else 0
            if reached < job.config.steps and not is_over():
                raise Failed(f"{job.name}: the training was stopped from outside at step {reached}")
            storage.write_json(job.folder / TRAINED, {"step": reached})

    def measure(self, job: Job, lock: int) -> None:
        """Measures a trained job; its figures are written when all are there."""
        storage.make_folder(job.measured)
        if job.measure.metrics and not (job.measured / "evaluation.json").exists():
            self.call(job.folder, lock, job.evaluate(), f"{job.name}: is measured")
        if job.measure.function and not (job.measured / BY_PAGE).exists():
            self.call(job.folder, lock, job.measure_by_page(self.workdir), f"{job.name}: is measured by its page")
        storage.write_json(job.measured / FIGURES, figures_of(job))

    def call(
        self,
        folder: epath.Path,
        lock: int,
        arguments: Sequence[str],
        text: str,
        may_end: Callable[[], bool] = lambda: False,
    ) -> None:
        """Runs `vqgan` with arguments, from the verb on, in a process of its own; FOLDER/study.log has its output.

        The process has the folder's `lock`, too. As soon as it `may_end` it gets a SIGTERM, on which it saves and ends.

        Raises:
          Failed: the process ended with an error.
          Stopped: a signal came.
        """
        if self.stop.requested:
            raise Stopped
        self.say(f"{text}  [dim]{folder}[/]")
        environment = {"JAX_COMPILATION_CACHE_DIR": f"{self.workdir}/compilation_cache", **os.environ}
        log = Path(folder) / "study.log"
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "vqgan_jax", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                pass_fds=(lock,),
            )
        usage = wait(process, lambda: self.stop.requested or may_end())
        add_usage(folder, usage)
        if self.stop.requested:
            raise Stopped
        if process.returncode:
            raise Failed(f"{text}: exit {process.returncode}: {last_line(log)} ({log})")

    @contextlib.contextmanager
    def locked(self, folder: epath.Path, product: epath.Path) -> Iterator[int]:
        """Holds a folder to make something in it, and gives the lock's descriptor; waits while others hold it.

        Raises:
          Failed: the `product` could not be made, now or before in this call.
        """
        storage.make_folder(folder)
        with (Path(folder) / ".lock").open("w") as lock:
            for attempt in itertools.count():
                if acquired(lock.fileno()):
                    break
                if attempt == 0:
                    self.say(f"waits for others at work in {folder}")
                if self.stop.requested:
                    raise Stopped
                time.sleep(PAUSE)
            if why := self.failures.get(str(product)):
                raise Failed(why)
            try:
                yield lock.fileno()
            except (Failed, OSError) as error:
                self.failures[str(product)] = str(error)
                raise Failed(str(error)) from error

    def say(self, text: str) -> None:
        """Prints a line."""
        self.console.print(text, highlight=False, soft_wrap=True)


def acquired(descriptor: int) -> bool:
    """Returns whether a lock was free, and takes it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait(process: subprocess.Popen[bytes], may_end: Callable[[], bool]) -> resource.struct_rusage:
    """Waits for a child, sends it one SIGTERM as soon as it `may_end`, and returns what it used."""
    signalled = False
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return usage
        if not signalled and may_end():
            os.kill(process.pid, signal.SIGTERM)
            signalled = True
        time.sleep(PAUSE)


def add_usage(folder: epath.Path, usage: resource.struct_rusage) -> None:
    """Adds what a process used to the file of its folder."""
    before, minutes = used(folder), (usage.ru_utime + usage.ru_stime) / 60
    peak = max(before["peak_gib"], usage.ru_maxrss / 2**20)
    storage.write_json(folder / USAGE, {"cpu_minutes": before["cpu_minutes"] + minutes, "peak_gib": peak})


def used(folder: epath.Path) -> dict[str, float]:
    """Returns what the processes of a folder used until now."""
    path = folder / USAGE
    return json.loads(path.read_text()) if path.exists() else {"cpu_minutes": 0.0, "peak_gib": 0.0}


def last_line(log: Path) -> str:
    """Returns the last line of a log, where verbs and tracebacks say what was wrong."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"


def run_all(
    jobs: Sequence[Job], runner: Runner, count: int, done: Callable[[Job, Record], None]
) -> tuple[dict[str, str], bool]:
    """Does jobs, `count` at a time; one that fails does not stop the others.

    Args:
      jobs: those that others need first.
      runner: does one.
      count: how many at a time.
      done: takes each record as soon as it is there, in this thread; what it raises is that job's failure.

    Returns:
      What failed, by the job's name, and whether all were tried: not where a signal came.
    """
    failed: dict[str, str] = {}
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        waiting = {pool.submit(runner.finish, job): job for job in jobs}
        try:
            while waiting:  # short waits, so that signals reach this thread
                ended, _ = concurrent.futures.wait(waiting, PAUSE, concurrent.futures.FIRST_COMPLETED)
                for future in ended:
                    job = waiting.pop(future)
                    try:
                        done(job, future.result())
                    except Stopped:
                        pass
                    except (Failed, ValueError, OSError) as error:
                        failed[job.name] = str(error)
                        runner.say(f"[bold]failed[/]  {job.name}: {error}")
        except BaseException:
            runner.stop.requested = True  # or the pool would first do all others
            raise
    in_order = {job.name: failed[job.name] for job in jobs if job.name in failed}
    return in_order, not runner.stop.requested


# What a finished run left


def is_trained(job: Job) -> bool:
    """Returns whether a job's training is done; a cluster that ran the printed commands left an evaluation of it."""
    evaluation = job.measured / "evaluation.json"
    if not (job.folder / TRAINED).exists() and evaluation.exists():
        steps = {result["step"] for result in json.loads(evaluation.read_text())["results"]}
        if steps == {job.config.steps}:
            storage.write_json(job.folder / TRAINED, {"step": job.config.steps})
    return (job.folder / TRAINED).exists()


def lines_of(job: Job) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics."""
    return metrics.Writer.read(job.folder / "metrics.jsonl")


def minutes_of(lines: Sequence[Mapping[str, Any]], job: Job) -> float:
    """Returns the minutes that the steps of a run took, by their rate; starts, compilation and evaluations are none."""
    seconds, before = 0.0, 0
    for line in lines:
        if "train/images_per_second" in line:
            seconds += (line["step"] - before) * job.config.batch_size / line["train/images_per_second"]
            before = line["step"]
    return seconds / 60


def figures_of(job: Job) -> dict[str, Any]:
    """Returns figures by setting and name with their protocol, and what measured them.

    Raises:
      Failed: the figures are of another step than the training's last.
    """
    figures: dict[str, dict[str, float]] = {}
    protocols: dict[str, dict[str, Any]] = {}
    if job.measure.metrics:
        results = json.loads((job.measured / "evaluation.json").read_text())["results"]
        step = json.loads((job.folder / TRAINED).read_text())["step"]
        swept = protocol.swept_settings([protocol.Result(**result) for result in results])
        for result in results:
            if result["step"] != step:
                raise Failed(f"{job.name}: step {result['step']} was measured of {step}; remove {job.measured}")
            setting = ", ".join(f"{name} {result['sampling'][name]}" for name in swept if name in result["sampling"])
            figures.setdefault(setting, {})[result["metric"]] = result["value"]
            protocols[result["metric"]] = {name: result[name] for name in PROTOCOL}
    if job.measure.function:
        for setting, values in json.loads((job.measured / BY_PAGE).read_text()).items():
            figures.setdefault(setting, {}).update(values)
    versions = protocol.versions()
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    return {"figures": figures, "protocol": protocols, "commit": commit(), "versions": versions, "machine": machine}


def record_of(job: Job) -> Record:
    """Returns the record of a job that is trained and measured."""
    measured = json.loads((job.measured / FIGURES).read_text())
    usage = used(job.folder)
    config, lines = json.loads((job.folder / "config.json").read_text()), lines_of(job)
    return Record(
        run=job.run,
        seed=job.seed,
        key=job.key,
        measuring=job.measuring,
        changes=json.loads(json.dumps(dict(job.changes))),
        steps=json.loads((job.folder / TRAINED).read_text())["step"],
        minutes=round(minutes_of(lines, job), 2),
        cpu_minutes=round(usage["cpu_minutes"], 2),
        peak_gib=round(usage["peak_gib"], 2),
        tokenizer=config.get("tokenizer", {}).get("fingerprint", ""),
        curve=curve_of(lines),
        **measured,
    )


def curve_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float | int]]]:
    """Returns the held-out figures over the steps, and the training loss beside them, at `LONGEST` steps at most."""
    curve: dict[str, list[list[float | int]]] = {}
    loss: float | None = None
    for line in lines:
        loss = line.get("train/loss", loss)
        held_out = {name.removeprefix("eval/"): value for name, value in line.items() if name.startswith("eval/")}
        for name, value in (held_out | ({"train_loss": loss} if held_out and loss is not None else {})).items():
            curve.setdefault(name, []).append([line["step"], float(f"{value:.6g}")])
    every = max(-(-len(points) // LONGEST) for points in curve.values()) if curve else 1
    return {name: points[::-1][::every][::-1] for name, points in curve.items()}


def commit() -> str:
    """Returns the commit of this program, with "+" where files of it have changed since; "" outside of a clone."""
    folder = Path(vqgan_jax.__file__).parent
    git = lambda *words: subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=False)
    head, changed = git("rev-parse", "--short=10", "HEAD"), git("status", "--porcelain", "--", ".")
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else ""
