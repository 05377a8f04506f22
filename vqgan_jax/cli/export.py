"""Writes a run's model in forms that others read: upstream's names, diffusers', plain arrays, or compiled functions."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vqgan_jax import cli, convert
from vqgan_jax.convert import stablehlo, write

TARGETS = ("taming", "llamagen", "diffusers", "safetensors", "stablehlo")
EXAMPLES = """examples:
  vqgan export --workdir=runs/imagenet --to=taming --output=imagenet.safetensors
  vqgan export --workdir=runs/imagenet --to=diffusers --output=imagenet_diffusers
  vqgan export --workdir=runs/imagenet_prior --to=safetensors --output=prior.safetensors
  vqgan export --workdir=runs/imagenet_prior --to=stablehlo --output=served --size=256x256 --platforms=cpu,cuda,tpu

All but stablehlo are files of safetensors; diffusers: in a folder with its config.json. A prior is written with its
tokenizers. stablehlo: a folder with encode, decode and, of a prior, sample, for any batch size, their weights and
example.py, which runs them without this package. What was exported, `vqgan convert` reads again, but for stablehlo.
"""


def main(argv: Sequence[str]) -> int:
    """`vqgan export`."""
    parser = cli.parser("export", __doc__, EXAMPLES)
    parser.add_argument("--workdir", required=True, help="of a run, or a converted model's folder")
    cli.add_step_flag(parser)
    parser.add_argument("--to", required=True, choices=TARGETS)
    parser.add_argument("--output", required=True, help="a file, for diffusers and stablehlo a folder; not there yet")
    parser.add_argument("--weights", choices=("ema", "raw"), default="", help="default: ema where there are any")
    parser.add_argument("--size", metavar="HxW", help="stablehlo: of images, in pixels; default: as in training")
    parser.add_argument("--platforms", default="cpu,cuda,tpu", help="stablehlo; default: cpu,cuda,tpu")
    flags = parser.parse_args(argv)

    output = Path(flags.output).absolute()
    if output.exists():
        raise cli.UsageError(f"`--output` must not be there yet; {output} is. Name another, or delete it.")
    converted = write.read_run(flags.workdir, step=flags.step, weights=flags.weights)
    if flags.to == "stablehlo":
        size, platforms = cli.size(flags.size, converted.config.data.image_size), tuple(flags.platforms.split(","))
        stablehlo.write(convert.model(converted), output, size=size, platforms=platforms)
    else:
        write.write_file(converted, flags.to, output)
    files = [output] if output.is_file() else sorted(output.iterdir())
    sizes = ", ".join(f"{file.name} {file.stat().st_size / 2**20:,.1f} MiB" for file in files)
    Console().print(f"{flags.to} in {output}: {sizes}", highlight=False, soft_wrap=True)
    return 0
