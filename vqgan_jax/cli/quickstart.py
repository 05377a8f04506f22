"""Trains both stages on the embedded photographs and writes a report: the whole story in one command."""

from collections.abc import Sequence

import jax
from absl import logging
from rich.console import Console

from vqgan_jax import cli, quickstart
from vqgan_jax.data import storage

EXAMPLES = """examples:
  vqgan quickstart
  vqgan quickstart --workdir=runs/longer --minutes=30
  vqgan quickstart --workdir=runs/other --seed=1

Interrupt it as you like: the same command goes on. It ends with WORKDIR/report.html.
"""


def main(argv: Sequence[str]) -> int:
    """`vqgan quickstart`."""
    parser = cli.parser("quickstart", __doc__, EXAMPLES)
    parser.add_argument("--workdir", default="runs/quickstart", help="default: runs/quickstart")
    parser.add_argument(
        "--minutes",
        type=float,
        default=10.0,
        help="about, on two CPU cores; scales the steps of both stages; default: 10",
    )
    parser.add_argument("--seed", type=int, default=0, help="of parameters, data order and samples; default: 0")
    flags = parser.parse_args(argv)

    if not flags.minutes > 0:
        raise cli.UsageError(f"`--minutes` must be above 0; got {flags.minutes}.")
    logging.set_verbosity(logging.WARNING)
    quickstart.run(make_plan(flags.workdir, flags.minutes, flags.seed), Console())
    return 0


def make_plan(workdir: str, minutes: float | int, seed: int = 0) -> quickstart.Quickstart:
    """Returns the pages' configs with their steps scaled, and the commands that do the same."""
    scaled = lambda steps: max(round(steps * minutes / 10), 10)
    load = lambda name, overrides: cli.load_config(f"{name}:quick", overrides)
    base = {name: load(name, []) for name in ("stage1_photos", "stage2_photos")}
    devices = jax.device_count()  # more of them than a batch has rows want a larger batch
    schedule = lambda name: {
        "seed": seed,
        "batch_size": -(-base[name].batch_size // devices) * devices,
        "steps": scaled(base[name].steps),
        "log.metrics_every": min(base[name].log.metrics_every, scaled(base[name].steps) // 5),
        "log.eval_every": max(scaled(base[name].steps) // 5, 1),
        "log.checkpoint_every": max(scaled(base[name].steps) // 5, 1),
    }
    one = schedule("stage1_photos") | {"loss.disc_start": scaled(base["stage1_photos"].steps) // 2}
    two = schedule("stage2_photos") | {"tokenizer.workdir": f"{workdir}/tokenizer"}
    cached = two | {"data.source": f"tokens:{workdir}/tokens"}
    flags = lambda changes: [f"--config.{key}={value}" for key, value in changes.items()]
    command = lambda verb, name, part, changes: " ".join(
        [f"vqgan {verb} --config={name}:quick --workdir={workdir}/{part}", *flags(changes)]
    )
    return quickstart.Quickstart(
        workdir=storage.place(workdir),
        tokenizer=load("stage1_photos", flags(one)),
        prior=load("stage2_photos", flags(cached)),
        images=load("stage2_photos", flags(two)),
        commands=[
            command("train", "stage1_photos", "tokenizer", one),
            command("tokenize", "stage2_photos", "tokens", two),
            command("train", "stage2_photos", "prior", cached),
            f"vqgan reconstruct --workdir={workdir}/tokenizer --input=photos --output={workdir}/reconstructions",
            f"vqgan sample --workdir={workdir}/prior --output={workdir}/samples",
        ],
    )
