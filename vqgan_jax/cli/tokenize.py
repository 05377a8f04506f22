"""Writes a token cache: the codes of all images, so that stage 2 trains without encoding them."""

import time
from collections.abc import Sequence

import jax

from vqgan_jax import cli
from vqgan_jax.data import storage
from vqgan_jax.train import token_cache

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
    console = cli.join_cluster(flags)
    if jax.process_index() == 0:
        storage.check_writable(storage.place(flags.workdir))
    start = time.monotonic()
    plan = token_cache.write_cache(config, flags.workdir, console, step=flags.step)
    counts = ", ".join(f"{split.examples:,} of {name}" for name, split in plan.splits.items())
    seconds = time.monotonic() - start
    console.print(f"{counts} in {flags.workdir}, {seconds:.0f} s; tokenizer {plan.fingerprint}", soft_wrap=True)
    return 0
