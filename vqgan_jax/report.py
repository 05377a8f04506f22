"""One HTML page that tells how a run went: figures, curves, pictures, tables and commands in a single file.

Pure: arrays, numbers and text in, markup out. The page asks nothing of the network and runs no script; pictures are
inlined as PNG, charts as SVG. It is put together from the inside out:

    page("Title", "What this is.", section("Losses", "A paragraph.", beside(chart(...), chart(...))), headline=[...])

Any plain `str` is text: escaped where it goes, `code` between backticks, a paragraph as a part. `Html` is markup.
"""

import base64
import functools
import html
import itertools
import math
import re
from collections.abc import Sequence
from importlib import resources
from typing import NamedTuple

import numpy as np
from jaxtyping import Real, UInt8

from vqgan_jax import pictures

Numbers = Sequence[float | int] | Real[np.ndarray, " n"]
Tile = tuple[str, str, str, str]  # name, value, unit, note; the last two may be empty


class Html(str):
    """Markup; every other `str` is text."""


class Curve(NamedTuple):
    """A line of a chart: `values` (n) over `steps` (n, ascending); what is not finite is a gap."""

    name: str
    steps: Numbers
    values: Numbers


def page(title: str, lead: str, *sections: str, headline: Sequence[Tile] = (), foot: str = "") -> Html:
    """The whole document. `lead` says in a sentence or two what the page shows, `foot` how and when it was made.

    `headline` are the figures to be read first, such as `("PSNR", "22.8", "dB", "held-out photographs")`.
    """
    tiles, mark = "", _data_uri(MARK)
    for name, value, unit, note in ([_text(text) for text in tile] for tile in headline):
        tiles += f'<div><dt>{name}</dt><dd class="value">{value} <small>{unit}</small></dd><dd>{note}</dd></div>\n'
    return Html(f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="{mark}"><style>
{style()}</style></head>
<body><header><img class="pixels" src="{mark}" alt="" width="56" height="56">
<div><h1>{_text(title)}</h1>
<p class="lead">{_text(lead)}</p>
{f"<dl>{tiles}</dl>" if headline else ""}</div></header>
<main>
{_parts(sections)}
</main>
{f"<footer><p>{_text(foot)}</p></footer>" if foot else ""}</body></html>
""")


def section(title: str, *parts: str) -> Html:
    """A heading and what it is about."""
    name = re.sub(r"\W+", "-", title.lower()).strip("-") or "section"
    body = f"<div>\n{_parts(parts)}\n</div>"
    return Html(f'<section aria-labelledby="{name}">\n<h2 id="{name}">{_text(title)}</h2>\n{body}\n</section>')


def beside(*parts: str, width: float | int = 22) -> Html:
    """Parts in as many columns as fit, each at least `width` rem wide, or as wide as a narrow screen."""
    return Html(f'<div class="beside" style="--least:{width}rem">\n{_parts(parts)}\n</div>')


def figure(image: UInt8[np.ndarray, "H W 3"], *, caption: str, alt: str, scale: int = 1) -> Html:
    """One picture at `scale` times its size, as far as the screen is wide enough; `alt` tells it in words."""
    return Html(f"<figure>\n{_img(image, alt, scale)}\n<figcaption>{_text(caption)}</figcaption>\n</figure>")


def strip(
    images: UInt8[np.ndarray, "n H W 3"], *, name: str, alt: str, labels: Sequence[str] = (), scale: int = 1
) -> Html:
    """A row of pictures under one name, broken evenly on a narrow screen; `labels` (n, or none) stand below them."""
    n = len(images)
    if len(labels) not in (0, n):
        raise ValueError(f"`labels` must be as many as the images; got {len(labels)} for {n}. Give one each or none.")
    few = math.ceil(n / math.ceil(n / 4)) if n else 1
    cells = ""
    for i, image in enumerate(images):
        told, label = (labels[i], f"<span>{_text(labels[i])}</span>") if labels else (f"{i + 1} of {n}", "")
        cells += f"<li>{_img(image, f'{alt}: {told}', scale)}{label}</li>\n"
    frame = f'<figure class="strip" style="--n:{n};--few:{few};--wide:{images.shape[2] * scale}px">'
    return Html(f"{frame}\n<figcaption>{_text(name)}</figcaption>\n<ul>\n{cells}</ul>\n</figure>")


def table(rows: Sequence[Sequence[str | float | int]], header: Sequence[str]) -> Html:
    """Rows under a header, each named by its first cell; columns of numbers ("22.8 dB" is one) line up on the right."""
    cells = [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in rows]
    if any(len(row) != len(header) for row in cells):
        raise ValueError(f"a row must have {len(header)} cells, as the header has; got {[len(row) for row in cells]}.")
    numeric = [all(re.match(r"[-+\d]|—?$", row[i]) for row in cells) for i in range(len(header))]
    wordy = [any(len(row[i]) > 40 for row in cells) for i in range(len(header))]
    kinds = ["number" if numeric[i] else "words" if wordy[i] else "" for i in range(len(header))]
    right = [f' class="{kind}"' if kind else "" for kind in kinds]
    head = "".join(f'<th scope="col"{right[i]}>{_text(name)}</th>' for i, name in enumerate(header))
    body = ""
    for row in cells:
        first, *others = [f"{right[i]}>{_text(cell)}" for i, cell in enumerate(row)]
        body += f'<tr><th scope="row"{first}</th>' + "".join(f"<td{cell}</td>" for cell in others) + "</tr>\n"
    scroll = f'<div class="scroll" role="region" tabindex="0" aria-label="{html.escape(", ".join(header))}">'
    return Html(f"{scroll}<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>")


def commands(lines: Sequence[str]) -> Html:
    """Shell commands, each selected whole by one click, without its prompt; a line that begins with # is a remark."""
    words = [re.sub(r"(\S+)", r"<span>\1</span>", html.escape(line)) for line in lines]  # lines break between them
    kinds = [' class="remark"' if line.startswith("#") else "" for line in lines]
    return Html(f"<pre>{''.join(f'<code{k}>{w}</code>' for k, w in zip(kinds, words, strict=True))}</pre>")


def number(value: float | int) -> str:
    """Three digits that count, whole thousands with commas; a dash for what is not finite."""
    if not math.isfinite(value):
        return "—"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def chart(curves: Sequence[Curve], *, title: str, unit: str = "", axis: str = "step") -> Html:
    """Lines over steps or another `axis`, with a legend and their last values; few points are shown as dots too."""
    for name, steps, values in curves:
        if len(steps) != len(values):
            raise ValueError(f"curve {name!r} must have a value a step; got {len(values)} for {len(steps)} steps.")
    points = [np.array([curve.steps, curve.values], np.float64).T for curve in curves]
    x, y = (_axis(np.concatenate([[], *(p[:, i] for p in points)]), most) for i, most in enumerate((6, 5)))
    lines, dots, ends, told = "", "", [], []
    for i, (curve, values) in enumerate(zip(curves, points, strict=True)):
        shown = np.isfinite(values.sum(-1))
        after, before = np.append(False, shown[:-1]), np.append(shown[1:], False)  # a point that is shown
        at = np.stack([x.at(values[:, 0]), 100 - y.at(values[:, 1])], -1)
        path = "".join(f"{'L' if after[j] else 'M'}{at[j, 0]:.2f} {at[j, 1]:.2f}" for j in np.flatnonzero(shown))
        lines += f'<path class="line s{i % 4}" d="{path}" vector-effect="non-scaling-stroke"/>\n'
        for left, top in at[shown if shown.sum() <= 30 else shown & ~after & ~before]:
            dots += f'<circle class="s{i % 4}" cx="{left:.2f}%" cy="{top:.2f}%" r="3"/>\n'
        if not shown.any():
            told.append(f"{curve.name} has no values")
            continue
        (start, first), (stop, last) = values[shown][0], values[shown][-1]
        ends.append((*at[shown][-1], i % 4, number(last)))
        told.append(f"{curve.name} from {number(first)} at {number(start)} to {number(last)} at {number(stop)}")
    for place, (left, _, i, text) in zip(_apart([top for _, top, _, _ in ends]), ends, strict=True):
        dots += f'<text class="end s{i}" x="{left:.2f}%" dx="9" y="{place:.2f}%" dy=".35em">{text}</text>\n'
    keys = "".join(f'<li class="s{i % 4}">{_text(curve.name)}</li>' for i, curve in enumerate(curves))
    return _plot(x, y, lines, dots, title=title, unit=unit, axis=axis, keys=keys, told=f"Lines: {'; '.join(told)}.")


def bars(
    values: Numbers, *, title: str, unit: str = "", axis: str = "", reference: tuple[str, float | int] | None = None
) -> Html:
    """A bar for each of `values` (n, at least 0) from left to right; `reference` names a level to compare with."""
    heights = np.nan_to_num(np.asarray(values, np.float64), posinf=0, neginf=0)
    n, (name, level) = len(heights), reference or ("", 0)
    x, y = _Axis(0.5, max(n, 1) + 0.5, max(n // 4, 1)), _axis(np.array([0, heights.max(initial=level) or 1]), 6)
    gap = 0.1 if n <= 64 else 0.0  # more bars make an area
    path, told = "M0 100", f"{n} bars, the highest {number(heights.max(initial=0))}"
    for i, height in enumerate(heights, start=1):
        left, top, right = x.at(i - 0.5 + gap), 100 - y.at(height), x.at(i + 0.5 - gap)
        path += f"H{left:.3f}V{top:.3f}H{right:.3f}" + ("V100" if gap else "")
    line = keys = ""
    if reference:
        top = f"{100 - y.at(level):.2f}%"
        line = f'<line class="level s1" x1="0" x2="100%" y1="{top}" y2="{top}"/>\n'
        keys, told = f'<li class="level s1">{_text(name)}</li>', f"{told}; {name}: {number(level)}"
    area = f'<path class="area s0" d="{path}V100Z"/>\n'
    return _plot(x, y, area, line, title=title, unit=unit, axis=axis, keys=keys, told=f"{told}.")


class _Axis(NamedTuple):
    """From `low` to `high`, with ticks at the multiples of `step`."""

    low: float
    high: float
    step: float

    def at(self, value):
        """Percent of the way along the axis."""
        return 100 * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Place and text of each."""
        decimals = max(0, -math.floor(math.log10(self.step) + 1e-9))
        numbers = range(math.ceil(self.low / self.step - 1e-6), math.floor(self.high / self.step + 1e-6) + 1)
        return [(self.at(i * self.step), f"{i * self.step:,.{decimals}f}") for i in numbers]


def _axis(values: np.ndarray, most: int) -> _Axis:
    """All finite values in about `most` whole steps or less, each 1, 2 or 5 times a power of ten."""
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    if high - low <= 1e-9 * abs(high):  # constant
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= 0.999 * (high - low) / most)
    return _Axis(math.floor(low / step) * step, math.ceil(high / step) * step, step)


def _apart(tops: Sequence[float], least: float = 9.0) -> np.ndarray:
    """Places of labels, in percent of the height, moved down where they would cover each other, none below the axis."""
    places = np.array(tops, np.float64)
    order = np.argsort(places)
    for above, below in itertools.pairwise(order):
        places[below] = max(places[below], places[above] + least)
    return places - max(0.0, places.max(initial=0.0) - 100)


def _plot(
    x: _Axis, y: _Axis, stretched: str, fixed: str, *, title: str, unit: str, axis: str, keys: str, told: str
) -> Html:
    """A figure as wide as its place: `stretched` is drawn in percent of the plot; text and `fixed` keep their size."""
    scales = ""
    for at, text in y.ticks():
        scales += f'<line class="rule" x1="0" x2="100%" y1="{100 - at:.2f}%" y2="{100 - at:.2f}%"/>'
        scales += f'<text class="left" x="-9" y="{100 - at:.2f}%" dy=".35em">{text}</text>\n'
    for i, (at, text) in enumerate(reversed(x.ticks())):  # every other one has no place on a narrow screen
        scales += f'<text class="foot{" more" * (i % 2)}" x="{at:.2f}%" y="100%" dy="1.6em">{text}</text>\n'
    return Html(
        f'<figure class="chart">\n<figcaption><b>{_text(title)}</b> {_text(unit)}</figcaption>\n<ul>{keys}</ul>\n'
        f'<div><svg role="img" aria-label="{html.escape(told)}">\n{scales}'
        f'<text class="axis" x="50%" y="100%" dy="3em">{_text(axis)}</text>\n'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">\n{stretched}</svg>\n{fixed}</svg></div>\n</figure>'
    )


def _img(image: np.ndarray, alt: str, scale: int) -> str:
    pixels = ' class="pixels"' if scale > 1 else ""
    size = f'width="{image.shape[1] * scale}" height="{image.shape[0] * scale}"'
    return f'<img{pixels} src="{_data_uri(image)}" alt="{html.escape(alt)}" {size}>'


def _data_uri(image: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(pictures.png(image)).decode()


def _parts(parts: Sequence[str]) -> str:
    return "\n".join(part if isinstance(part, Html) else f"<p>{_text(part)}</p>" for part in parts)


def _text(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


_SHADES = np.array([[31, 95, 153], [181, 74, 18], [122, 170, 209], [222, 230, 238]], np.uint8)
MARK = _SHADES[[[0, 2, 3, 0], [1, 2, 0, 3], [3, 2, 0, 1], [0, 2, 3, 1]]]  # 4 x 4 codes of a codebook of four


@functools.cache
def style() -> str:
    """The page's style sheet."""
    return resources.files("vqgan_jax").joinpath("report.css").read_text()
