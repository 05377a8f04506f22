"""Tells what somebody's file of weights is: its sizes, what would be loaded of it, and what not."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vqgan_jax import cli, convert
from vqgan_jax.convert import hub

EXAMPLES = """examples:
  vqgan inspect vqgan_imagenet_f16_1024.ckpt
  vqgan inspect model.safetensors --names=20
  vqgan inspect drin_transformer.ckpt --heads=16
  vqgan inspect hf://OWNER/NAME

Files of torch.save (zip or legacy), safetensors, MessagePack of Flax, and folders with a config.json. Nothing in a file
is run, and no tensor is read: only names and shapes are.
"""


def main(argv: Sequence[str]) -> int:
    """`vqgan inspect`."""
    parser = cli.parser("inspect", __doc__, EXAMPLES)
    parser.add_argument("file", help=cli.WEIGHTS)
    parser.add_argument("--names", type=int, default=8, help="shown of each list at most; default: 8")
    cli.add_checkpoint_flags(parser)
    flags = parser.parse_args(argv)

    console = Console()
    checkpoint = convert.open_checkpoint(hub.fetch(flags.file))
    sizes = [(math.prod(tensor.shape), tensor.dtype.itemsize) for tensor in checkpoint.tensors.values()]
    count, mebibytes = sum(n for n, _ in sizes), sum(n * width for n, width in sizes) / 2**20
    console.print(f"{len(sizes)} tensors, {count:,} numbers, {mebibytes:,.1f} MiB", highlight=False)
    options = cli.checkpoint_options(flags) | {"allow": ("*",)}  # here nothing that is missing or extra is an error
    try:
        name = flags.format or convert.recognise(checkpoint)
        planned = convert.plan(checkpoint, name, **options)
        console.print(f"{name}: {planned.config.summary}")
        lists = planned.report._asdict()
    except convert.ConvertError as error:
        console.print(f"[bold]not a model that can be loaded:[/] {escape(str(error))}", soft_wrap=True)
        lists = {"tensors": tuple(f"{name} {tensor.shape}" for name, tensor in checkpoint.tensors.items())}
    table = Table("what", "how many", "names")
    for what, names in lists.items():
        more = [f"and {len(names) - flags.names} more"] if len(names) > flags.names else []
        table.add_row(what, str(len(names)), escape("\n".join([*names[: flags.names], *more])))
    console.print(table)
    return 0
