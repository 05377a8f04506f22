import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from vqgan_jax import report
from vqgan_jax.report import Curve

NASTY = """<script>alert("1 & 2")</script> 'q'"""
VOID = {"meta", "link", "img", "br", "hr", "line", "circle", "path"}


class Document(html.parser.HTMLParser):
    """The elements of a page, each with its attributes and text; balanced tags are required."""

    def __init__(self, markup):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(markup)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {attrs}"
        self.elements.append({"tag": tag, "text": "", **dict(attrs)})
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, classes=""):
        wanted = set(classes.split())
        return [e for e in self.elements if e["tag"] == tag and wanted <= set((e.get("class") or "").split())]

    def one(self, tag, classes=""):
        (element,) = self.all(tag, classes)
        return element


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)


@pytest.fixture
def whole(image):
    """A page with one of everything, and nasty text wherever text goes."""
    return report.page(
        NASTY,
        NASTY,
        report.section(
            NASTY,
            NASTY,
            report.beside(
                report.chart([Curve(NASTY, [0, 1], [1.0, 2.0])], title=NASTY, unit=NASTY),
                report.bars([1, 2], title=NASTY, unit=NASTY, axis=NASTY, reference=(NASTY, 1.5)),
            ),
            report.figure(image, caption=NASTY, alt=NASTY, scale=3),
            report.strip(image[None], name=NASTY, alt=NASTY, labels=[NASTY]),
            report.table([(NASTY, 1), ("many words " * 5, 2)], [NASTY, "n"]),
            report.commands([NASTY, "# " + NASTY]),
        ),
        headline=[(NASTY, NASTY, NASTY, NASTY)],
        foot=NASTY,
    )


def pixels(uri):
    head, data = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def line_points(element):
    """Runs of (x, y) in percent of the plot, y upwards; a run is a stretch without a gap."""
    runs = [run for run in element["d"].split("M") if run]
    return [[(float(x), 100 - float(y)) for x, y in (p.split() for p in run.split("L"))] for run in runs]


def percent(text):
    assert text.endswith("%")
    return float(text[:-1])


def ticks(document, which):
    """Value -> place in percent; upwards for the axis on the left."""
    texts = document.all("text", which)
    places = [percent(t["x"]) if which == "foot" else 100 - percent(t["y"]) for t in texts]
    return dict(sorted((float(t["text"].replace(",", "")), place) for t, place in zip(texts, places, strict=True)))


# The page


def test_a_page_asks_nothing_of_the_network_and_runs_no_script(whole):
    document = Document(whole)
    assert not document.all("script")
    assert "//" not in re.sub(r"base64,[\w+/=]+", "", whole)
    assert "@import" not in whole
    for element in document.elements:
        assert not any(name.startswith("on") for name in element), element
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert element.get(name, "data:").startswith("data:"), element
    policy = next(e for e in document.all("meta") if e.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'"), "and a browser would refuse it"


def test_text_is_escaped_wherever_it_goes_and_arrives_as_it_was(whole):
    document = Document(whole)
    assert "<script" not in whole
    for tag in ("title", "h1", "h2", "p", "dt", "dd", "li", "figcaption", "span", "th", "code", "footer"):
        assert any(NASTY in element["text"] for element in document.all(tag)), tag
    assert all(NASTY in element["alt"] for element in document.all("img") if element["alt"])
    assert all(NASTY in element["aria-label"] for element in document.elements if element.get("role") == "img")


def test_markup_is_put_in_as_it_is_and_backticks_are_code():
    document = Document(report.section("a", "b `c < d` e", report.section("f")))
    assert "&lt;b&gt;" in report.page("t", "l", "<b>")
    assert "&lt;b&gt;" in report.beside("<b>")
    assert [e["text"] for e in document.all("h2")] == ["a", "f"]
    assert document.one("code")["text"] == "c < d"
    assert document.one("p")["text"] == "b c < d e"


def test_a_page_has_the_landmarks_that_a_screen_reader_steps_through(whole):
    document = Document(whole)
    assert document.one("html")["lang"] == "en"
    assert "width=device-width" in next(e["content"] for e in document.all("meta") if e.get("name") == "viewport")
    for tag in ("header", "main", "footer", "h1", "title"):
        document.one(tag)
    (heading,) = document.all("h2")
    assert document.one("section")["aria-labelledby"] == heading["id"]
    assert re.fullmatch(r"[\w-]+", heading["id"])


def test_a_headline_is_a_name_with_its_value_unit_and_note():
    document = Document(report.page("t", "l", headline=[("PSNR", "22.8", "dB", "held out"), ("n", "1", "", "")]))
    assert [e["text"] for e in document.all("dt")] == ["PSNR", "n"]
    assert [e["text"] for e in document.all("dd", "value")] == ["22.8 dB", "1 "]
    assert not Document(report.page("t", "l")).all("dl")


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_paper_in_both_themes(theme):
    """The contrast that WCAG 2 asks of small text, 4.5, for everything that is written."""
    roots = re.findall(r":root {(.*?)}", report.style(), re.DOTALL)
    assert len(roots) == 2
    colors = dict(re.findall(r"--(\w+): #(\w{6})", roots[theme]))
    assert set(colors) == {"paper", "ink", "soft", "rule", "panel", "s0", "s1", "s2", "s3"}

    def luminance(color):
        srgb = np.array(list(bytes.fromhex(color))) / 255
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    for name in ("ink", "soft", "s0", "s1", "s2", "s3"):
        for ground in ("paper", "panel"):
            dark, light = sorted([luminance(colors[name]), luminance(colors[ground])])
            assert (light + 0.05) / (dark + 0.05) > 4.5, (name, ground)


def test_everything_that_is_styled_exists(whole):
    """Every class named by the style sheet is used, and every class used is styled."""
    used = {name for element in Document(whole).elements for name in (element.get("class") or "").split()}
    styled = set(re.findall(r"\.([a-z]\w*)", re.sub(r"\{[^{}]*\}", "{}", report.style())))
    assert used - styled == set()
    assert styled - used <= {"s2", "s3", "more"}


# Pictures


def test_a_figure_holds_exactly_these_pixels_and_says_what_they_show(image):
    shown = Document(report.figure(image, caption="c", alt="what it shows", scale=3)).one("img")
    np.testing.assert_array_equal(pixels(shown["src"]), image)
    assert shown["alt"] == "what it shows"
    assert (shown["width"], shown["height"]) == ("12", "18")
    assert shown["class"] == "pixels", "enlarged without smoothing"
    assert "class" not in Document(report.figure(image, caption="c", alt="a")).one("img")


def test_a_strip_holds_every_picture_in_order_with_a_text_of_its_own(image):
    images = np.stack([image, 255 - image, image // 2])
    numbered = Document(report.strip(images, name="cat", alt="sample of cat"))
    for shown, expected in zip(numbered.all("img"), images, strict=True):
        np.testing.assert_array_equal(pixels(shown["src"]), expected)
    assert [e["alt"] for e in numbered.all("img")] == [f"sample of cat: {i} of 3" for i in (1, 2, 3)]
    labelled = Document(report.strip(images, name="cat", alt="a cat", labels=["original", "given", "completed"]))
    assert labelled.all("img")[2]["alt"] == "a cat: completed"
    assert [e["text"] for e in labelled.all("span")] == ["original", "given", "completed"]
    with pytest.raises(ValueError, match=r"`labels`.* 2 for 3"):
        report.strip(images, name="cat", alt="a cat", labels=["original", "given"])


@pytest.mark.parametrize(("n", "few"), [(0, 1), (1, 1), (2, 2), (4, 4), (5, 3), (6, 3), (8, 4), (9, 3), (12, 4)])
def test_a_narrow_screen_breaks_a_strip_into_even_rows_of_at_most_four(image, n, few):
    strip = report.strip(np.repeat(image[None], n, 0), name="n", alt="a", scale=2)
    assert f"--n:{n};--few:{few};--wide:8px" in Document(strip).one("figure")["style"]


# Tables and commands


def test_a_table_names_its_rows_and_columns_and_lines_up_numbers():
    rows = [("PSNR", "22.8 dB", 1200, "held out"), ("LPIPS", 0.29612, float("nan"), "3 of 4")]
    document = Document(report.table(rows, ["figure", "value", "step", "protocol"]))
    assert [e["text"] for e in document.all("th") if e["scope"] == "col"] == ["figure", "value", "step", "protocol"]
    assert [e["text"] for e in document.all("th") if e["scope"] == "row"] == ["PSNR", "LPIPS"]
    assert [e["text"] for e in document.all("td")] == ["22.8 dB", "1,200", "held out", "0.296", "\N{EM DASH}", "3 of 4"]
    assert [e["text"] for e in document.all("th", "number")] == ["value", "step"]
    assert document.one("div")["tabindex"] == "0", "a table too wide for a screen scrolls by keyboard too"
    assert [e["text"] for e in Document(report.table([], ["x", "y"])).all("th")] == ["x", "y"]
    with pytest.raises(ValueError, match="2 cells"):
        report.table([("a",)], ["x", "y"])


def test_commands_come_out_as_they_went_in_and_remarks_are_told_apart():
    lines = ["# train", "vqgan train --config='a b.py' && echo \"$HOME\""]
    remark, command = Document(report.commands(lines)).all("code")
    assert [remark["text"], command["text"]] == lines, "the prompt is no text, so it is not copied"
    assert remark["class"] == "remark"
    assert "class" not in command


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.29649, "0.296"), (-22.84, "-22.8"), (512, "512"), (12345.6, "12,346"), (np.inf, "\N{EM DASH}")],
)
def test_numbers_are_short(value, text):
    assert report.number(value) == text


# Charts


def test_points_of_a_curve_are_where_the_ticks_say():
    steps, values = [100, 250, 400, 1200], [3.7, 0.4, 1.0, -0.35]
    document = Document(report.chart([Curve("loss", steps, values)], title="t"))
    (run,) = line_points(document.one("path"))
    for axis, numbers, places in (("foot", steps, [x for x, _ in run]), ("left", values, [y for _, y in run])):
        marks = ticks(document, axis)
        slope, origin = np.polyfit(list(marks), list(marks.values()), 1)
        assert slope > 0
        np.testing.assert_allclose(places, origin + slope * np.array(numbers), atol=0.02)
        assert 0 <= min(places) <= max(places) <= 100


def test_curves_share_their_axes_and_each_has_a_name_and_its_last_value():
    document = Document(
        report.chart([Curve("a", [0, 10], [1, 3]), Curve("b", [5, 20], [3, 2])], title="t", unit="nats")
    )
    (a,), (b,) = (line_points(path) for path in document.all("path"))
    assert a[0][0] == 0
    assert a[1][0] == 50
    assert b[0][0] == 25
    assert a[1][1] == b[0][1] == 100
    assert a[0][1] == 0
    assert b[1][1] == 50
    assert [e["text"] for e in document.all("li")] == ["a", "b"]
    assert {e["text"]: e["class"].split()[-1] for e in document.all("text", "end")} == {"3": "s0", "2": "s1"}
    told = document.all("svg")[0]["aria-label"]
    assert "a from 1 at 0 to 3 at 10" in told
    assert "b from 3 at 5 to 2 at 20" in told


def test_a_gap_breaks_the_line_and_a_point_between_gaps_is_a_dot():
    values = np.arange(100.0)
    values[[3, 5]] = np.nan, np.inf
    document = Document(report.chart([Curve("a", np.arange(100), values)], title="t"))
    runs = line_points(document.one("path"))
    assert [len(run) for run in runs] == [3, 1, 94]
    dot = document.one("circle")
    assert percent(dot["cx"]) == pytest.approx(runs[1][0][0])
    assert 100 - percent(dot["cy"]) == pytest.approx(runs[1][0][1])
    assert "nan" not in document.one("figure")["text"].lower()


@pytest.mark.parametrize("value", [0.0, 5.0, -1e-6, 3e7])
@pytest.mark.parametrize("n", [1, 4])
def test_a_constant_curve_is_level_and_inside(value, n):
    markup = report.chart([Curve("a", range(n), [value] * n)], title="t")
    document = Document(markup)
    (run,) = line_points(document.one("path"))
    assert len({y for _, y in run}) == 1
    assert 10 < run[0][1] < 90
    assert len(document.all("circle")) == n
    assert all(0 <= place <= 100 for which in ("foot", "left") for place in ticks(document, which).values())
    assert not re.search(r"\bnan|\binf\b", markup)


@pytest.mark.parametrize("curves", [[], [Curve("a", [], [])], [Curve("a", [1, 2], [np.nan, np.nan])]])
def test_a_chart_of_nothing_has_axes(curves):
    document = Document(report.chart(curves, title="t"))
    assert len(ticks(document, "left")) > 2
    assert not document.all("circle")
    assert [e["text"] for e in document.all("li")] == [curve.name for curve in curves]


def test_a_curve_must_have_a_value_a_step():
    with pytest.raises(ValueError, match=r"'loss'.* 2 for 3 steps"):
        report.chart([Curve("loss", [1, 2, 3], [0.1, 0.2])], title="t")


def test_last_values_that_are_close_do_not_cover_each_other():
    curves = [Curve(str(i), [0, 1], [5.0, value]) for i, value in enumerate([0.0, 0.01, 0.02, 4.9])]
    places = sorted(percent(e["y"]) for e in Document(report.chart(curves, title="t")).all("text", "end"))
    assert np.diff(places).min() >= 8.9
    assert places[-1] <= 100


def test_rounding_noise_is_constant():
    (run,) = line_points(Document(report.chart([Curve("a", [0, 1], [1e8, 1e8 + 1e-7])], title="t")).one("path"))
    assert 10 < run[0][1] == run[1][1] < 90


@pytest.mark.parametrize("spread", [1e-5, 0.3, 7.0, 999.0, 2e6])
def test_axes_have_a_few_round_ticks_in_order(spread):
    document = Document(report.chart([Curve("a", [0, spread], [1, 1 + spread])], title="t"))
    for which in ("foot", "left"):
        marks = ticks(document, which)
        assert 3 <= len(marks) <= 8
        assert list(marks.values()) == sorted(marks.values())
        np.testing.assert_allclose(np.diff(list(marks)), np.diff(list(marks))[0], rtol=1e-3)


@pytest.mark.parametrize("n", [1, 5, 512])
def test_bars_are_as_high_as_their_values(n):
    values = np.random.default_rng(0).uniform(0, 9, n)
    values[-1] = 0
    document = Document(report.bars(values, title="t", reference=("uniform", 4.5)))
    marks = ticks(document, "left")
    assert marks[0] == 0
    per_unit = max(marks.values()) / max(marks)
    path = document.one("path", "area")["d"]
    bars = re.findall(r"H([\d.]+)V([\d.]+)H([\d.]+)", path)
    heights = [100 - float(top) for _, top, _ in bars]
    np.testing.assert_allclose(heights, values * per_unit, atol=0.01)
    edges = np.array([[float(left), float(right)] for left, _, right in bars])
    np.testing.assert_allclose(edges.mean(-1), (np.arange(n) + 0.5) * 100 / n, atol=0.01)
    assert (np.diff(edges.ravel()) >= 0).all(), "no bar covers another"
    assert 100 - percent(document.one("line", "level")["y1"]) == pytest.approx(4.5 * per_unit, abs=0.01)


def test_bars_of_nothing_have_axes():
    for values in ([], [0, 0], [np.nan]):
        markup = report.bars(values, title="t")
        assert len(ticks(Document(markup), "left")) > 1
        assert not re.search(r"\bnan|\binf\b", markup)
