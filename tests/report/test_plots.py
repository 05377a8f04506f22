"""Plots for a page: its colours, its font, their words; whatever the values are, they are drawn."""

import re

import numpy as np
import pytest

from vqgan_jax.report import plots
from vqgan_jax.report.plots import Line

NASTY = """<b> & "$x$" 'q'"""
STEPS = [Line("training", range(100), np.linspace(3, 1, 100)), Line("held out", [50, 99], [2.0, np.nan])]
PLOTS = {
    "curves": lambda: plots.curves(STEPS),
    "tradeoff": lambda: plots.tradeoff([Line(NASTY, [0.2, 0.4], [0.9, 0.5])], [["1", "4"]], x="recall", y="precision"),
    "points": lambda: plots.points({NASTY: [1.0, 3.0], "vq": [5.0]}, axis="LPIPS"),
    "histogram": lambda: plots.histogram(np.arange(64.0), axis="LPIPS"),
    "codes": lambda: plots.codes(np.array([0, 3, 0, 1])),
}


@pytest.fixture(params=PLOTS)
def svg(request):
    return PLOTS[request.param]()


def test_a_plot_takes_every_colour_from_the_page_and_nothing_from_elsewhere(svg):
    assert not re.search(r"(fill|stroke): (?!none|var\(--)", svg)
    assert "//" not in svg
    assert "<style" not in svg
    assert "font-family" not in svg
    assert svg.count("<svg") == 1
    references = set(re.findall(r"#(\w+)", re.sub(r"&#\d+;", "", svg)))
    assert references <= set(re.findall(r'id="(\w+)"', svg)), "ids are those of its own markers and clips"


def test_the_same_plot_is_the_same_text():
    assert PLOTS["curves"]() == PLOTS["curves"]()


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("curves", "training from 3 at 0 to 1 at 99; held out from 2 at 50 to 2 at 50."),
        (
            "tradeoff",
            "precision against recall: &lt;b&gt; &amp; &#34;$x$&#34; &#39;q&#39; from 0.9 at 0.2 to 0.5 at 0.4.",
        ),
        ("points", "vq 5."),
        ("histogram", "64 values of LPIPS from 0 to 63, half of them below 31.5."),
        ("codes", "the most used has 75 %, 2 are used at all; if uniform 25 % each."),
    ],
)
def test_a_label_tells_in_words_what_a_plot_shows(name, label):
    told = re.search(r'^<svg role="img" aria-label="([^"]*)"', PLOTS[name]())
    assert told is not None
    assert told[1].endswith(label)


def test_names_stay_text_and_are_escaped():
    for name in ("tradeoff", "points"):
        assert """&lt;b&gt; &amp; "$x$" 'q'</text>""" in PLOTS[name]()
        assert "<b>" not in PLOTS[name]()


@pytest.mark.parametrize("values", [[], [5.0], [0.0, 0.0], [np.nan, np.nan], [1e8, np.inf, 1e8 + 1e-7], [-1e-9, 2e6]])
def test_any_values_can_be_drawn(values):
    assert "<path" in plots.curves([Line("a", range(len(values)), values)])
    assert "nan" not in plots.curves([Line("a", range(len(values)), values)])


def test_no_lines_no_hits_and_one_value_can_be_drawn():
    assert "Lines over step: none." in plots.curves([])
    assert "0 are used at all" in plots.codes(np.zeros(8, int))
    assert "1 values of LPIPS from 0.5 to 0.5" in plots.histogram([0.5], axis="LPIPS")


def test_a_large_codebook_makes_no_large_plot():
    assert len(plots.codes(np.random.default_rng(0).integers(0, 99, 16384))) < 60_000
