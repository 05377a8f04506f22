"""The page of `vqgan report`: the curves of a run, its sheets over time, its figures, and what goes wrong in it."""

import contextlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import UInt8
from markupsafe import Markup
from PIL import Image
from rich.console import Console

from vqgan_jax.data import storage
from vqgan_jax.evaluate.protocol import Result
from vqgan_jax.report import plots
from vqgan_jax.report.diagnosis import RULES, Finding, History, command, diagnose
from vqgan_jax.report.evaluation import figures, first_of_each
from vqgan_jax.report.page import number, render
from vqgan_jax.train import stored
from vqgan_jax.train.metrics import Writer
from vqgan_jax.train.watch import SECTIONS

Sheets = Mapping[str, Mapping[int, UInt8[np.ndarray, "_ _ 3"]]]  # by name, then by step
SHOWN, WIDEST = 5, 1024  # sheets of a name, and pixels of one's width

# By stage, the plots of a page: title, unit, and the metrics of its lines. What is held out and not here comes behind.
PLOTS: dict[int, dict[str, tuple[str, dict[str, str]]]] = {
    1: {
        "What the generator lowers": (
            "without the adversary and the codes",
            {"pixels": "train/rec_loss", "perceptual": "train/perceptual_loss"},
        ),
        "LPIPS": ("lower is better", {"held out": "eval/lpips"}),
        "PSNR": ("dB; higher is better", {"held out": "eval/psnr"}),
        "Adversarial losses": ("", {"discriminator": "train/discriminator_loss", "generator": "train/generator_loss"}),
        "Logits of the discriminator": ("", {"images": "train/logits_real", "reconstructions": "train/logits_fake"}),
        "Adaptive weight": ("", {"weight": "train/adaptive_weight"}),
        "Codes used": (
            "share of the codebook",
            {"training": "train/codebook_usage", "held out": "eval/codebook_usage"},
        ),
        "Perplexity of the codes": ("", {"training": "train/perplexity", "held out": "eval/perplexity"}),
        "Gradients": (
            "norm before clipping",
            {"generator": "train/grad_norm", "discriminator": "train/disc_grad_norm"},
        ),
    },
    2: {
        "Nats a token": ("lower is better", {"training": "train/loss", "held out": "eval/nll"}),
        "Accuracy": ("share of the tokens", {"training": "train/accuracy"}),
        "Gradients": ("norm before clipping", {"transformer": "train/grad_norm"}),
    },
}
BOTH: dict[str, tuple[str, dict[str, str]]] = {
    "Parameters": ("norm of all", {"norm": "train/param_norm"}),
    "Input wait": ("share of the time", {"waiting": "train/input_wait"}),
    "Speed": ("images a second", {"images": "train/images_per_second"}),
    "Skipped steps": ("in each line of metrics", {"skipped": "train/skipped", "stopped": "train/not_finite"}),
}
TILES = {  # held-out figures to be read first: title, unit, note, and by what the value is multiplied
    "eval/psnr": ("Reconstructions", "dB", "PSNR of held-out images", 1),
    "eval/error": ("Labels", "%", "of the held-out pixels have a wrong one", 100),
    "eval/lpips": ("LPIPS", "", "a perceptual distance; lower is better", 1),
    "eval/nll": ("Prior", "nats a token", "held out; lower is better", 1),
    "eval/codebook_usage": ("Codes used", "%", "of the codebook, on held-out images", 100),
}


class Contents(NamedTuple):
    """What a page shows of a run; `results` are those of its evaluation, if there is one."""

    workdir: str
    history: History
    lines: Sequence[Mapping[str, Any]]
    sheets: Sheets
    results: Sequence[Result]


def write(workdir: str, output: str, console: Console) -> None:
    """Writes the page of a run, finished or not, and prints its findings.

    Args:
      workdir: of the run, a folder or in a bucket, as people typed it.
      output: file of the page; "" is report.html in the workdir.
      console: for people.

    Raises:
      ValueError: there is no run, or it has no metrics.
      OSError: the page cannot be written.
    """
    run = read(workdir)
    findings = diagnose(run.history)
    target = storage.place(output) if output else storage.place(workdir) / "report.html"
    storage.write_whole(target, page(run, findings).encode())
    tell(run, findings, console)
    console.print(f"  {target}", markup=False, highlight=False, soft_wrap=True)


def finish(workdir: str, console: Console) -> None:
    """Does the same at the end of a training, which never fails by it: a page that cannot be written is a warning."""
    try:
        write(workdir, "", console)
    except Exception as error:  # of storage clients, which have no common class
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        text = f"warning: the report of this run is not written; {reason}"
        console.print(f"{text}. Later: vqgan report --workdir={workdir}", markup=False, highlight=False, soft_wrap=True)


def read(workdir: str) -> Contents:
    """Returns what there is of a run.

    Raises:
      ValueError: there is no run, it has no metrics yet, or a file of it is not what a run writes.
    """
    folder = storage.place(workdir)
    if not (folder / "config.json").exists():
        inside = [path.name for path in sorted(folder.iterdir())] if folder.is_dir() else []
        runs = [name for name in inside if (folder / name / "config.json").exists()]
        hint = f"Give one of the runs in it: {', '.join(runs)}." if runs else "Correct the path."
        raise ValueError(
            f"`--workdir` must be the folder of a run of `vqgan train`, with config.json and metrics.jsonl; {folder} "
            f"has no config.json. {hint}"
        )
    config = parsed(folder / "config.json", lambda path: stored.from_json(json.loads(path.read_text())))
    lines = [line for line in parsed(folder / "metrics.jsonl", Writer.read) if isinstance(line.get("step"), int)]
    if not any(name.startswith(("train/", "eval/")) for line in lines for name in line):
        raise ValueError(
            f"a report needs metrics; {folder}/metrics.jsonl has none. A run writes its first line after "
            f"config.log.metrics_every = {config.log.metrics_every} steps; converted weights have none."
        )
    figures = folder / "evaluation" / "evaluation.json"
    results_of = lambda path: [Result(**row) for row in json.loads(path.read_text())["results"]]
    results = parsed(figures, results_of) if figures.exists() else []
    return Contents(workdir.rstrip("/"), History.of(config, lines), lines, read_sheets(folder / "images"), results)


def parsed(path: epath.Path, read: Callable[[epath.Path], Any]) -> Any:
    """Returns what a function reads from a file; ValueError that names the file if it cannot."""
    try:
        return read(path)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must be as a run wrote it; {error}. Mend it or take it away.") from error


def read_sheets(folder: epath.Path) -> Sheets:
    """Returns the pictures `NAME_STEP.png` of a run, of each name a few that are spread over its steps."""
    files: dict[str, dict[int, epath.Path]] = {}
    for file in sorted(folder.glob("*.png")) if folder.is_dir() else ():
        name, _, step = file.stem.rpartition("_")
        if step.isdecimal():
            files.setdefault(name, {})[int(step)] = file
    sheets: dict[str, dict[int, UInt8[np.ndarray, "_ _ 3"]]] = {}
    for name, by_step in files.items():
        steps = np.array(sorted(by_step))
        for step in steps[np.unique(np.linspace(0, len(steps) - 1, SHOWN).round().astype(int))]:
            with contextlib.suppress(OSError, SyntaxError):  # a writer was killed, or is at work
                image = Image.open(io.BytesIO(by_step[int(step)].read_bytes())).convert("RGB")
                image.thumbnail((WIDEST, image.height))
                sheets.setdefault(name, {})[int(step)] = np.asarray(image)
    return sheets


def tell(run: Contents, findings: Mapping[str, Finding], console: Console) -> None:
    """Prints the findings, each with what to do."""
    said = f"{len(findings)} to mend" if findings else "nothing to mend"
    lines = [f"diagnosis of {run.workdir}, {progress(run)}: {said}"]
    for name, finding in findings.items():
        lines += [f"  {name}: {finding.reading}.", f"    {RULES[name].advice}"]
        lines += [f"    plot: {RULES[name].plot}", f"    {command(run.workdir, name, finding)}"]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def progress(run: Contents) -> str:
    """Returns how far the run is, in words."""
    return f"step {max(run.history.rows):,} of {run.history.config.steps:,}"


def page(run: Contents, findings: Mapping[str, Finding]) -> str:
    """Returns the page; a section without values is left out."""
    drawn = curves(run.history)
    shown = PLOTS[run.history.config.stage] | BOTH
    return render(
        "run.html",
        name=run.workdir,
        config=run.history.config,
        progress=progress(run),
        tiles=tiles(run, findings),
        findings=[
            (name, RULES[name], finding, command(run.workdir, name, finding)) for name, finding in findings.items()
        ],
        rules=[
            (name, "fires" if name in findings else "silent", rule.reads.replace("`", ""))
            for name, rule in RULES.items()
            if rule.plot in shown
        ],
        curves=drawn,
        units={name: unit for name, (unit, _) in shown.items()},
        sheets=run.sheets,
        figures=figures(first_of_each(run.results)),
        times=times(run.lines),
        again=[
            f"vqgan report --workdir={run.workdir}",
            f"vqgan train --config={run.workdir}/config.json --workdir={run.workdir}",
        ],
    )


def tiles(run: Contents, findings: Mapping[str, Finding]) -> list[tuple[str, str, str, str]]:
    """Returns the figures to be read first: the newest held-out ones, and how many rules fire."""
    newest = {name: run.history.curves(name)[1] for name in TILES if name in run.history}
    rows = ((*TILES[name], values[-1]) for name, values in newest.items())
    return [
        *((title, number(float(scale * value)), unit, note) for title, unit, note, scale, value in rows),
        ("Diagnosis", str(len(findings)), "to mend", "rules that fire" if findings else "no rule fires"),
    ]


def curves(history: History) -> dict[str, Markup]:
    """Returns the plots over steps; a mark stands where the adversary comes."""
    chosen = {title: names for title, (_, names) in (PLOTS[history.config.stage] | BOTH).items()}
    known = {name for names in chosen.values() for name in names.values()} | {"eval/bits_per_token", "eval/l1"}
    others = dict.fromkeys(name for row in history.rows.values() for name in row if name.startswith("eval/"))
    chosen |= {name.removeprefix("eval/"): {"held out": name} for name in others if name not in known}
    steps, gate = history.curves("train/disc_gate")
    marks = {"the adversary comes": float(steps[gate.nonzero()[0][0]])} if gate.any() else {}
    drawn = {}
    for title, names in chosen.items():
        lines = [plots.Line(label, *history.curves(name)) for label, name in names.items() if name in history]
        if lines:
            drawn[title] = plots.curves(lines, marks=marks)
    return drawn


def times(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, str]]:
    """Returns rows of where the time went, as far as the newest line of goodput tells: name, minutes, share."""
    last = next((line for line in reversed(lines) if "goodput/seconds" in line), None)
    if last is None:
        return []
    share = {name: last[f"goodput/{name}"] for name in SECTIONS}
    return [(name, last["goodput/seconds"] * s / 60, f"{s:.1%}") for name, s in share.items() if s >= 5e-4]
