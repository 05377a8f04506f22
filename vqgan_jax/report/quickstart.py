"""The page of `vqgan quickstart`: what both models learned, and every figure with how it was measured."""

import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8

from vqgan_jax.report import plots
from vqgan_jax.report.page import number, render, title

Metrics = Sequence[dict[str, Any]]  # the lines of a run's metrics.jsonl


@dataclasses.dataclass(frozen=True)
class Results:
    """Pictures and figures of both trained models.

    Attributes:
      names: of the classes.
      grid: rows and columns of an image's codes.
      originals, recons: every held-out crop.
      labels: the class of each.
      hits: how often each code was used for these.
      shown: the first held-out crop of each class.
      samples: equally many of each class, class by class.
      completed: three completions of each crop in `shown`.
      own_class: share of the samples whose nearest photograph is of their class.
      own_class_real: the same of the held-out crops.
      seconds: of each step of the work.
      peak_gib: memory.
    """

    names: tuple[str, ...]
    grid: tuple[int, int]
    originals: UInt8[np.ndarray, "n H W 3"]
    recons: UInt8[np.ndarray, "n H W 3"]
    labels: Int[np.ndarray, "n"]
    hits: Int[np.ndarray, "k"]
    shown: Int[np.ndarray, "_"]
    samples: UInt8[np.ndarray, "_n H W 3"]
    completed: UInt8[np.ndarray, "_n H W 3"]
    own_class: float
    own_class_real: float
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    peak_gib: float = 0.0


def page(plan: Any, results: Results, tokenizer: Metrics, prior: Metrics) -> str:
    """Returns the page of a `quickstart.Quickstart` that was carried out, with the metrics of both runs."""
    last: dict[str, float] = {}
    for written in [*tokenizer, *prior]:
        last |= {name.removeprefix("eval/"): value for name, value in written.items() if name.startswith("eval/")}
    completed = np.split(results.completed, len(results.names))
    return render(
        "quickstart.html",
        plan=plan,
        results=results,
        last=last,
        uniform_nats=np.log(len(results.hits)),
        uniform_bits=np.log2(len(results.hits)),
        plots=curves(tokenizer, prior)
        | {"codes": plots.codes(results.hits), "crops": plots.points(psnr_by_class(results), axis="PSNR in dB")},
        samples=np.split(results.samples, len(results.names)),
        completions=[
            np.stack([results.originals[i], prompt(results.originals[i]), *images])
            for i, images in zip(results.shown, completed, strict=True)
        ],
        version=importlib.metadata.version("vqgan-jax"),
        jax_version=jax.__version__,
        device=device(),
    )


def device() -> str:
    """Returns what this runs on, in a few words."""
    kind = jax.devices()[0].device_kind
    return f"{os.cpu_count()} CPU cores ({platform.machine()})" if kind == "cpu" else f"{jax.device_count()} x {kind}"


def curves(tokenizer: Metrics, prior: Metrics) -> dict[str, str]:
    """Returns the plots of both runs over their steps."""

    def plot(lines: Metrics, **metrics: str) -> str:
        return plots.curves([line(title(name), lines, metric) for name, metric in metrics.items()])

    return {
        "perceptual": plot(tokenizer, training="train/perceptual_loss", held_out="eval/lpips"),
        "psnr": plot(tokenizer, held_out="eval/psnr"),
        "adversarial": plot(tokenizer, discriminator="train/discriminator_loss", generator="train/generator_loss"),
        "nll": plot(prior, training="train/loss", held_out="eval/nll"),
    }


def line(name: str, lines: Metrics, metric: str) -> plots.Line:
    """Returns a metric over the steps at which it was written, its last value behind its name."""
    steps, values = [[line[key] for line in lines if metric in line] for key in ("step", metric)]
    return plots.Line(f"{name}: {number(values[-1])}" if values else name, steps, values)


def psnr_by_class(results: Results) -> dict[str, np.ndarray]:
    """Returns the PSNR of every held-out crop, by the name of its photograph."""
    squares = np.square(results.originals / 255.0 - results.recons / 255.0)
    psnr = -10 * np.log10(np.maximum(squares.mean(axis=(1, 2, 3)), 1e-10))
    return {title(name): psnr[results.labels == label] for label, name in enumerate(results.names)}


def prompt(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the image with its lower half grey: what the prior completes."""
    half = image.copy()
    half[len(half) // 2 :] = 128
    return half
