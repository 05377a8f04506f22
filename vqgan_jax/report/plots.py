"""Draws plots as SVG for a page: no background, the page's own colours and font, in light and dark alike.

Each function returns one `<svg>` element as markup. Its text stays text, and a label tells what it shows in words.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Integer, Real
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from vqgan_jax.report.page import number

Numbers = Sequence[float | int] | Real[np.ndarray, " n"]

STYLE: Any = matplotlib.rc_params_from_file(
    str(Path(__file__).with_name("templates") / "plots.mplstyle"), use_default_template=False
)
INK, SOFT, RULE = STYLE["text.color"], STYLE["axes.labelcolor"], STYLE["grid.color"]
SERIES = STYLE["axes.prop_cycle"].by_key()["color"][:4]
# What matplotlib draws in these colours takes the colour of that name from the page's style sheet.
NAMES = {INK: "ink", SOFT: "soft", RULE: "rule"} | {color: f"s{i}" for i, color in enumerate(SERIES)}


class Line(NamedTuple):
    """A line of a plot: `y` over `x` (as many each, any order); a value that is not finite is a gap."""

    name: str
    x: Numbers
    y: Numbers


def curves(lines: Sequence[Line], *, axis: str = "step", marks: Mapping[str, float] | None = None) -> Markup:
    """Values over steps or another `axis`; at each mark of it stands a thin line with a name."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        for line in lines:
            axes.plot(line.x, line.y, marker="o" if len(line.x) <= 30 else "", label=_short(line.name))
        for name, at in (marks or {}).items():
            axes.axvline(at, color=SOFT, linestyle=":", linewidth=1.5, label=_short(name))
        axes.set_xlabel(axis)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _legend(axes)
        return _svg(figure, f"Lines over {axis}: {'; '.join(map(_course, lines)) or 'none'}.")


def tradeoff(lines: Sequence[Line], marks: Sequence[Sequence[str]], *, x: str, y: str) -> Markup:
    """One figure against another: a point for each setting, which its mark names, settings of one line joined."""
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "both"}):
        figure, axes = _figure()
        for line, names in zip(lines, marks, strict=True):
            axes.plot(line.x, line.y, marker="o", markersize=6, linewidth=1, label=_short(line.name))
            for name, left, top in zip(names, line.x, line.y, strict=True):
                axes.annotate(name, (left, top), (6, 5), textcoords="offset points", color=SOFT, fontsize=10)
        axes.margins(0.12)
        axes.set(xlabel=x, ylabel=y)
        _legend(axes)
        return _svg(figure, f"{y} against {x}: {'; '.join(map(_course, lines)) or 'none'}.")


def points(groups: Mapping[str, Numbers], *, axis: str) -> Markup:
    """Every value of every group as a dot, a row for each group, with a bar at the mean."""
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "both"}):
        figure, axes = _figure(height=0.9 + 0.26 * len(groups))
        for row, values in enumerate(groups.values()):
            axes.plot(
                values, np.full(len(values), row), "o", color=SERIES[0], alpha=0.5, markersize=6, markeredgewidth=0
            )
            axes.plot(np.mean(values), row, "|", color=SERIES[1], markersize=13, markeredgewidth=2.5)
        axes.set_yticks(range(len(groups)), [_short(name) for name in groups])
        axes.set_ylim(len(groups) - 0.5, -0.5)  # the first row on top
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(axis)
        means = [f"{name} {number(float(np.mean(values)))}" for name, values in groups.items()]
        return _svg(figure, f"Means of {axis}: {'; '.join(means) or 'none'}.")


def histogram(values: Numbers, *, axis: str) -> Markup:
    """How many of the values lie where."""
    counts, edges = np.histogram(values, bins=min(40, max(10, len(values) // 8)))
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        axes.stairs(counts, edges, fill=True, color=SERIES[0], alpha=0.6)
        axes.set_xlabel(axis)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        low, middle, high = (number(float(value)) for value in np.quantile(values, [0, 0.5, 1]))
        return _svg(figure, f"{len(values)} values of {axis} from {low} to {high}, half of them below {middle}.")


def codes(hits: Integer[np.ndarray, " k"]) -> Markup:
    """The share of every code, most used first, and the share that all would have if they were used alike."""
    share, uniform = 100 * np.sort(hits)[::-1] / max(hits.sum(), 1), 100 / len(hits)
    ranks = np.unique(np.linspace(0, len(hits) - 1, 512).astype(int))  # a line needs no more points
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure()
        axes.fill_between(ranks + 1, share[ranks], color=SERIES[0], alpha=0.6, linewidth=0, step="mid")
        axes.axhline(uniform, color=SERIES[1], linestyle="--", linewidth=1.5, label=f"uniform: {number(uniform)}")
        axes.set(xlabel="code, most used first", xmargin=0, ylim=(0, None))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _legend(axes)
        most = f"the most used has {number(float(share[0]))} %, {np.count_nonzero(hits)} are used at all"
        return _svg(figure, f"Shares of {len(hits)} codes: {most}; if uniform {number(uniform)} % each.")


def _figure(height: float = 2.6) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, height), layout="constrained")
    return figure, figure.add_subplot()


def _legend(axes: Axes) -> None:
    """Above the plot, where it covers nothing, in as many columns as its longest label leaves room for."""
    labels = axes.get_legend_handles_labels()[1]
    if labels:
        columns = max(1, 56 // (max(map(len, labels)) + 6))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=columns)


def _course(line: Line) -> str:
    """Returns the first and last finite point of a line in words."""
    finite = [(x, y) for x, y in zip(line.x, line.y, strict=True) if np.isfinite(y)]
    if not finite:
        return f"{line.name} without values"
    (start, first), (stop, last) = finite[0], finite[-1]
    return f"{line.name} from {number(first)} at {number(start)} to {number(last)} at {number(stop)}"


def _short(name: str) -> str:
    """A long name would leave the plot no room."""
    return name if len(name) <= 28 else name[:27] + "…"


def _svg(figure: Figure, label: str) -> Markup:
    """Returns the element, without the file around it."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
    )
    head, body = buffer.getvalue().split("<svg", 1)[1].split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    body = re.sub(r"<defs>\s*<style.*?</defs>", "", body, count=1, flags=re.DOTALL)  # it would style the whole page
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # each plot has the same ones, and no two elements of a page may
    body = re.sub(r"font-family: [^;]*; ", "", body)
    body = re.sub(f"(?<=: )(?:{'|'.join(NAMES)})", lambda color: f"var(--{NAMES[color[0]]})", body)
    return Markup('<svg role="img" aria-label="{}" {}>{}').format(label, Markup(box[0]), Markup(body))
