"""Trains what a config describes, or goes on where the same command stopped."""

import dataclasses
from collections.abc import Sequence

import jax
from rich.console import Console
from rich.table import Table

from vqgan_jax import cli
from vqgan_jax import config as configs
from vqgan_jax.data import storage
from vqgan_jax.evaluate import of_training
from vqgan_jax.nn import fields
from vqgan_jax.train import loop, program, sharding
from vqgan_jax.train.state import rate_factor

RATES = ("learning_rate", "disc_learning_rate")

EXAMPLES = """examples:
  vqgan train --config=stage1_photos --workdir=runs/photos
  vqgan train --config=stage1_cifar10 --workdir=runs/cifar10 --config.data.data_dir=DIR
  vqgan train --config=stage1_imagenet:f16_16384 --workdir=gs://bucket/run --distributed
  vqgan train --config=stage1_photos:l1_only --dry_run
  vqgan train --config=stage2_imagenet --workdir=runs/prior --config.batch_size=64 --scale_lr

Every key of the config is a flag: --config.optimizer.learning_rate=3e-4. Run the same command again to resume.
It ends with WORKDIR/report.html: curves, sheets and a diagnosis, which `vqgan report` writes at any other time.

environment (docs/pods.md tells more):
  GLIBC_TUNABLES=glibc.malloc.hugetlb=1  huge pages: 6% more images a second on two CPU cores under Linux
  LIBTPU_INIT_ARGS="--xla_tpu_..."       flags of the TPU compiler; `vqgan` puts its own before them
"""


def main(argv: Sequence[str]) -> int:
    """`vqgan train`."""
    parser = cli.parser("train", __doc__, EXAMPLES)
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="a page of the lab book")
    parser.add_argument("--workdir", help="folder, gs:// or s3:// path of the run's files")
    parser.add_argument("--dry_run", action="store_true", help="print config, parameters and shardings, and exit")
    scale = "the learning rates are for the page's batch size: multiply them by the square root of how many times as "
    scale += "large --config.batch_size is"
    parser.add_argument("--scale_lr", action="store_true", help=scale)
    parser.add_argument("--profile", metavar="FIRST:LAST", help="trace these steps into WORKDIR/profile")
    cache = "where a restart finds what was compiled; default: $JAX_COMPILATION_CACHE_DIR, or else "
    cache += "WORKDIR/compilation_cache; empty: nowhere"
    parser.add_argument("--compilation_cache", metavar="DIR", help=cache)
    cli.add_cluster_flags(parser)
    flags, overrides = parser.parse_known_args(argv)

    config, profile = cli.load_config(flags.config, overrides), window(flags.profile)
    console = cli.join_cluster(flags)
    if flags.scale_lr:
        config = scale_rates(config, cli.load_config(flags.config).batch_size, console)
    if flags.dry_run:
        describe(config, console)
        return 0
    if not flags.workdir:
        raise cli.UsageError("`--workdir` must name a folder for checkpoints, metrics and images; none was given.")
    workdir = storage.place(flags.workdir)
    if jax.process_index() == 0:
        storage.check_writable(workdir)
    with cli.compilation_cache(flags.compilation_cache, f"{workdir}/compilation_cache"):
        try:
            finished = loop.train(config, workdir, console, evaluator=of_training.evaluator, profile=profile)
        except FloatingPointError:
            report(flags.workdir, console)
            raise
        if finished:
            report(flags.workdir, console)
    return 0


def report(workdir: str, console: Console) -> None:
    """Writes the page of a run that ended and prints what goes wrong in it, by process 0."""
    if jax.process_index() == 0:
        from vqgan_jax.report import run  # its libraries take a second, which no start should wait for

        run.finish(workdir, console)


def scale_rates(config: program.Config, before: int, console: Console) -> program.Config:
    """Returns a config with learning rates for its own batch size, where they were for that of the page, `before`.

    A run goes on with the same rates: by the same command, or by its own `config.json`, whose batch size is theirs.
    """
    factor = rate_factor(config.batch_size, before)
    rates = {name: factor * rate for name, rate in vars(config.optimizer).items() if name in RATES}
    values = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
    console.print(f"batch size {config.batch_size}, the page's is {before}: {values}")
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **rates))


def window(text: str | None) -> tuple[int, int] | None:
    """First and last step of `--profile`; UsageError if it is of another form."""
    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise cli.UsageError(f"`--profile` must look like 100:105, first and last step, from 1; got {text!r}.")
    return int(first), int(last)


def describe(config: configs.Stage1 | configs.Stage2, console: Console) -> None:
    """Prints the resolved config, and each array of the state with its shape and sharding."""
    console.print_json(data=fields.write(config))
    state = program.abstract_state(config, program.make_mesh(config))
    table = Table(
        "parameter",
        "shape",
        "sharding",
        title=f"mesh {dataclasses.asdict(config.mesh)} on {jax.device_count()} devices",
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
        table.add_row(sharding.path_name(path), str(leaf.shape), str(tuple(leaf.sharding.spec)))
    console.print(table)
    for name, tree in state.params.items():
        console.print(f"{name}: {sum(leaf.size for leaf in jax.tree.leaves(tree)):,} parameters")
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    console.print(f"state: {size / 2**20:,.1f} MiB over all devices")
