"""What `vqgan quickstart` found, as a page."""

import dataclasses
import importlib.metadata
import os
import platform
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8

from vqgan_jax import report
from vqgan_jax.train import metrics

Lines = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Results:
    """Pictures and figures of both trained models.

    Attributes:
      names: of the classes.
      grid: rows and columns of an image's codes.
      originals, recons: every held-out crop.
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
    hits: Int[np.ndarray, "k"]
    shown: Int[np.ndarray, "_"]
    samples: UInt8[np.ndarray, "_n H W 3"]
    completed: UInt8[np.ndarray, "_n H W 3"]
    own_class: float
    own_class_real: float
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    peak_gib: float = 0.0


def page(plan: Any, results: Results) -> str:
    """The page of a `quickstart.Plan` that was carried out."""
    one, two = (metrics.Writer.read(plan.workdir / name / "metrics.jsonl") for name in ("tokenizer", "prior"))
    last: dict[str, float] = {}
    for line in [*one, *two]:
        last |= {name: value for name, value in line.items() if name.startswith("eval/")}
    size, (h, w) = plan.tokenizer.data.image_size, results.grid
    return report.page(
        "Eleven photographs, learned from nothing",
        f"`vqgan quickstart` trained a VQGAN that writes {size} x {size} pixels as {h} x {w} codes, then a transformer "
        "that writes such codes by class. All pictures are held out or drawn by the models; none was chosen.",
        learning(plan, one, two),
        reconstructions(results),
        codes(results),
        samples(plan, results),
        completions(results),
        figures(plan, results, last),
        report.section("By hand", "The same in single steps.", report.commands(plan.commands)),
        headline=headline(results, last),
        foot=f"vqgan_jax {importlib.metadata.version('vqgan-jax')}, jax {jax.__version__} on {device()}, "
        f"seed {plan.tokenizer.seed}.",
    )


def device() -> str:
    """What this ran on, in a few words."""
    kind = jax.devices()[0].device_kind
    return f"{os.cpu_count()} CPU cores ({platform.machine()})" if kind == "cpu" else f"{jax.device_count()} x {kind}"


def title(name: str) -> str:
    """A class's name for people."""
    return name.replace("_", " ")


def headline(results: Results, last: dict[str, float]) -> list[report.Tile]:
    """The figures to be read first."""
    k, chance = len(results.hits), 100 / len(results.names)
    return [
        ("Reconstructions", f"{last['eval/psnr']:.1f}", "dB", "PSNR of parts that no step has seen"),
        ("LPIPS", f"{last['eval/lpips']:.3f}", "", "the same as eyes see it; lower is better"),
        ("Codes used", f"{100 * np.mean(results.hits > 0):.0f}", "%", f"of {k}, on these parts"),
        ("Prior", f"{last['eval/nll']:.2f}", "nats a token", f"held out; a blind guess costs {np.log(k):.2f}"),
        (
            "Own class",
            f"{100 * results.own_class:.0f}",
            "%",
            f"of {len(results.samples)} samples; chance {chance:.0f}%",
        ),
        ("Time", f"{sum(results.seconds.values()) / 60:.0f}", "min", f"on {device()}"),
        ("Memory", f"{results.peak_gib:.1f}", "GiB", "at its peak"),
    ]


def curve(lines: Lines, metric: str, name: str) -> report.Curve:
    """One metric over the steps."""
    points = [(line["step"], line[metric]) for line in lines if metric in line]
    return report.Curve(name, [step for step, _ in points], [value for _, value in points])


def learning(plan: Any, one: Lines, two: Lines) -> report.Html:
    """Curves of both stages."""
    pair = lambda lines, train, held: [curve(lines, train, "training"), curve(lines, held, "held out")]
    sides = [curve(one, f"train/{side}_loss", side) for side in ("discriminator", "generator")]
    return report.section(
        "Learning",
        "Training crops come from the left four fifths of each photograph, held-out ones from the rightmost fifth. "
        f"From step {plan.tokenizer.loss.disc_start} on the decoder also has a discriminator to convince.",
        report.beside(
            report.chart(pair(one, "train/perceptual_loss", "eval/lpips"), title="Perceptual distance", unit="LPIPS"),
            report.chart([curve(one, "eval/psnr", "held out")], title="Reconstruction", unit="dB"),
            report.chart(sides, title="The adversarial game", unit="hinge loss"),
            report.chart(pair(two, "train/loss", "eval/nll"), title="Prior", unit="nats a token"),
        ),
    )


def reconstructions(results: Results) -> report.Html:
    """One held-out crop of each photograph, beside what comes back."""
    (h, w), k = results.grid, len(results.hits)
    strips = [
        report.strip(
            np.stack([results.originals[i], results.recons[i]]),
            name=title(name),
            alt=f"held-out part of {title(name)}",
            labels=["original", f"from {h * w} codes"],
            scale=2,
        )
        for name, i in zip(results.names, results.shown, strict=True)
    ]
    return report.section(
        "Reconstructions",
        f"The first held-out crop of each photograph, beside what the decoder makes of {h} x {w} codes out of {k}.",
        report.beside(*strips, width=17),
    )


def codes(results: Results) -> report.Html:
    """How evenly the codebook is used."""
    share = 100 * np.sort(results.hits)[::-1] / results.hits.sum()
    uniform = ("uniform", 100 / len(share))
    return report.section(
        "Codes",
        "How often each code was the nearest, over all held-out crops. A codebook in full use stays near the dashed "
        "line; one that has collapsed is a spike at the left.",
        report.bars(share, title="Share of the hits, most used first", unit="%", axis="code", reference=uniform),
    )


def samples(plan: Any, results: Results) -> report.Html:
    """A row for each class."""
    s = plan.prior.sampling
    rows = zip(results.names, np.split(results.samples, len(results.names)), strict=True)
    strips = [report.strip(row, name=title(name), alt=f"sample of {title(name)}", scale=2) for name, row in rows]
    return report.section(
        "Samples",
        f"The first of each class: top-k {s.top_k}, temperature {s.temperature:g}, guidance {s.guidance:g}.",
        *strips,
    )


def completions(results: Results) -> report.Html:
    """Held-out crops whose lower half the prior wrote."""
    strips = []
    drawn = np.split(results.completed, len(results.names))
    for name, i, row in zip(results.names, results.shown, drawn, strict=True):
        given = results.originals[i].copy()
        given[len(given) // 2 :] = 128
        images, labels = [results.originals[i], given, *row], ["original", "given", *["completed"] * len(row)]
        alt = f"held-out part of {title(name)}"
        strips.append(report.strip(np.stack(images), name=title(name), alt=alt, labels=labels, scale=2))
    text = "The prior is given the codes of the upper half of a held-out crop and writes those of the lower half."
    return report.section("Completions", text, *strips)


def figures(plan: Any, results: Results, last: dict[str, float]) -> report.Html:
    """Everything that was measured, and how."""
    k, n, crops = len(results.hits), len(results.samples), f"{len(results.originals)} held-out crops"
    rows = [
        ("PSNR", f"{last['eval/psnr']:.2f} dB", f"{crops}, averaged weights, rounded to 8 bits"),
        ("LPIPS", f"{last['eval/lpips']:.4f}", "the same, on VGG16"),
        ("L1", f"{last['eval/l1']:.4f}", "the same, of values in [-1, 1]"),
        ("codes used", f"{100 * last['eval/codebook_usage']:.1f} %", f"of {k}, by the same crops"),
        ("perplexity of the codes", f"{last['eval/perplexity']:.0f}", f"{k} if all were as frequent"),
        ("validation NLL", f"{last['eval/nll']:.3f}", f"nats a token of {crops}; {np.log(k):.3f} if uniform"),
        ("bits a token", f"{last['eval/bits_per_token']:.3f}", f"{np.log2(k):.0f} if uniform"),
        ("own class", f"{100 * results.own_class:.1f} %", f"of {n} samples: nearest of 16 real crops a class by LPIPS"),
        ("own class, real", f"{100 * results.own_class_real:.1f} %", f"of {crops}: the same judge"),
        ("peak memory", f"{results.peak_gib:.2f} GiB", "resident"),
    ]
    times = [(name, f"{seconds / 60:.1f}") for name, seconds in results.seconds.items()]
    return report.section(
        "All figures", report.table(rows, ["figure", "value", "how"]), report.table(times, ["step", "minutes"])
    )
