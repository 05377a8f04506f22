"""Tells, before a launch and without the chips, whether a run fits them, how fast it is and where its time goes."""

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from vqgan_jax import cli
from vqgan_jax.data import storage
from vqgan_jax.plan import lowering, report, topology
from vqgan_jax.train import program, stage_of
from vqgan_jax.train.compat import serialize_executable
from vqgan_jax.train.watch import tracking

EXAMPLES = """examples:
  vqgan plan --config=stage1_imagenet --topology=v5p:2x2x1 --batch=16
  vqgan plan --config=stage2_imagenet:sharded --topology=v5p:4x4x4,v6e:8x8 --batch=16,32 --json=plan.json
  vqgan plan --config=stage2_imagenet --what=sample --topology=v6e:2x2 --batch=16 --profile
  vqgan plan --config=stage1_imagenet --topology=h100:8,4xa100:8 --batch=16
  vqgan plan --config=stage1_photos --topology=cpu:8 --batch=1
  vqgan plan --config=own --fit --topology=v5e:1x1,h100:1
  vqgan plan --config=own --fit --topology=cpu:1 --memory=24

Compiles what would run, for chips that are only described: pip install 'vqgan_jax[tpu]' brings the compiler of TPUs,
pip install 'vqgan_jax[cuda-plan]' that of GPUs; no TPU, no GPU and no driver is needed. Every key of the config is a
flag, as for `vqgan train`. A large model takes minutes a topology; outcomes are kept in --cache under the program
itself, so that only what changed is compiled again.

`--what=start` is the first state of a tokenizer, out of --config.quantizer.kmeans_batches batches at once: what must
fit before the first step.

`--fit` plans every size of a page with a dial, `own` or `own_prior`, and says which is the largest that fits. For a
machine that has no name here plan for cpu:1 with its --memory, and leave a fifth of it free.

Of sampling: what a token of each row takes in the loop, over a floor: the time to read the parameters and half of the
full cache of keys and values at the datasheet's bandwidth.

Seconds by cycles: the compiler's own estimate of every operation, loops times their trips, over the clock. Optimal:
its roofline. A GPU's compiler has no estimate: each kernel takes the larger of its FLOPs over the datasheet's peak and
its bytes over the bandwidth, and a launch of 1 us. No estimate waits for a collective that nothing hides. MFU: model
FLOPs (matrix products and convolutions, counted once) over seconds times the datasheet's bfloat16 peak.
"""


def main(argv: Sequence[str]) -> int:
    """`vqgan plan`."""
    parser = cli.parser("plan", __doc__, EXAMPLES)
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="a page of the lab book")
    parser.add_argument(
        "--topology", required=True, metavar="NAME,...", help="slices or hosts, such as v5p:4x4x4, h100:8 or cpu:8"
    )
    parser.add_argument("--batch", metavar="N,...", help="images or sequences a chip; default: the config's batch_size")
    parser.add_argument("--what", choices=tuple(lowering.CALLS), default="step", help="default: step")
    parser.add_argument("--json", metavar="FILE", help="writes a list of objects, one a topology and batch")
    parser.add_argument("--executable", metavar="FILE", help="writes the serialised program, of one topology and batch")
    parser.add_argument("--profile", action="store_true", help="prints the cycles by module and by kind of operation")
    parser.add_argument("--cache", default="~/.cache/vqgan_jax/plan", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--fit", action="store_true", help="plans every size of the page, and says which one fits")
    parser.add_argument("--memory", type=float, metavar="GIB", help="of a device, where the topology is cpu:N")
    flags, overrides = parser.parse_known_args(argv)

    specs, names = sizes_of(flags.config) if flags.fit else [flags.config], flags.topology.split(",")
    loaded = {spec: cli.load_config(spec, overrides) for spec in specs}
    batches: list[int | None] = [None]
    if flags.batch:
        batches = [int(text) if text.isdecimal() else 0 for text in flags.batch.split(",")]
    if 0 in batches:
        raise cli.UsageError(f"`--batch` must be positive whole numbers a chip; got {flags.batch!r}. Such as 16,32.")
    if flags.executable and len(specs) * len(names) * len(batches) > 1:
        raise cli.UsageError("`--executable` is one program; give one topology and one batch.")

    console = Console()
    prepare(names)
    plans = []
    for spec, name, batch in [(spec, name, batch) for spec in specs for name in names for batch in batches]:
        plans.append(one(spec, loaded[spec], flags, name, batch, console))
        if flags.json:  # after each: a long list may be stopped
            Path(flags.json).write_text(json.dumps([plan.record() for plan in plans], indent=1) + "\n")
    if flags.fit:
        fitting(plans, loaded, console)
        return 0
    print_plans(plans, loaded[flags.config], flags, console)
    return 0


def print_plans(plans: Sequence[report.Plan], config: Any, flags: argparse.Namespace, console: Console) -> None:
    """Prints the tables of all plans, and what to know and to change of each."""
    console.print(*report.tables(list(plans)))
    for compiler in dict.fromkeys(plan.topology.compiler for plan in plans):
        console.print(f"compiled by {compiler}", soft_wrap=True, highlight=False)
    if flags.what == "step" and stage_of(config).start_batches:
        text = "The first state is made of data by a program of its own: plan it, too, with --what=start."
        console.print(text, soft_wrap=True)
    for plan in plans:
        if names := sorted(set(plan.outcome.unestimated)):
            count, where = len(plan.outcome.unestimated), plan.topology.name
            text = f"{where}: the compiler knows no time of {count} operations; they are not in the cycles: "
            console.print(text + ", ".join(names), soft_wrap=True, highlight=False)
        if not plan.fits:
            console.print(plan.advice(), soft_wrap=True)
        if flags.profile and plan.outcome.costs:
            console.print(*report.profile(plan))


def prepare(names: Sequence[str]) -> None:
    """Starts JAX on the CPU, with as many devices as the largest CPU topology wants.

    Raises:
      ValueError: a topology of no known form.
    """

    sizes = [math.prod(sides) for _, family, sides in map(topology.parse, names) if family == "cpu"]
    topology.quiet()
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", max(*sizes, jax.config.jax_num_cpu_devices, 1))  # type: ignore[attr-defined]
    except RuntimeError:  # a backend is there already, as inside somebody's program: `describe` counts its devices
        pass


def sizes_of(page: str) -> list[str]:
    """Returns the configs of all sizes of a page; UsageError if it has no dial."""
    with cli.page_module(cli.find_page(page)) as module:
        if not hasattr(module, "SIZES"):
            raise cli.UsageError(
                f"`--fit` needs a page with a dial, own or own_prior, without a variant; got {page!r}."
            )
        return [f"{page}:{size}" for size in module.SIZES]


def fitting(plans: Sequence[report.Plan], loaded: Mapping[str, Any], console: Console) -> None:
    """Prints what fits of the sizes of a page, and how to train the largest of that."""
    console.print(report.sizes(plans, [loaded[plan.config].steps for plan in plans]))
    for name in dict.fromkeys(plan.topology.name for plan in plans):
        fit = [plan.config for plan in plans if plan.topology.name == name and plan.fits]
        text = f"--config={fit[-1]} is the largest that fits" if fit else "none fits; give a smaller --batch"
        console.print(f"{name}: {text}", soft_wrap=True, highlight=False)


def one(
    spec: str, config: Any, flags: argparse.Namespace, name: str, batch: int | None, console: Console
) -> report.Plan:
    """Returns the plan of one topology and batch; the compiler's time is shown while it passes."""
    target = topology.describe(name)
    mesh = program.make_mesh(config, target.devices)
    if flags.fit and batch is None:  # the page's batch, rounded up to equal shares
        batch = -(-config.batch_size // mesh.size)
    if batch is not None:
        config = dataclasses.replace(config, batch_size=batch * mesh.size)
    function, arguments = lowering.call(config, mesh, flags.what)
    title, cache = f"{spec} on {name}, {config.batch_size} on {mesh.size} chips", storage.place(flags.cache)
    with tracking(console) as track:
        advance = track(f"{title}: lowering", 1)
        lowered = function.lower(*arguments)
        advance(1)
        advance = track(f"{title}: compiling, minutes for a large model", 1)
        if flags.executable:
            lowering.cached(lowered, target, cache).unlink(missing_ok=True)
        # What is read from JAX's own cache cannot be written as an executable.
        with cli.compilation_cache("" if flags.executable else None):
            outcome, executable = lowering.compiled(lowered, target, mesh, cache)
        advance(1)
    if flags.executable and executable is not None:
        Path(flags.executable).write_bytes(serialize_executable.serialize(executable)[0])
    plan = plan_of(config, spec, flags.what, target, mesh, arguments, outcome)
    return dataclasses.replace(plan, memory_bytes=flags.memory and flags.memory * report.GIB)


def plan_of(
    config: Any,
    page: str,
    what: str,
    target: topology.Topology,
    mesh: jax.sharding.Mesh,
    arguments: tuple[Any, ...],
    outcome: lowering.Outcome,
) -> report.Plan:
    """Returns the plan of a compiled function: the outcome beside what its shapes tell."""
    state = program.abstract_state(config, mesh)
    trains, draws = what in ("step", "start"), what == "sample"
    stage = stage_of(config)
    counted, shapes = lowering.call(stage.without_remat(config), mesh, what)
    return report.Plan(
        config=page,
        what=what,
        topology=target,
        mesh=dict(mesh.shape),
        batch_size=config.batch_size,
        parameter_bytes=lowering.bytes_a_device(state.params if trains else arguments[0]),
        optimizer_bytes=lowering.bytes_a_device((state.opt_state, state.ema)) if trains else 0,
        model_flops=lowering.flops(counted, *shapes) / mesh.size,
        items=config.batch_size * stage.items,
        outcome=outcome,
        rounds=stage.items - 1 if draws else 0,
        token_bytes=lowering.token_bytes(config, mesh) if draws else 0.0,
    )
