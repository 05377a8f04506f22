"""Metrics of a run: averaged over a window of steps, written as JSON lines and for TensorBoard."""

import json
import time
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int, UInt8
from tensorboardX import SummaryWriter

from vqgan_jax import pictures


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


class Writer:
    """Writes `metrics.jsonl`, `images/*.png` and TensorBoard events in a workdir; on all processes but 0, nothing.

    What was written after step `resume_from`, by a run that was killed before its next checkpoint, is dropped: the
    same steps come again. `kept` and `dropped` are the lines of both kinds.
    """

    def __init__(self, workdir: epath.Path, *, resume_from: int, enabled: bool) -> None:
        self.enabled, self.kept, self.dropped = enabled, [], []
        if not enabled:
            return
        self.lines, self.images = workdir / "metrics.jsonl", workdir / "images"
        self.images.mkdir(parents=True, exist_ok=True)
        for line in self.read(self.lines):
            (self.kept if line["step"] <= resume_from else self.dropped).append(line)
        self.lines.write_text("".join(json.dumps(line) + "\n" for line in self.kept))
        self.board = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_from + 1)

    @staticmethod
    def read(path: epath.Path) -> list[dict[str, Any]]:
        """The lines of a metrics file; a last line cut off by a kill is left out."""
        lines = path.read_text().splitlines() if path.exists() else []
        whole = [line for line in lines if line.startswith("{") and line.endswith("}")]
        return [json.loads(line) for line in whole]

    def scalars(self, step: int, prefix: str, values: dict[str, float]) -> None:
        """One line, `{"step": ..., "time": ..., "train/rec_loss": ...}`, and one point a curve."""
        if not self.enabled:
            return
        named = {f"{prefix}/{name}": value for name, value in values.items()}
        with self.lines.open("a") as file:
            file.write(json.dumps({"step": step, "time": round(time.time(), 3), **named}) + "\n")
        for name, value in named.items():
            self.board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """`images/NAME_STEP.png`, and TensorBoard's image NAME."""
        if not self.enabled:
            return
        (self.images / f"{name}_{step:07d}.png").write_bytes(pictures.png(image))
        self.board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Flushes."""
        if self.enabled:
            self.board.close()
