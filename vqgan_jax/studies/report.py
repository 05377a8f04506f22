"""The page of a study, and its lines in docs/results.md: the claim, every seed's figures, and how the verdict came."""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from vqgan_jax.report import plots
from vqgan_jax.report.page import render
from vqgan_jax.studies.page import Comparison
from vqgan_jax.studies.results import Record, Results
from vqgan_jax.studies.verdict import Outcome

ARROW = {"higher": "↑", "lower": "↓", "none": ""}
SHOWN = ("nll", "lpips", "psnr")  # curves that are shown beside those of the study's figures


def page(
    results: Results,
    *,
    failed: Mapping[str, str],
    notes: Sequence[str],
    sheets: Mapping[str, UInt8[np.ndarray, "_ _ 3"]],
) -> str:
    """Returns the page.

    Args:
      results: of the study.
      failed: why runs have no record, by their names.
      notes: what else a reader must know.
      sheets: pictures of the first seed of each run.
    """
    study = results.study
    header, rows = table(results)
    points = {}
    for figure, direction in study.figures.items():
        dots = {variant: list(of[figure].values()) for variant, of in results.values.items() if figure in of}
        if dots:
            points[figure] = plots.points(dots, axis=f"{figure} {ARROW[direction]}")
    return render(
        "study.html",
        study=study,
        verdict=results.verdict,
        test=results.test,
        tiles=tiles(results),
        header=header,
        rows=rows,
        compared=COMPARED,
        comparisons=comparisons(results),
        points=points,
        curves=curves(results),
        runs=[run_row(record) for record in results.records],
        failed=failed,
        notes=[note for note in (study.notes, *notes) if note],
        sheets=sheets,
        command=f"vqgan study {results.name} --workdir=studies",
    )


def tiles(results: Results) -> list[tuple[str, str, str, str]]:
    """Returns the figures to be read first: the verdict, and the statements that decide, up to five."""
    decisive = results.outcomes[: min(len(results.study.decides), 5)]
    return [
        ("Verdict", results.verdict, "", effort(results.records)),
        *((c.figure, signed(o.mean), "", f"advantage of {c.better} over {c.than}: {o.verdict}") for c, o in decisive),
    ]


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the figures: mean and spread over seeds, a row for each variant."""
    figures = results.study.figures
    header = ["variant", "seeds", *(f"{figure} {ARROW[direction]}".strip() for figure, direction in figures.items())]
    rows = []
    for variant, of in results.values.items():
        counts = [len(of[figure]) for figure in figures if figure in of]
        if counts:
            rows.append([variant, str(max(counts)), *(cell(of.get(figure, {})) for figure in figures)])
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
    digits = max(0, 1 - math.floor(math.log10(spread))) if spread > 1e-6 * abs(mean) else 3  # else rounding alone
    return f"{mean:.{min(digits, 6)}f} ± {spread:.{min(digits, 6)}f}"


def signed(value: float) -> str:
    """Returns a number with its sign; a dash for none."""
    return f"{value:+.3g}" if math.isfinite(value) else "—"


COMPARED = (
    "statement",
    "figure",
    "part",
    "mean advantage",
    "spread",
    "95% interval",
    "p",
    "seeds in favour",
    "verdict",
)


def comparisons(results: Results) -> list[tuple[str, ...]]:
    """Returns rows of the comparisons, under `COMPARED`."""
    rows = []
    for place, (comparison, outcome) in enumerate(results.outcomes):
        rows.append(
            (
                statement(comparison),
                comparison.figure,
                "decides" if place < len(results.study.decides) else "also",
                signed(outcome.mean),
                signed(outcome.spread).lstrip("+"),
                f"{signed(outcome.low)} to {signed(outcome.high)}" if math.isfinite(outcome.low) else "—",
                f"{outcome.p:.2g}" if math.isfinite(outcome.p) else "—",
                f"{sum(value > comparison.margin for value in outcome.advantages)} of {len(outcome.advantages)}",
                outcome.verdict.partition(" by ")[0],  # by so many seeds as the column before says
            )
        )
    return rows


def statement(comparison: Comparison) -> str:
    """Returns what a comparison states, without its figure."""
    better, than, margin = comparison.better, comparison.than, comparison.margin
    if margin < 0:
        return f"{better} at most {-margin:g} worse than {than}"
    return f"{better} better than {than}" + (f", by more than {margin:g}" if margin else "")


def sentence(comparison: Comparison, outcome: Outcome) -> str:
    """Returns a comparison and its outcome in a line."""
    interval = f", 95% {signed(outcome.low)} to {signed(outcome.high)}" if math.isfinite(outcome.low) else ""
    text = f"{statement(comparison)} by {comparison.figure}"
    return f"{text}: {outcome.verdict} (mean advantage {signed(outcome.mean)}{interval})"


def effort(records: Sequence[Record]) -> str:
    """Returns how many runs there are, and by the clock how long their trainings took, which runs may share."""
    trainings = {(record.key, record.tokenizer, record.seed): record.minutes for record in records}
    shared = f" of {len(trainings)} trainings" if len(trainings) < len(records) else ""
    return f"{len(records)} runs{shared}, {sum(trainings.values()) / 60:.1f} hours of steps by the clock"


def run_row(record: Record) -> tuple[str, ...]:
    """Returns a row of the table of runs."""
    times = (f"{record.minutes:.1f}", f"{record.cpu_minutes:.1f}", f"{record.peak_gib:.1f}")
    return (record.run, str(record.seed), f"{record.steps:,}", *times, record.commit or "—", record.machine)


def curves(results: Results) -> dict[str, str]:
    """Returns plots of the held-out figures over the steps, a line for each run's first seed."""
    first: dict[str, Record] = {}
    for record in results.records:
        first.setdefault(record.run, record)
    plotted = {}
    for name in dict.fromkeys(name for record in first.values() for name in record.curve):
        lines = []
        for run, record in first.items():
            if len(record.curve.get(name, ())) > 1:
                steps, values = zip(*record.curve[name], strict=True)
                lines.append(plots.Line(run, steps, values))
        if lines and name in (*results.study.figures, *SHOWN):
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


def markdown(studies: Sequence[Results]) -> str:
    """Returns docs/results.md of several studies: the verdicts, then each study with its figures."""
    lines = [HEAD, *verdicts(studies, "")]
    for results in studies:
        study, (header, rows) = results.study, table(results)
        commits = sorted({record.commit for record in results.records if record.commit})
        lines += ["", f"## {results.name}", "", study.question, "", f"    vqgan study {results.name} --workdir=studies"]
        lines += ["", f"Claim: {study.claim}", ""]
        if study.published:
            lines += ["Published:", "", *rows_of(study.header, study.published), ""]
        lines += ["Here, mean ± standard deviation over seeds:", "", *rows_of(header, rows), ""]
        lines += [f"Verdict: **{results.verdict}**, by a {results.test}.", ""]
        lines += [*rows_of(COMPARED, comparisons(results)), ""]
        lines += [study.notes, ""] if study.notes else []
        lines += [f"{effort(results.records)}, measured at {', '.join(commits) or 'no commit'}."]
    return "\n".join(lines) + "\n"


def verdicts(studies: Sequence[Results], document: str) -> list[str]:
    """Returns the table of claims and verdicts, whose links lead into a document."""
    rows = [(f"[{r.name}]({document}#{r.name})", r.study.claim, f"**{r.verdict}**") for r in studies]
    return rows_of(("study", "claim", "verdict"), rows) if rows else ["No results are committed yet."]


def insert(text: str, studies: Sequence[Results], document: str) -> str:
    """Returns a text with a table of the verdicts and their studies between the lines `MARKS`."""
    before, _, rest = text.partition(MARKS[0] + "\n")
    after = rest.partition(MARKS[1])[2]
    by_verdict: dict[str, list[str]] = {}
    for r in sorted(studies, key=lambda r: r.verdict):
        by_verdict.setdefault(r.verdict, []).append(f"[{r.name}]({document}#{r.name})")
    lines = rows_of(("studies", "verdict"), [(", ".join(names), f"**{v}**") for v, names in by_verdict.items()])
    return before + "\n".join([MARKS[0], *lines, MARKS[1]]) + after


def rows_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns a table in markdown."""
    row = lambda cells: "| " + " | ".join(cells) + " |"
    return [row(header), "|" + "---|" * len(header), *map(row, rows)]


MARKS = ("<!-- studies -->", "<!-- end of studies -->")
HEAD = """# Results: every claim a study, and its verdict

This page is written by `vqgan study --summary=docs/results.md` from `experiments/results`, and a test compares the two.
A study runs each variant with several seeds and compares them seed by seed. A statement holds if the 95% interval of
the mean advantage lies above zero, or above the margin that it names. It does not hold if the interval lies below, at a
level that is divided by the number of the statements that decide. A claim holds if all of these do, and does not hold
if one does not. All runs are of small models on two CPU cores: what does not hold here may hold at the published size.
"""
