"""The page of `vqgan evaluate`: figures with their protocol, and what they were measured on, to look at."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int, UInt8

from vqgan_jax.evaluate.protocol import Result, swept_settings
from vqgan_jax.report import plots
from vqgan_jax.report.page import number, render

Images = UInt8[np.ndarray, "_n _H _W 3"]
PROTOCOL = {  # fields of a result, in the order of the page
    "subject": "measured",
    "subject_count": "how many",
    "subject_fingerprint": "fingerprint of their pixels",
    "reference": "reference",
    "reference_count": "how many",
    "reference_fingerprint": "fingerprint of their pixels",
    "resize": "resize and crop",
    "rounding": "rounding",
    "model": "model",
    "step": "step",
    "weights": "weights",
    "sampling": "sampling",
    "seed": "seed",
    "versions": "versions",
}
# Settings of sampling trade one of these metrics for the other; their names end in the network and the count.
TRADED = {"precision": "recall", "density": "coverage", "fid": "inception_score"}


def page(
    title: str,
    lead: str,
    results: Sequence[Result],
    command: str,
    *,
    recons: Mapping[str, tuple[Images, Images, Float[np.ndarray, "_n"]]] | None = None,
    hits: Int[np.ndarray, "k"] | None = None,
    distances: Float[np.ndarray, "_n"] | None = None,
    samples: Mapping[str, Images] | None = None,
    classes: Sequence[tuple[str, int, float, int, float]] = (),
    judge: str = "",
    neighbours: tuple[Images, Images, Float[np.ndarray, "_n _m"], Float[np.ndarray, "_"]] | None = None,
) -> str:
    """Returns the page: figures, what the models made, and the protocol. A section without its values is left out.

    Args:
      title: of the page.
      lead: what was measured, in a sentence.
      results: all figures; the first ones are also its headline.
      command: that made the page.
      recons: by "best", "median" and "worst": originals, reconstructions and their LPIPS.
      hits: how often each code was used.
      distances: LPIPS of every image.
      samples: the first ones of each setting, by its name.
      classes: rows of name, held-out examples, nats a token, samples, share of own class.
      judge: what "own class" means in `classes`, in words.
      neighbours: samples, the training images nearest to each in turn, their LPIPS, and what held-out images have.
    """
    first = first_of_each(results)
    note = {"higher": "higher is better", "lower": "lower is better", "none": ""}
    return render(
        "evaluation.html",
        title=title,
        lead=lead,
        command=command,
        tiles=[(r.metric, number(r.value), unit_of(r), note[r.better]) for r in first[:6]],
        figures=figures(first),
        protocol=protocol(results),
        sweep=sweep(results),
        recons=side_by_side(recons or {}),
        codes=None if hits is None else plots.codes(hits),
        hits=hits,
        distances=None if distances is None else plots.histogram(distances, axis="LPIPS"),
        quantiles=None if distances is None else quantiles(distances),
        samples=samples or {},
        scale_of=scale_of,
        classes=classes,
        judge=judge,
        neighbours=None if neighbours is None else nearest(*neighbours),
    )


def first_of_each(results: Sequence[Result]) -> list[Result]:
    """Returns each metric once: of several settings the first one's."""
    return list({result.metric: result for result in reversed(results)}.values())[::-1]


def unit_of(result: Result) -> str:
    """Returns the unit, empty for a plain number."""
    return "" if result.unit == "none" else result.unit


def figures(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """Returns a row for each figure: metric, value, unit, direction, definition, and its network's weights."""
    arrow = {"higher": "↑", "lower": "↓", "none": "—"}
    network = lambda r: f"{r.network} {r.network_hash}" if r.network != "none" else "—"
    return [(r.metric, f"{r.value:.6g}", unit_of(r) or "—", arrow[r.better], r.variant, network(r)) for r in results]


def by_setting(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of a table: a row for each swept setting, a column for each metric of samples."""
    swept, drawn = swept_settings(results), [result for result in results if result.sampling]
    metrics = list(dict.fromkeys(result.metric for result in drawn))
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for result in drawn:
        setting = tuple(str(result.sampling[name]) for name in swept)
        rows.setdefault(setting, {})[result.metric] = f"{result.value:.5g}"
    return [*swept, *metrics], [[*setting, *(row[metric] for metric in metrics)] for setting, row in rows.items()]


def protocol(results: Sequence[Result]) -> list[tuple[str, str]]:
    """Returns what the results have in common, and where they differ each of the values."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{name} {setting}" for name, setting in value.items()) or "none"
        return f"{value:,}" if isinstance(value, int) else value

    rows = []
    for field, name in PROTOCOL.items():
        first, *others = dict.fromkeys(text(getattr(result, field)) for result in results)
        more = f" | and {len(others) - 2} more, see evaluation.json" if len(others) > 2 else ""
        rows.append((name, " | ".join([first, *others[:2]]) + more))
    return rows


def sweep(results: Sequence[Result]) -> dict[str, Any] | None:
    """Returns each metric over the setting that was swept last, metrics against each other, and the table of all."""
    swept = swept_settings(results)
    if not swept:
        return None
    *others, last = swept
    groups: dict[str, dict[str, list[Result]]] = {}  # by metric, then by the settings that stay along a line
    for result in results:
        if result.sampling:
            name = ", ".join(f"{other} {result.sampling[other]}" for other in others) or "samples"
            groups.setdefault(result.metric, {}).setdefault(name, []).append(result)
    for lines in groups.values():
        for line in lines.values():
            line.sort(key=lambda result: float(result.sampling[last]))
    setting = lambda line: [float(result.sampling[last]) for result in line]
    values = lambda line: [result.value for result in line]
    over = {
        metric: plots.curves([plots.Line(name, setting(line), values(line)) for name, line in lines.items()], axis=last)
        for metric, lines in groups.items()
    }
    against = {}
    for start, metric in ((start, metric) for start in TRADED for metric in groups if metric.startswith(start)):
        other = TRADED[start] + metric.removeprefix(start)
        if other in groups:
            lines = [
                plots.Line(name, values(groups[other][name]), values(line)) for name, line in groups[metric].items()
            ]
            marks = [[f"{value:g}" for value in setting(line)] for line in groups[metric].values()]
            against[f"{metric} against {other}"] = plots.tradeoff(lines, marks, x=other, y=metric)
    header, rows = by_setting(results)
    return {"others": others, "last": last, "over": over, "against": against, "header": header, "rows": rows}


def side_by_side(
    recons: Mapping[str, tuple[Images, Images, Float[np.ndarray, "_n"]]],
) -> list[tuple[str, Images, list[str], int]]:
    """Returns rows of a kind's name, originals and reconstructions by turns, their labels, and at which scale."""
    rows = []
    for kind, (originals, decoded, distances) in recons.items():
        images = rearrange([originals, decoded], "two n h w c -> (n two) h w c")
        labels = [text for distance in distances for text in ("original", f"LPIPS {distance:.3f}")]
        rows.append((kind, images, labels, scale_of(originals)))
    return rows


def quantiles(values: Float[np.ndarray, "n"]) -> list[tuple[str, float]]:
    """Returns shares of the values, and what they are below."""
    levels = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
    return [(f"{100 * level:.0f} %", float(np.quantile(values, level))) for level in levels]


def nearest(
    samples: Images, neighbours: Images, distances: Float[np.ndarray, "n m"], held_out: Float[np.ndarray, "_"]
) -> dict[str, Any]:
    """Returns rows of a sample with the images nearest to it, labels and scale; and in words how near they are."""
    near = neighbours.reshape(len(samples), -1, *neighbours.shape[1:])
    words = lambda values: f"{np.median(values):.3f} in the middle and {np.min(values):.3f} at least"
    return {
        "rows": [
            (np.concatenate([sample[None], row]), ("sample", *(f"{value:.3f}" for value in values)), scale_of(row))
            for sample, row, values in zip(samples, near, distances, strict=True)
        ],
        "samples": words(distances[:, 0]),
        "held_out": words(held_out),
    }


def scale_of(images: Images) -> int:
    """Returns 1 to 4: small pictures are shown larger."""
    return max(1, min(4, 128 // images.shape[2]))
