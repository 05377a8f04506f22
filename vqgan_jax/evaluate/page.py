"""The pages of an evaluation: figures with their protocol, and what they were measured on, to look at."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from vqgan_jax import pictures, report
from vqgan_jax.evaluate.record import Result

Images = UInt8[np.ndarray, "n H W 3"]
SHOWN = {  # fields of the protocol, in the order of a page
    "subject": "judged", "subject_count": "how many", "subject_fingerprint": "fingerprint of their pixels",
    "reference": "reference", "reference_count": "how many", "reference_fingerprint": "fingerprint of their pixels",
    "resize": "resize and crop", "rounding": "rounding", "model": "model", "step": "step", "weights": "weights",
    "sampling": "sampling", "seed": "seed", "versions": "versions",
}  # fmt: skip


def page(title: str, lead: str, results: Sequence[Result], sections: Sequence[report.Html], command: str) -> str:
    """The document: the first figures as its headline, all of them, then `sections`, then the protocol."""
    arrow = {"higher": "higher is better", "lower": "lower is better", "none": ""}
    headline = [
        (result.metric, report.number(result.value), unit_of(result), arrow[result.better])
        for result in first_of_each(results)[:6]
    ]
    return report.page(
        title,
        lead,
        figures(results),
        *sections,
        protocol(results),
        report.section("Again", "The command that made this page.", report.commands([command])),
        headline=headline,
    )


def first_of_each(results: Sequence[Result]) -> list[Result]:
    """Each metric once: of several settings the first one's."""
    return list({result.metric: result for result in reversed(results)}.values())[::-1]


def unit_of(result: Result) -> str:
    """Empty for a plain number."""
    return "" if result.unit == "none" else result.unit


def figures(results: Sequence[Result]) -> report.Html:
    """Every figure with its definition; of several settings only the first one's."""
    rows = [
        [
            result.metric,
            f"{result.value:.6g}",
            unit_of(result) or "—",
            {"higher": "↑", "lower": "↓", "none": "—"}[result.better],
            result.variant,
            f"{result.network} {result.network_hash}" if result.network != "none" else "—",
        ]
        for result in first_of_each(results)
    ]
    return report.section(
        "Figures",
        "An arrow up means that higher is better. A number at a metric's end is that of the images: figures of unequal "
        "numbers are not compared. Of several settings of drawing these are the first one's.",
        report.table(rows, ["metric", "value", "unit", "better", "definition", "weights of the network"]),
    )


def by_setting(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table: a row for each setting that was swept, a column for each metric of samples."""
    swept, drawn = swept_settings(results), [result for result in results if result.sampling]
    metrics = list(dict.fromkeys(result.metric for result in drawn))
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for result in drawn:
        setting = tuple(str(result.sampling[name]) for name in swept)
        rows.setdefault(setting, {})[result.metric] = f"{result.value:.5g}"
    return [*swept, *metrics], [[*setting, *(row[metric] for metric in metrics)] for setting, row in rows.items()]


def swept_settings(results: Sequence[Result]) -> list[str]:
    """Names of the sampling settings that are not the same for all results that have them."""
    found: dict[str, set[str]] = {}
    for result in results:
        for name, value in result.sampling.items():
            found.setdefault(name, set()).add(repr(value))
    return [name for name, values in found.items() if len(values) > 1]


def protocol(results: Sequence[Result]) -> report.Html:
    """What the results have in common, and where they differ each of the values."""

    def told(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {setting}" for name, setting in value.items()) or "none"
        return f"{value:,}" if isinstance(value, int) else value

    rows = []
    for field, name in SHOWN.items():
        first, *others = dict.fromkeys(told(getattr(result, field)) for result in results)
        more = f" | and {len(others) - 2} more, see evaluation.json" if len(others) > 2 else ""
        rows.append((name, " | ".join([first, *others[:2]]) + more))
    return report.section("Protocol", "A number without it is not one.", report.table(rows, ["what", "how"]))


def reconstructions(shown: Mapping[str, tuple[Images, Images, Float[np.ndarray, "n"]]]) -> report.Html:
    """Originals beside their reconstructions: the best, the middle and the worst of all by LPIPS."""
    strips = []
    for kind, (originals, recons, distances) in shown.items():
        pairs = [image for pair in zip(originals, recons, strict=True) for image in pair]
        labels = [text for distance in distances for text in ("original", f"LPIPS {distance:.3f}")]
        alt = f"{kind} reconstructions"
        strips.append(report.strip(np.stack(pairs), name=kind, alt=alt, labels=labels, scale=scale_of(originals)))
    text = "Of all images, those with the lowest, the middle and the highest LPIPS."
    return report.section("Best, median and worst", text, *strips)


def codes(hits: Int[np.ndarray, "k"]) -> report.Html:
    """How evenly the codebook is used."""
    share = 100 * np.sort(hits)[::-1] / max(hits.sum(), 1)
    bars = report.bars(
        share, title="Share of the hits, most used first", unit="%", axis="code", reference=("uniform", 100 / len(hits))
    )
    text = f"{np.sum(hits > 0):,} of {len(hits):,} codes, in {hits.sum():,} positions of all images."
    return report.section("Codes", text, bars)


def spread(values: Float[np.ndarray, "n"], title: str, unit: str) -> report.Html:
    """Quantiles of one metric over the images."""
    levels = np.array([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
    rows = [
        (f"{100 * level:.0f} %", float(value)) for level, value in zip(levels, np.quantile(values, levels), strict=True)
    ]
    return report.section(title, report.table(rows, ["share of images below", unit]))


def scale_of(images: Images) -> int:
    """Small pictures are shown at two to four times their size."""
    return max(1, min(4, 128 // images.shape[2]))


def samples(rows: Mapping[str, Images]) -> report.Html:
    """The first samples of each setting, by its name."""
    figures = [
        report.figure(pictures.grid(images, columns=8), caption=name, alt=f"samples, {name}", scale=scale_of(images))
        for name, images in rows.items()
    ]
    text = "The first of each setting, not chosen; classes take turns."
    return report.section("Samples", text, report.beside(*figures, width=24))


def classes(rows: Sequence[tuple[str, int, float, int, float]]) -> report.Html:
    """Likelihood and obedience by class."""
    header = ["class", "held out", "nats a token", "samples", "of own class"]
    text = "Own class: the real image nearest to the sample by LPIPS, of up to 16 a class, is of its class."
    return report.section("Classes", text, report.table(rows, header))


def neighbours(
    samples: Images, found: Images, distances: Float[np.ndarray, "n m"], held_out: Float[np.ndarray, "_"]
) -> report.Html:
    """Each sample beside the training images nearest to it by LPIPS; `found` (n*m H W 3) holds these in turn."""
    near = found.reshape(len(samples), -1, *found.shape[1:])
    strips = [
        report.strip(
            np.concatenate([sample[None], row]), name=f"sample {i + 1}", alt=f"sample {i + 1} and its neighbours",
            labels=["sample", *(f"{value:.3f}" for value in values)], scale=scale_of(samples),
        )
        for i, (sample, row, values) in enumerate(zip(samples, near, distances, strict=True))
    ]  # fmt: skip
    text = (
        "Each sample, then the training images nearest to it with their LPIPS; a copy would be near 0. The nearest "
        f"of each sample is at {told(distances[:, 0])}, that of each of as many held-out images at {told(held_out)}."
    )
    return report.section("Nearest training images", text, report.beside(*strips, width=20))


def told(values: Float[np.ndarray, "n"]) -> str:
    """Middle and lowest of some distances."""
    return f"{np.median(values):.3f} in the middle and {np.min(values):.3f} at least"


def tradeoff(results: Sequence[Result]) -> report.Html:
    """Each metric over the setting that was swept last, a line for each combination of the others."""
    *others, last = swept_settings(results)
    charts = []
    for metric in dict.fromkeys(result.metric for result in results if result.sampling):
        lines: dict[str, list[tuple[float, float]]] = {}
        for result in results:
            if result.metric == metric:
                name = ", ".join(f"{other} {result.sampling[other]}" for other in others) or metric
                lines.setdefault(name, []).append((float(result.sampling[last]), result.value))
        curves = [report.Curve(name, *zip(*sorted(points), strict=True)) for name, points in lines.items()]
        charts.append(report.chart(curves, title=metric, axis=last))
    text = f"Every line is one setting of {', '.join(others) or 'everything else'}; along it {last} changes."
    header, rows = by_setting(results)
    return report.section("Trade-off", text, report.beside(*charts), report.table(rows, header))
