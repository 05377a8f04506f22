"""Lists the published checkpoints that `vqgan convert` knows by name: where they are, their figures, their hashes."""

import dataclasses
from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table

from vqgan_jax import cli
from vqgan_jax.convert import hub

EXAMPLES = """examples:
  vqgan models
  vqgan models vqgan_imagenet_f16_1024
  vqgan inspect vqgan_imagenet_f16_1024
  vqgan convert --input=vqgan_imagenet_f16_1024 --output=runs/imagenet_f16

What is fetched by name, `vqgan convert` and `vqgan inspect` fetch once. The others have a page that opens in a browser;
the file from there is the verbs' input. The places are their authors'; whether they are there still, nobody promises.
rFID is of ImageNet's 50,000 validation images at 256 pixels, as its source gives it.
"""


def main(argv: Sequence[str]) -> int:
    """`vqgan models`."""
    parser = cli.parser("models", __doc__, EXAMPLES)
    parser.add_argument("name", nargs="?", help="of one of them, to see all of it")
    name = parser.parse_args(argv).name
    rows, console = hub.published(), Console()
    if name is not None and name not in rows:
        raise cli.UsageError(f"a name must be one of {', '.join(rows)}; got {name!r}. Choose of these.")
    if name is not None:
        for key, value in dataclasses.asdict(rows[name]).items():
            console.print(f"{key}: {value or '-'}", highlight=False, soft_wrap=True)
        return 0
    table = Table(Column("name", no_wrap=True), "what", "MB", "rFID", "fetched")
    for each, row in rows.items():
        size, rfid = (f"{row.size / 1e6:,.0f}" if row.size else ""), (f"{row.rfid:g}" if row.rfid else "")
        table.add_row(each, row.what, size, rfid, "by name" if row.url else "by a browser")
    console.print(table)
    return 0
