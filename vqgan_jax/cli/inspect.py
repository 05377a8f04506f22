"""Tells what somebody's file of weights is: its sizes, what would be loaded of it, and what not."""

import argparse
from collections.abc import Sequence

EXAMPLES = """examples:
  vqgan inspect vqgan_imagenet_f16_1024.ckpt
  vqgan inspect model.safetensors --names=20
  vqgan inspect drin_transformer.ckpt --heads=16

Files of torch.save (zip or legacy), safetensors, MessagePack of Flax, and folders with a config.json. Nothing in a file
is run, and no tensor is read: only names and shapes are.
"""


def main(argv: Sequence[str]) -> int:
    """`vqgan inspect`."""
    parser = argparse.ArgumentParser(
        "vqgan inspect", description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", help="of weights, or a folder that holds one")
    parser.add_argument("--heads", type=int, help="of a transformer, which no shape tells; default: by its width")
    parser.add_argument("--names", type=int, default=8, help="shown of each list at most; default: 8")
    flags = parser.parse_args(argv)

    import math

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from vqgan_jax.convert import taming
    from vqgan_jax.convert.files import open_checkpoint
    from vqgan_jax.convert.weights import ConvertError

    console = Console()
    checkpoint = open_checkpoint(flags.file)
    sizes = [math.prod(tensor.shape) for tensor in checkpoint.tensors.values()]
    mebibytes = sum(
        n * t.dtype.itemsize for n, t in zip(sizes, checkpoint.tensors.values(), strict=True)
    ) / 2**20  # fmt: skip
    console.print(f"{len(sizes)} tensors, {sum(sizes):,} numbers, {mebibytes:,.1f} MiB", highlight=False)
    try:
        # Here nothing that is missing or too much is an error.
        planned = taming.plan(checkpoint, num_heads=flags.heads, allow=("*",))
        console.print(summary(planned.config))
        lists = planned.report._asdict()
    except ConvertError as error:
        console.print(f"[bold]not a model that can be loaded:[/] {escape(str(error))}", soft_wrap=True)
        lists = {"tensors": tuple(f"{name} {tensor.shape}" for name, tensor in checkpoint.tensors.items())}
    table = Table("what", "how many", "names")
    for what, names in lists.items():
        more = [f"and {len(names) - flags.names} more"] if len(names) > flags.names else []
        table.add_row(what, str(len(names)), escape("\n".join([*names[: flags.names], *more])))
    console.print(table)
    return 0


def summary(found) -> str:
    """What the model of a config is, in a line."""
    from vqgan_jax import config as configs

    if isinstance(found, configs.Stage1):
        m, q = found.model, found.quantizer
        factor = 2 ** (len(m.channel_multipliers) - 1)
        return (
            f"[bold]a tokenizer[/]: f{factor}, {q.codebook_size} codes of {q.embed_dim}, {q.kind}, "
            f"{m.image_channels} channels, widths {[m.channels * n for n in m.channel_multipliers]}"
        )
    t, k = found.transformer, found.tokenizer
    return (
        f"[bold]a prior[/]: {t.depth} layers of {t.width}, {t.num_heads} heads, condition {found.condition.kind!r}, "
        f"order {t.order!r}, over {k.codebook_size} codes of f{k.downsample_factor}"
    )
