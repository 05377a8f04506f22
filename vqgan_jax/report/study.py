"""The page of a study, and its lines in docs/results.md: the claim, every seed's figures, and how the verdict came."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from vqgan_jax.report import plots
from vqgan_jax.report.page import render
from vqgan_jax.studies import Comparison, Study, verdict
from vqgan_jax.studies.results import Record, variants, verdict_of

ARROW = {"higher": "↑", "lower": "↓", "none": ""}
Outcomes = Sequence[tuple[Comparison, verdict.Outcome]]


def page(
    study: Study,
    name: str,
    records: Sequence[Record],
    outcomes: Outcomes,
    *,
    failed: Mapping[str, str],
    notes: Sequence[str],
    sheets: Mapping[str, UInt8[np.ndarray, "_ _ 3"]],
) -> str:
    """Returns the page.

    Args:
      study: what was asked.
      name: of its page.
      records: of all runs that are finished.
      outcomes: of all comparisons, those that decide first.
      failed: why runs have no record, by their names.
      notes: what else a reader must know.
      sheets: pictures of the first seed of each run.
    """
    header, rows = table(study, records)
    values = variants(records)
    points = {
        figure: plots.points({variant: list(of[figure].values()) for variant, of in values.items() if figure in of},
                             axis=f"{figure} {ARROW[direction]}")
        for figure, direction in study.figures.items()
        if any(figure in of for of in values.values())
    }  # fmt: skip
    return render(
        "study.html",
        study=study,
        verdict=verdict_of(study, outcomes),
        test=verdict.TEST,
        tiles=tiles(study, records, outcomes),
        header=header,
        rows=rows,
        comparisons=[comparison_row(study, i, *pair) for i, pair in enumerate(outcomes)],
        points=points,
        curves=curves(study, records),
        runs=[run_row(record) for record in sorted(records, key=lambda r: (list(study.runs).index(r.run), r.seed))],
        failed=failed,
        notes=[note for note in (study.notes, *notes) if note],
        sheets=sheets,
        command=f"vqgan study {name} --workdir=studies",
    )


def tiles(study: Study, records: Sequence[Record], outcomes: Outcomes) -> list[tuple[str, str, str, str]]:
    """Returns the figures to be read first: the verdict, and each statement that decides."""
    minutes = sum(record.minutes for record in records)
    first = [("Verdict", verdict_of(study, outcomes), "", f"{len(records)} runs, {minutes / 60:.1f} hours of steps")]
    decisive = outcomes[: min(len(study.decides), 5)]
    return first + [
        (c.figure, signed(o.mean), "", f"advantage of {c.better} over {c.than}: {o.verdict}") for c, o in decisive
    ]


def table(study: Study, records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the figures: mean and spread over seeds, a row for each variant."""
    values, figures = variants(records), list(study.figures)
    header = ["variant", "seeds", *(f"{figure} {ARROW[study.figures[figure]]}".strip() for figure in figures)]
    order = {name: i for i, name in enumerate(study.runs)}
    names = sorted(values, key=lambda name: order[name.partition(", ")[0]])
    rows = []
    for variant in names:
        of = values[variant]
        shown = [figure for figure in figures if figure in of]
        if shown:
            seeds = max(len(of[figure]) for figure in shown)
            rows.append([variant, str(seeds), *(cell(of.get(figure, {})) for figure in figures)])
    return header, rows


def cell(values: Mapping[int, float]) -> str:
    """Returns mean and spread over seeds, with as many digits as the spread has meaning."""
    if not values:
        return "—"
    numbers = list(values.values())
    mean = float(np.mean(numbers))
    if len(numbers) < 2:
        return f"{mean:.4g}"
    spread = float(np.std(numbers, ddof=1))
    digits = max(0, 1 - math.floor(math.log10(spread))) if spread > 0 else 3
    return f"{mean:.{min(digits, 6)}f} ± {spread:.{min(digits, 6)}f}"


def signed(value: float) -> str:
    """Returns a number with its sign; a dash for none."""
    return f"{value:+.3g}" if math.isfinite(value) else "—"


def comparison_row(study: Study, index: int, comparison: Comparison, outcome: verdict.Outcome) -> tuple[str, ...]:
    """Returns a row of the table of comparisons."""
    decides = "decides" if index < len(study.decides) else "also"
    text = f"{comparison.better} better than {comparison.than}"
    interval = f"{signed(outcome.low)} to {signed(outcome.high)}" if math.isfinite(outcome.low) else "—"
    return (
        text,
        comparison.figure,
        decides,
        signed(outcome.mean),
        signed(outcome.spread).lstrip("+"),
        interval,
        f"{outcome.p:.2g}" if math.isfinite(outcome.p) else "—",
        f"{sum(value > 0 for value in outcome.advantages)} of {len(outcome.advantages)}",
        outcome.verdict,
    )


COMPARED = ("statement", "figure", "", "mean advantage", "spread", "95% interval", "p", "seeds in favour", "verdict")


def sentence(comparison: Comparison, outcome: verdict.Outcome) -> str:
    """Returns a comparison and its outcome in a line."""
    interval = f", 95% {signed(outcome.low)} to {signed(outcome.high)}" if math.isfinite(outcome.low) else ""
    text = f"{comparison.better} better than {comparison.than} by {comparison.figure}"
    return f"{text}: {outcome.verdict} (mean advantage {signed(outcome.mean)}{interval})"


def run_row(record: Record) -> tuple[Any, ...]:
    """Returns a row of the table of runs."""
    return (record.run, str(record.seed), f"{record.steps:,}", f"{record.minutes:.1f}", f"{record.cpu_minutes:.1f}",
            f"{record.peak_gib:.1f}", record.commit or "—", record.machine)  # fmt: skip


def curves(study: Study, records: Sequence[Record]) -> dict[str, str]:
    """Returns plots of the held-out figures over the steps, a line for each run's first seed."""
    first: dict[str, Record] = {}
    for record in sorted(records, key=lambda r: r.seed):
        first.setdefault(record.run, record)
    names = list(dict.fromkeys(name for record in first.values() for name in record.curve))
    shown = [name for name in names if name in study.figures or name in ("nll", "lpips", "psnr")]
    plotted = {}
    for name in shown:
        lines = [
            plots.Line(run, *zip(*record.curve[name], strict=True))
            for run, record in first.items()
            if name in record.curve
        ]
        if any(len(line.x) > 1 for line in lines):
            plotted[name] = plots.curves(lines)
    return plotted


def sheet_of(workdir: epath.Path) -> UInt8[np.ndarray, "_ _ 3"] | None:
    """Returns the last sheet that a run drew while it trained; None where there is none."""
    files = sorted((workdir / "images").glob("*.png")) if (workdir / "images").is_dir() else []
    if not files:
        return None
    last = files[-1].name.rpartition("_")[2]
    file = next(file for file in files if file.name.endswith(last))
    return np.asarray(Image.open(io.BytesIO(file.read_bytes())).convert("RGB"))


def markdown(studies: Sequence[tuple[str, Study, Sequence[Record], Outcomes]]) -> str:
    """Returns docs/results.md: the verdicts, then each study with its figures."""
    lines = [HEAD, *verdicts(studies, "")]
    for name, study, records, outcomes in studies:
        lines += ["", f"## {name}", "", study.question, "", f"    vqgan study {name} --workdir=studies", ""]
        lines += [f"Claim: {study.claim}", ""]
        if study.published:
            lines += ["Published:", "", *rows_of(study.header, study.published), ""]
        header, rows = table(study, records)
        lines += ["Here, mean ± standard deviation over seeds:", "", *rows_of(header, rows), ""]
        minutes, commits = sum(record.minutes for record in records), sorted({r.commit for r in records if r.commit})
        compared = [comparison_row(study, i, *pair) for i, pair in enumerate(outcomes)]
        lines += [
            f"Verdict: **{verdict_of(study, outcomes)}**, by a {verdict.TEST}.",
            "",
            *rows_of(COMPARED, compared),
            "",
        ]
        lines += [study.notes, ""] if study.notes else []
        lines += [f"{len(records)} runs, {minutes / 60:.1f} hours of steps, at {', '.join(commits) or 'no commit'}."]
    return "\n".join(lines) + "\n"


def verdicts(studies: Sequence[tuple[str, Study, Sequence[Record], Outcomes]], document: str) -> list[str]:
    """Returns the table of claims and verdicts, whose links lead into a document."""
    rows = [
        (f"[{name}]({document}#{name})", study.claim, f"**{verdict_of(study, outcomes)}**")
        for name, study, _, outcomes in studies
    ]
    return rows_of(("study", "claim", "verdict"), rows) if rows else ["No results are committed yet."]


def insert(text: str, studies: Sequence[tuple[str, Study, Sequence[Record], Outcomes]], document: str) -> str:
    """Returns a text with the table of verdicts between its lines `MARKS`."""
    before, _, rest = text.partition(MARKS[0] + "\n")
    after = rest.partition(MARKS[1])[2]
    return before + "\n".join([MARKS[0], *verdicts(studies, document), MARKS[1]]) + after


def rows_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns a table in markdown."""
    row = lambda cells: "| " + " | ".join(cells) + " |"
    return [row(header), "|" + "---|" * len(header), *map(row, rows)]


MARKS = ("<!-- studies -->", "<!-- end of studies -->")
HEAD = """# Results: every claim a study, and its verdict

This page is written by `vqgan study --summary=docs/results.md` from `experiments/results`, and a test compares the two.
A study runs each variant with several seeds and compares them seed by seed; "holds" means that the 95% interval of the
mean advantage lies above zero for every statement that decides. All runs are of small models on two CPU cores: what
does not hold here may hold at the published size.
"""
