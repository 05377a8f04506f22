"""Trains the same few steps at two commits and compares every metric of every step.

    python benchmarks/loss_compare.py main HEAD
    python benchmarks/loss_compare.py main HEAD --page=experiments/stage1_photos.py:no_disc --rtol=1e-3 --steps=10

Each commit is checked out into a temporary folder and runs its own code on its own page, in this Python environment.
Without `--page` three tiny runs are compared: a tokenizer whose losses have no kinks, to 1e-6; one with LPIPS, whose
ReLUs and maxima turn rounding into other gradients, to 1e-3; and a prior over the first one's codes, to 1e-6. The exit
status is 1 where a metric differs by more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
EVERY_STEP = (
    "--config.log.metrics_every=1",
    "--config.log.eval_every=1000000",
    "--config.log.checkpoint_every=1000000",
)


class Case(NamedTuple):
    """A page, how far metrics may differ, relative to the larger one, and whether it trains on codes of the first."""

    page: str
    rtol: float
    prior: bool = False


CASES = (
    Case("tests/train/tiny.py:smooth", 1e-6),
    Case("tests/train/tiny.py:lpips", 1e-3),
    Case("tests/train/tiny_prior.py:gpt", 1e-6, prior=True),
)


def checkout(commit: str, folder: Path) -> Path:
    """Puts the files of a commit into a folder."""
    folder.mkdir()
    archive = subprocess.run(["git", "-C", ROOT, "archive", commit], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], check=True, input=archive)
    return folder


def train(tree: Path, case: Case, workdir: Path, steps: int, tokenizer: Path) -> list[dict[str, float]]:
    """Runs a page with the code of a checkout; returns the training metrics of each step."""
    flags = [f"--config={tree / case.page}", f"--workdir={workdir}", f"--config.steps={steps}", *EVERY_STEP]
    flags += [f"--config.tokenizer.workdir={tokenizer}"] if case.prior else []
    environment = os.environ | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "vqgan_jax", "train", *flags]
    subprocess.run(command, check=True, cwd=tree, env=environment, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("second", "input_wait")
    return [
        {name: value for name, value in line.items() if name.startswith("train/") and not any(t in name for t in timed)}
        for line in lines
        if "train/param_norm" in line
    ]


def largest_difference(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> tuple[float, str]:
    """Returns the largest relative difference, and which metric of which step has it."""
    if len(ours) != len(theirs):
        return float("inf"), f"{len(ours)} and {len(theirs)} steps"
    worst = 0.0, "nothing"
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True), start=1):
        for name in sorted(set(a) & set(b)):
            difference = abs(a[name] - b[name]) / max(abs(a[name]), abs(b[name]), 1e-6)
            worst = max(worst, (difference, f"{name} of step {step}: {a[name]:.9g} and {b[name]:.9g}"))
    return worst


def main(argv: Sequence[str] | None = None) -> int:
    """Compares two commits; the exit status is 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs=2, metavar="COMMIT")
    parser.add_argument("--page", action="append", help="of a tokenizer, such as experiments/stage1_photos.py:no_disc")
    parser.add_argument("--rtol", type=float, default=1e-6, help="for these pages (default: 1e-6)")
    parser.add_argument("--steps", type=int, default=10)
    flags = parser.parse_args(argv)
    cases = [Case(page, flags.rtol) for page in flags.page] if flags.page else CASES
    differs = False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        trees = [checkout(commit, folder / f"tree_{i}") for i, commit in enumerate(flags.commits)]
        for number, case in enumerate(cases):
            runs = [
                train(tree, case, folder / f"run_{number}_{i}", flags.steps, folder / f"run_0_{i}")
                for i, tree in enumerate(trees)
            ]
            difference, where = largest_difference(*runs)
            differs |= difference > case.rtol
            verdict = "differs" if difference > case.rtol else "equal"
            print(f"{verdict:8} {case.page}: {len(runs[0])} steps, largest {difference:.2g} of {case.rtol:g} ({where})")
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
