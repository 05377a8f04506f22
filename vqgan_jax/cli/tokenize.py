"""Writes a token cache: the codes of all images, so that stage 2 trains without encoding them."""

import time
from collections.abc import Sequence

import jax
from absl import logging
from rich.console import Console

from vqgan_jax import cli
from vqgan_jax import config as configs
from vqgan_jax.data import storage
from vqgan_jax.train import token_cache
from vqgan_jax.train.loop import progress_bar

EXAMPLES = """examples:
  vqgan tokenize --config=stage2_photos --workdir=runs/photos_tokens
  vqgan tokenize --config=stage2_imagenet --workdir=tokens --config.tokenizer.crops=10 --distributed

Then `vqgan train` with --config.data.source=tokens:DIR. Run the same command again to go on after an interruption.
"""


def main(argv: Sequence[str]) -> int:
    """`vqgan tokenize`."""
    parser = cli.parser("tokenize", __doc__, EXAMPLES)
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="a stage-2 page of the lab book")
    parser.add_argument(
        "--workdir", required=True, help="folder of the cache, or gs:// or s3:// path, seen by all processes"
    )
    cli.add_step_flag(parser, default="", of=" of the tokenizer")
    cli.add_cluster_flags(parser)
    flags, overrides = parser.parse_known_args(argv)

    config = cli.load_config(flags.config, overrides)
    if config.stage != 2:
        raise cli.UsageError(f"`--config` must be a page of stage 2; {flags.config} is of stage {config.stage}.")
    cli.join_cluster(flags)

    logging.set_verbosity(logging.WARNING)
    if jax.process_index() == 0:
        storage.check_writable(storage.place(flags.workdir))
    write(config, flags.workdir, Console(quiet=jax.process_index() != 0), step=flags.step)
    return 0


def write(config: configs.Stage2, folder: str, console: Console, *, step: int | str = "") -> None:
    """Writes the cache, with progress."""
    with progress_bar(console) as bar:
        task, start = bar.add_task("tokenizing", total=None), time.monotonic()
        report = lambda done, total: bar.update(task, completed=done, total=total)
        plan = token_cache.write_cache(config, folder, report, step=step)
    counts = ", ".join(f"{split.examples:,} of {name}" for name, split in plan.splits.items())
    seconds = time.monotonic() - start
    console.print(f"{counts} in {folder}, {seconds:.0f} s; tokenizer {plan.fingerprint}", soft_wrap=True)
