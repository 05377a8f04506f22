"""Metrics of a run: averaged over a window of steps, written as JSON lines and for TensorBoard."""

import concurrent.futures
import json
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8

from vqgan_jax import pictures
from vqgan_jax.data import storage
from vqgan_jax.train.trackers import Tracker

PART = re.compile(r"metrics-(\d{6})\.jsonl")  # lines of a run in a bucket, which appends nothing
PART_SECONDS = 120  # what is collected for the next part is at most so old


def code_statistics(hits: Int[np.ndarray, "k"]) -> dict[str, float]:
    """`codebook_usage`, the fraction of codes that were hit, and `perplexity`, exp of their entropy: k if uniform."""
    p = hits / max(hits.sum(), 1)
    entropy = -np.sum(p[p > 0] * np.log(p[p > 0]))
    return {"codebook_usage": float(np.mean(hits > 0)), "perplexity": float(np.exp(entropy))}


class Window:
    """Sums the steps' metrics until they are taken; hits of codes are added up before their statistics are.

    Of a step that was `skipped`, only that is counted.
    """

    def __init__(self) -> None:
        self.steps, self.sums = 0, {}
        self.timed, self.seconds, self.last = 0, 0.0, None

    def add(self, metrics: dict[str, np.ndarray]) -> None:
        """One step's metrics, as soon as it is done."""
        now = time.perf_counter()
        if self.last is not None:
            self.timed, self.seconds = self.timed + 1, self.seconds + now - self.last
        self.last = now
        self.steps += 1
        if metrics.get("skipped"):
            metrics = {"skipped": metrics["skipped"]}
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0) + np.asarray(value, np.float64 if value.ndim == 0 else np.int64)

    def pause(self) -> None:
        """Leaves the time until the next step out of the rate: it went into an evaluation."""
        self.last = None

    def take(self, batch_size: int) -> dict[str, float]:
        """Means over the window, usage and perplexity over all its codes, images per second between its steps."""
        counts = {name: float(self.sums.pop(name)) for name in ("skipped",) if name in self.sums}
        taken = self.steps - counts.get("skipped", 0)
        means = {name: float(value / taken) for name, value in self.sums.items() if value.ndim == 0} | counts
        if "code_hits" in self.sums:
            means |= code_statistics(self.sums["code_hits"])
        if self.timed:  # a first step, which is compiled, has no rate
            means["images_per_second"] = self.timed * batch_size / self.seconds
        self.steps, self.sums, self.timed, self.seconds = 0, {}, 0, 0.0
        return means


def files_of(path: epath.Path) -> list[epath.Path]:
    """The file of metrics, if it is there, and its numbered parts in their order."""
    there = {file.name: file for file in path.parent.iterdir()} if path.parent.is_dir() else {}
    return [there[name] for name in (path.name, *sorted(filter(PART.fullmatch, there))) if name in there]


def lines_of(file: epath.Path) -> list[str]:
    """The lines of a file; a last one cut off by a kill is left out."""
    return [line for line in file.read_text().splitlines() if line.startswith("{") and line.endswith("}")]


def open_board(folder: Any, **options: Any) -> Any:
    """Opens a file of TensorBoard's in a folder."""
    from tensorboardX import SummaryWriter  # half a second to import, which only those who train should pay

    return SummaryWriter(str(folder), **options)


class OnDisk:
    """Appends lines to `metrics.jsonl`, events to a file of TensorBoard's."""

    def __init__(self, workdir: epath.Path, kept: list[dict[str, Any]], resume_from: int) -> None:
        self.path = workdir / "metrics.jsonl"
        storage.write_whole(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        for part in files_of(self.path)[1:]:  # of a run that was copied from a bucket
            part.unlink()
        self.board = open_board(workdir / "tensorboard", purge_step=resume_from + 1)

    def line(self, text: str) -> None:
        """Appends a line."""
        with self.path.open("a") as file:
            file.write(text)

    def commit(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Flushes."""
        self.board.close()


class InBucket:
    """Collects lines and events; each `commit` writes them as objects of their own, `metrics-000001.jsonl` and so on.

    TensorBoard reads its files one after another, as one run.
    """

    def __init__(self, workdir: epath.Path, resume_from: int) -> None:
        self.workdir, self.purge_step = workdir, resume_from + 1
        files = files_of(workdir / "metrics.jsonl")
        self.number = max((int(part[1]) for file in files if (part := PART.fullmatch(file.name))), default=0)
        for file in files:
            lines = lines_of(file)
            kept = [line for line in lines if json.loads(line)["step"] <= resume_from]
            if not kept:
                file.unlink()
            elif kept != lines:
                file.write_text("".join(line + "\n" for line in kept))
        self.folder = Path(tempfile.mkdtemp())
        self.begin()

    def begin(self) -> None:
        """The next part."""
        self.number, self.lines, self.since = self.number + 1, [], time.monotonic()
        suffix = f".{self.number:06d}"
        self.board = open_board(self.folder, purge_step=self.purge_step, filename_suffix=suffix)
        self.purge_step = None

    def line(self, text: str) -> None:
        """Collects a line."""
        self.lines.append(text)
        if time.monotonic() - self.since > PART_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Writes what was collected."""
        if self.lines:
            self.write()
            self.begin()

    def write(self) -> None:
        """This part's objects."""
        self.board.close()
        if self.lines:
            (self.workdir / f"metrics-{self.number:06d}.jsonl").write_text("".join(self.lines))
            for file in self.folder.iterdir():
                (self.workdir / "tensorboard" / file.name).write_bytes(file.read_bytes())
        for file in self.folder.iterdir():
            file.unlink()

    def close(self) -> None:
        """Writes the rest."""
        self.write()
        shutil.rmtree(self.folder)


class Writer:
    """Writes `metrics.jsonl`, `images/*.png` and TensorBoard events in a workdir; on all processes but 0, nothing.

    What was written after step `resume_from`, by a run that was killed before its next checkpoint, is dropped: the
    same steps come again. `kept` and `dropped` are the lines of both kinds. A `tracker` gets everything, too.
    """

    def __init__(self, workdir: epath.Path, *, resume_from: int, enabled: bool, tracker: Tracker | None = None) -> None:
        self.enabled, self.kept, self.dropped, self.tracker = enabled, [], [], tracker
        if not enabled:
            return
        self.images = workdir / "images"
        storage.make_folder(self.images)
        for line in self.read(workdir / "metrics.jsonl"):
            (self.kept if line["step"] <= resume_from else self.dropped).append(line)
        if storage.in_bucket(workdir):
            self.files = InBucket(workdir, resume_from)
        else:
            self.files = OnDisk(workdir, self.kept, resume_from)

    def holds(self, step: int, prefix: str) -> bool:
        """Whether a line of this step and of this prefix was kept."""
        lines = (line for line in self.kept if line["step"] == step)
        return any(name.startswith(f"{prefix}/") for line in lines for name in line)

    @staticmethod
    def read(path: epath.Path) -> list[dict[str, Any]]:
        """The lines of a metrics file and of its numbered parts, each once."""
        with concurrent.futures.ThreadPoolExecutor(16) as pool:  # of parts there may be thousands
            files = list(pool.map(lines_of, files_of(path)))
        return [json.loads(line) for line in dict.fromkeys(line for lines in files for line in lines)]

    def scalars(self, step: int, prefix: str, values: dict[str, float]) -> None:
        """One line, `{"step": ..., "time": ..., "train/rec_loss": ...}`, and one point a curve."""
        if not self.enabled:
            return
        named = {f"{prefix}/{name}": value for name, value in values.items()}
        for name, value in named.items():
            self.files.board.add_scalar(name, value, step)
        if self.tracker:
            self.tracker.scalars(step, named)
        self.files.line(json.dumps({"step": step, "time": round(time.time(), 3), **named}) + "\n")

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """`images/NAME_STEP.png`, and TensorBoard's image NAME."""
        if not self.enabled:
            return
        (self.images / f"{name}_{step:07d}.png").write_bytes(pictures.png(image))
        self.files.board.add_image(name, image, step, dataformats="HWC")
        if self.tracker:
            self.tracker.picture(step, name, image)

    def commit(self) -> None:
        """What was told until now is in the workdir afterwards: a state that is saved then has all its lines."""
        if self.enabled:
            self.files.commit()

    def close(self) -> None:
        """Flushes."""
        if self.enabled:
            self.files.close()
        if self.tracker:
            self.tracker.close()
