"""Writes the page of a training run: curves, sheets over time, and what goes wrong with the key to turn."""

from collections.abc import Sequence

from rich.console import Console

from vqgan_jax import cli
from vqgan_jax.report import run

EXAMPLES = """examples:
  vqgan report --workdir=runs/photos
  vqgan report --workdir=runs/quickstart/prior --output=prior.html
  vqgan report --workdir=gs://bucket/run

A run may be reported at any time, also while it trains; `vqgan train` writes the same page at its end. What it finds is
printed, too. docs/diagnosis.md has the rules.
"""


def main(argv: Sequence[str]) -> int:
    """`vqgan report`."""
    parser = cli.parser("report", __doc__, EXAMPLES)
    parser.add_argument("--workdir", required=True, help="folder, gs:// or s3:// path of the run")
    parser.add_argument("--output", default="", metavar="FILE", help="default: report.html in the workdir")
    flags = parser.parse_args(argv)
    run.write(flags.workdir, flags.output, Console())
    return 0
