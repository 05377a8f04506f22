"""Makes somebody's file of weights a folder that `load_tokenizer`, `load_prior` and every verb take."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vqgan_jax import cli, convert
from vqgan_jax.convert import hub, write

EXAMPLES = """examples:
  vqgan convert --input=vqgan_imagenet_f16_16384.ckpt --output=runs/imagenet_f16
  vqgan convert --input=drin_transformer.ckpt --output=runs/drin --heads=16
  vqgan convert --input=sflckr.ckpt --output=runs/sflckr --condition=segmentation --allow='*.attn.extra'
  vqgan convert --input=c2i_L_384.pt --tokenizer=vq_ds16_c2i.pt --output=runs/llamagen
  vqgan convert --from=diffusers --input=vqvae_folder --output=runs/vqvae
  vqgan convert --input=hf://OWNER/NAME@REVISION/FILE --output=runs/theirs
  vqgan convert --input=vqgan_imagenet_f16_16384 --output=runs/imagenet_f16
  vqgan train --config=runs/imagenet_f16/config.json --workdir=runs/imagenet_f16 --config.data.source=folder:photos

`vqgan inspect FILE` says what would be made of a file; `vqgan models` lists published ones that have a name. Nothing in
a file is run. Training goes on in the new folder, with the file's own optimisers where it holds them.
"""


def main(argv: Sequence[str]) -> int:
    """`vqgan convert`."""
    parser = cli.parser("convert", __doc__, EXAMPLES)
    parser.add_argument("--input", required=True, metavar="FILE", help=cli.WEIGHTS)
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    cli.add_checkpoint_flags(parser)
    flags = parser.parse_args(argv)

    console, began = Console(), time.monotonic()
    opened = convert.open_checkpoint(hub.fetch(flags.input))
    planned = convert.plan(opened, flags.format, **cli.checkpoint_options(flags))
    console.print(planned.config.summary)
    with console.status("reading and writing"):
        write.write_run(planned, Path(flags.output).absolute())
    dropped = f"; {len(planned.report.dropped)} not needed" if planned.report.dropped else ""
    console.print(
        f"{len(planned.report.used)} tensors in {flags.output}, step {planned.step}, "
        f"{time.monotonic() - began:.1f} s{dropped}",
        highlight=False,
        soft_wrap=True,
    )
    kept = {"discriminator": "discriminator" in planned.networks, "optimisers": bool(planned.moments)}
    console.print("  ".join(f"{name}: {'kept' if there else 'none in the file'}" for name, there in kept.items()))
    return 0
