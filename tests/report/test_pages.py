"""The pages hold every picture and every figure, escape all text, and ask nothing of anybody."""

import base64
import dataclasses
import html.parser
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqgan_jax.cli.quickstart import make_plan
from vqgan_jax.evaluate.protocol import Result
from vqgan_jax.report import evaluation, page, quickstart, run
from vqgan_jax.train.watch import SECTIONS

NASTY = """<script>alert("1 & 2")</script> 'q'"""
VOID = {"meta", "link", "img"}
DRAWS = np.random.default_rng(0)
RECORD = Result(
    metric="psnr", value=22.84567, unit="dB", better="higher", variant=NASTY, subject=NASTY, subject_count=1200,
    subject_fingerprint="f0f0", reference="photos", reference_count=1200, reference_fingerprint="e1e1", resize="none",
    rounding="nearest", network="vgg16.ckpt", network_hash="abcd", model=NASTY, step=7, weights="ema", sampling={},
    seed=0, versions={"jax": "1.2.3"},
)  # fmt: skip


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
        self.elements.append({"tag": tag, "text": "", **dict(attrs)})

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag):
        return [element for element in self.elements if element["tag"] == tag]

    def pictures(self):
        """Pixels of every picture but the page's mark."""
        heads, files = zip(*(element["src"].split(",") for element in self.all("img")), strict=True)
        assert set(heads) == {"data:image/png;base64"}
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))) for file in files[1:]]

    def rows(self):
        """First cell -> all cells, of every table."""
        cells = [
            element["text"] for element in self.elements if element.get("scope") == "row" or element["tag"] == "td"
        ]
        starts = [i for i, e in enumerate(e for e in self.elements if e.get("scope") == "row" or e["tag"] == "td")
                  if e["tag"] == "th"]  # fmt: skip
        return {cells[i]: cells[i:j] for i, j in zip(starts, [*starts[1:], None], strict=True)}


def draw(*shape):
    return DRAWS.integers(0, 256, (*shape, 8, 8, 3), dtype=np.uint8)


RESULTS = quickstart.Results(
    names=("long_cat", NASTY), grid=(2, 2), originals=draw(4), recons=draw(4), labels=np.array([0, 0, 1, 1]),
    hits=np.array([5, 0, 9, 2]), shown=np.array([0, 2]), samples=draw(6), completed=draw(6), own_class=0.5,
    own_class_real=0.875, seconds={"tokenizer": 90.0, "prior": 31.0}, peak_gib=1.25,
)  # fmt: skip
TOKENIZER = [
    {"step": 10, "train/perceptual_loss": 0.5, "train/generator_loss": 0.1, "train/discriminator_loss": 1.0},
    {"step": 10, "eval/psnr": 15.0, "eval/lpips": 0.4},
    {"step": 20, "eval/psnr": 22.846, "eval/lpips": 0.2961, "eval/l1": 0.1234, "eval/codebook_usage": 0.75,
     "eval/perplexity": 2.5},
]  # fmt: skip
PRIOR = [{"step": 10, "train/loss": 1.2}, {"step": 10, "eval/nll": 1.125, "eval/bits_per_token": 1.623}]


@pytest.fixture(scope="module")
def quick():
    return quickstart.page(make_plan("runs/q", 10), RESULTS, TOKENIZER, PRIOR)


def sample(metric, guidance, top_k, value):
    return dataclasses.replace(RECORD, metric=metric, value=value, sampling={"top_k": top_k, "guidance": guidance})


@pytest.fixture(scope="module")
def evaluated():
    """A page with every section that there is."""
    swept = [
        sample(metric, guidance, top_k, scale * guidance + top_k / 1000)
        for top_k in (5, 9)
        for guidance in (1.0, 2.0)
        for metric, scale in (("precision_vgg6", 0.3), ("recall_vgg6", 0.2))
    ]
    return evaluation.page(
        NASTY, NASTY, [RECORD, *swept], f"vqgan evaluate {NASTY}",
        recons={"best": (draw(2), draw(2), np.array([0.125, 0.25]))}, hits=RESULTS.hits, distances=np.arange(9) / 16,
        samples={NASTY: draw(3)}, classes=[(NASTY, 3, 1.5, 2, float("nan"))],
        neighbours=(draw(2), draw(4), np.array([[0.25, 0.5], [0.125, 0.75]]), np.array([0.375, 0.5])),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    """The page of a run with everything that there is: two findings, sheets, figures, and where its time went."""
    well = run.read(str(Path(__file__).parents[1] / "golden" / "curves" / "quickstart_tokenizer"))
    rows = {
        step: {name: FAULTY.get(name, value) for name, value in row.items()} for step, row in well.history.rows.items()
    }
    history = dataclasses.replace(well.history, rows=rows)
    shares = {f"goodput/{name}": 0.5 * (name in ("steps", "data")) for name in SECTIONS}
    lines = [{"step": 9, "goodput/seconds": 120.0, **shares}]
    sheets = {NASTY: {20: draw(), 700: draw()}}
    whole = run.Contents(NASTY, history, lines, sheets, [RECORD])
    return run.page(whole, run.diagnose(history))


FAULTY = {"train/codebook_usage": 0.07, "train/input_wait": 0.42, "eval/lpips": float("inf")}


def test_the_page_of_a_run_holds_every_figure_and_what_is_wrong(trained):
    document = Document(trained)
    rows = document.rows()
    assert rows["dead codes"][1] == rows["starved input"][1] == "fires"
    assert rows["adversary asleep"][1] == "silent"
    assert "over-fitting" not in rows, "a rule of the other stage"
    assert rows["psnr"][1] == "22.8457"
    assert rows["data"] == ["data", "1", "50.0%"]
    assert [heading["text"] for heading in document.all("h3")] == ["dead codes", "starved input"]
    labels = [plot["aria-label"] for plot in document.all("svg")]
    assert sum("waiting from 0.42 at 20 to 0.42 at 700" in label for label in labels) == 2, "at its finding, too"
    assert any("held out from 15.3 at 140 to 21.5 at 700" in label for label in labels)
    assert len(document.pictures()) == 2
    commands = [code["text"].partition("=")[0] for code in document.all("code")]
    assert commands[-2:] == ["vqgan report --workdir", "vqgan train --config"]


@pytest.mark.parametrize("name", ["quick", "evaluated", "trained"])
def test_a_page_asks_nothing_of_the_network_and_runs_no_script(name, request):
    markup = request.getfixturevalue(name)
    document = Document(markup)
    assert not document.all("script")
    assert "//" not in re.sub(r"base64,[\w+/=]+", "", markup)
    assert "@import" not in markup
    for element in document.elements:
        assert not any(attribute.startswith("on") for attribute in element), element
        for attribute in ("src", "href", "srcset", "action", "data"):
            assert element.get(attribute, "data:").startswith("data:"), element
        assert element.get("xlink:href", "#").startswith("#"), element
    policy = next(e for e in document.all("meta") if e.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'"), "and a browser would refuse it"


@pytest.mark.parametrize("name", ["quick", "evaluated", "trained"])
def test_every_picture_and_plot_has_its_words_and_every_section_its_heading(name, request):
    document = Document(request.getfixturevalue(name))
    assert all(image["alt"] for image in document.all("img")[1:])
    assert all(plot["aria-label"] for plot in document.all("svg"))
    assert len(document.all("h1")) == 1
    assert len(document.all("section")) == len(document.all("h2"))
    ids = [section["id"] for section in document.all("section")]
    assert len(set(ids)) == len(ids)


def test_text_is_escaped_wherever_it_goes_and_arrives_as_it_was(evaluated):
    document = Document(evaluated)
    for tag in ("title", "h1", "p", "figcaption", "th", "td", "code"):
        assert any(NASTY in element["text"] for element in document.all(tag)), tag
    assert any(NASTY in image["alt"] for image in document.all("img"))


def test_the_page_of_the_quickstart_holds_every_picture_in_order(quick):
    r, pictures = RESULTS, iter(Document(quick).pictures())
    for i in r.shown:
        np.testing.assert_array_equal(next(pictures), r.originals[i])
        np.testing.assert_array_equal(next(pictures), r.recons[i])
    for image in r.samples:
        np.testing.assert_array_equal(next(pictures), image)
    for i, completed in zip(r.shown, np.split(r.completed, 2), strict=True):
        np.testing.assert_array_equal(next(pictures), r.originals[i])
        prompt = next(pictures)
        np.testing.assert_array_equal(prompt[:4], r.originals[i][:4])
        assert (prompt[4:] == 128).all()
        for image in completed:
            np.testing.assert_array_equal(next(pictures), image)
    assert not list(pictures)


def test_the_page_of_the_quickstart_holds_every_figure(quick):
    document = Document(quick)
    rows = {name: row[1] for name, row in document.rows().items()}
    assert rows == {
        "PSNR": "22.85 dB", "LPIPS": "0.2961", "L1": "0.1234", "codes used": "75.0 %", "perplexity of the codes": "2",
        "validation NLL": "1.125", "bits a token": "1.623", "own class": "50.0 %", "own class, real": "87.5 %",
        "peak memory": "1.25 GiB", "tokenizer": "1.5", "prior": "0.5",
    }  # fmt: skip
    labels = " ".join(plot["aria-label"] for plot in document.all("svg"))
    assert "held out: 22.8 from 15 at 10 to 22.8 at 20" in labels
    assert "training: 1.2 from 1.2 at 10" in labels
    psnr = -10 * np.log10(
        np.mean(np.square(RESULTS.originals[:2] / 255.0 - RESULTS.recons[:2] / 255.0), axis=(1, 2, 3))
    )
    assert f"long cat {page.number(float(psnr.mean()))}" in labels
    assert [code["text"] for code in document.all("code")][-5:] == make_plan("runs/q", 10).commands


def test_the_page_of_an_evaluation_holds_every_figure_with_its_protocol(evaluated):
    document = Document(evaluated)
    rows = document.rows()
    assert rows["psnr"] == ["psnr", "22.8457", "dB", "↑", NASTY, "vgg16.ckpt abcd"]
    assert rows["precision_vgg6"][1] == "0.305", "of several settings the first one's"
    assert rows["measured"][1] == NASTY
    assert rows["how many"][1] == "1,200"
    assert rows[NASTY] == [NASTY, "3", "1.5", "2", "—"]
    assert rows["50 %"][1] == "0.25", "the median of the distances"
    assert rows["9"][1:] == ["2.0", "0.609", "0.409"], "the last setting of the sweep"
    labels = [plot["aria-label"] for plot in document.all("svg")]
    assert sum("precision_vgg6 against recall_vgg6: top_k 5 from 0.305 at 0.205" in label for label in labels) == 1
    assert sum("Lines over guidance: top_k 5 from 0.305 at 1 to 0.605 at 2" in label for label in labels) == 1
    assert "0.188 in the middle and 0.125 at least" in evaluated, "the nearest of each sample"
    assert len(document.pictures()) == 4 + 3 + 2 * 3
    assert [image["alt"].rsplit(": ")[-1] for image in document.all("img")][1:5] == [
        "original", "LPIPS 0.125", "original", "LPIPS 0.250",
    ]  # fmt: skip


def test_a_section_without_values_is_left_out():
    headings = [h["text"] for h in Document(evaluation.page("t", "l", [RECORD], "vqgan evaluate")).all("h2")]
    assert headings == ["Figures", "Protocol", "Again"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.29649, "0.296"), (-22.84, "-22.8"), (512, "512"), (12345.6, "12,346"), (np.inf, "\N{EM DASH}")],
)
def test_numbers_are_short(value, text):
    assert page.number(value) == text


def test_words_between_backticks_are_code_and_nothing_else_is_markup():
    assert page.code("`a<b` & <i>") == "<code>a&lt;b</code> &amp; &lt;i&gt;"


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_paper_in_both_themes(evaluated, theme):
    """The contrast that WCAG 2 asks of small text, 4.5, for everything that is written or drawn."""
    root = re.findall(r":root {(.*?)}", evaluated, re.DOTALL)[theme]
    colors = dict(re.findall(r"--(\w+): #(\w{6})", root))

    def luminance(color):
        srgb = np.array(list(bytes.fromhex(color))) / 255
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    for name in ("ink", "soft", "s0", "s1", "s2", "s3"):
        for ground in ("paper", "card"):
            dark, light = sorted([luminance(colors[name]), luminance(colors[ground])])
            assert (light + 0.05) / (dark + 0.05) > 4.5, (name, ground)
