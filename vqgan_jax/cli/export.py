"""Writes a run's model in forms that others read: upstream's names, diffusers', plain arrays, or compiled functions."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from etils import epath
from rich.console import Console

from vqgan_jax import cli, convert, models
from vqgan_jax.convert import hub, stablehlo, write
from vqgan_jax.convert.trees import Converted
from vqgan_jax.data import storage
from vqgan_jax.report import card
from vqgan_jax.train import stored

TARGETS = ("taming", "llamagen", "diffusers", "safetensors", "stablehlo", "hub")
OUTPUT = "a file, for diffusers and stablehlo a folder; not there yet. hub: hf://OWNER/NAME"
EXAMPLES = """examples:
  vqgan export --workdir=runs/imagenet --to=taming --output=imagenet.safetensors
  vqgan export --workdir=runs/imagenet --to=diffusers --output=imagenet_diffusers
  vqgan export --workdir=runs/imagenet_prior --to=safetensors --output=prior.safetensors
  vqgan export --workdir=runs/imagenet_prior --to=stablehlo --output=served --size=256x256 --platforms=cpu,cuda,tpu
  vqgan export --workdir=runs/imagenet --to=hub --output=hf://OWNER/NAME --private

All but stablehlo are files of safetensors; diffusers: in a folder with its config.json. A prior is written with its
tokenizers. stablehlo: a folder with encode, decode and, of a prior, sample, for any batch size, their weights and
example.py, which runs them without this package. hub: a repository that `load_tokenizer` and `load_prior` take by its
name, with a card of the figures that `vqgan evaluate` left in the run and of the run's newest sheets, in one commit; it
needs `pip install 'vqgan-jax[hub]'` and a token, by `hf auth login` or HF_TOKEN. What was exported, `vqgan convert`
reads again, but for stablehlo.
"""


def main(argv: Sequence[str]) -> int:
    """`vqgan export`."""
    parser = cli.parser("export", __doc__, EXAMPLES)
    parser.add_argument("--workdir", required=True, help="of a run, a converted model's folder, or hf://OWNER/NAME")
    cli.add_step_flag(parser)
    parser.add_argument("--to", required=True, choices=TARGETS)
    parser.add_argument("--output", required=True, help=OUTPUT)
    parser.add_argument("--weights", choices=("ema", "raw"), default="", help="default: ema where there are any")
    parser.add_argument("--size", metavar="HxW", help="stablehlo: of images, in pixels; default: as in training")
    parser.add_argument("--platforms", default="cpu,cuda,tpu", help="stablehlo; default: cpu,cuda,tpu")
    parser.add_argument("--private", action="store_true", help="hub: if the repository is new, nobody else sees it")
    flags = parser.parse_args(argv)

    if flags.to == "hub":
        return publish(flags)
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


def publish(flags: argparse.Namespace) -> int:
    """Publishes a run as a repository of the hub."""
    hub.check_repository(flags.output)
    converted = write.read_run(flags.workdir, step=flags.step, weights=flags.weights)
    with tempfile.TemporaryDirectory() as work:
        write_repository(converted, models.place_of(flags.workdir), flags.output, Path(work))
        message = f"{converted.config.summary}, step {converted.step}"
        address = hub.publish(Path(work), flags.output, message=message, private=flags.private)
    Console().print(f"{flags.output}: {address}", highlight=False, soft_wrap=True)
    return 0


def write_repository(converted: Converted, run: epath.Path, name: str, folder: Path) -> None:
    """Writes what a repository holds: weights, config, card and the run's newest sheet of each kind.

    Args:
      converted: the model.
      run: the run's folder, for its figures and sheets.
      name: of the repository, hf://OWNER/NAME.
      folder: an empty one.
    """
    write.write_file(converted, "safetensors", folder / "model.safetensors")
    storage.write_json(epath.Path(folder / "config.json"), stored.to_json(converted.config))
    sheets = {path.stem.rpartition("_")[0]: path for path in sorted((run / "images").glob("*_*.png"))}
    for kind, path in sheets.items():
        (folder / f"{kind}.png").write_bytes(path.read_bytes())
    figures = run / "evaluation" / "evaluation.json"
    text = card.card(converted, name, sorted(sheets), figures.read_text() if figures.exists() else "")
    (folder / "README.md").write_text(text)
