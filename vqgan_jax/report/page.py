"""Renders a page: a template and the values that it shows in, one self-contained HTML file out.

Templates extend `base.html` and write their prose themselves; `parts.html` has the macros for pictures, plots, tables
and commands. Every value is escaped, except the SVG of `plots`, which is markup.
"""

import base64
import functools
import math
import re
from typing import Any

import jinja2
import markupsafe
import numpy as np
from jaxtyping import UInt8

from vqgan_jax import pictures

_SHADES = np.array([[31, 95, 153], [181, 74, 18], [122, 170, 209], [222, 230, 238]], np.uint8)
MARK = _SHADES[[[0, 2, 3, 0], [1, 2, 0, 3], [3, 2, 0, 1], [0, 2, 3, 1]]]  # 4 x 4 codes of a codebook of four


def render(template: str, **values: Any) -> str:
    """Returns the page of a template of this package; a value that the template names and nobody gives is an error."""
    return _environment().get_template(template).render(values)


def number(value: float | int) -> str:
    """Three significant digits, whole thousands with commas; a dash for what is not finite."""
    if not math.isfinite(value):
        return "—"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def title(name: str) -> str:
    """Returns the name of a class as people write it."""
    return name.replace("_", " ")


def data_uri(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """Returns an address that holds the whole picture as PNG."""
    return "data:image/png;base64," + base64.b64encode(pictures.png(image)).decode()


def code(text: str) -> markupsafe.Markup:
    """Returns a text whose words between backticks are code, as in markdown."""
    return markupsafe.Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(markupsafe.escape(text))))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vqgan_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "name": title, "uri": data_uri, "code": code}
    environment.globals |= {"mark": MARK, "zip": zip}
    return environment
