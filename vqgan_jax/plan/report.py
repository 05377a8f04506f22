"""Plans for people and for programs: a row a topology and batch, and where the cycles go."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from vqgan_jax.plan.chips import GIB
from vqgan_jax.plan.lowering import Outcome
from vqgan_jax.plan.topology import Topology


@dataclasses.dataclass(frozen=True)
class Plan:
    """A program on a slice.

    Attributes:
      config: the page and variant, as given.
      what: the function; see `lowering.call`.
      topology: the slice.
      mesh: sizes of its axes.
      batch_size: the global batch.
      parameter_bytes, optimizer_bytes: of a device; the latter with the running averages.
      model_flops: of a device in a run of the function.
      items: images or tokens of the global batch.
      outcome: what the compiler says.
      rounds: of the loop over tokens, for "sample".
      token_bytes: that a device must read in each; see `lowering.token_bytes`.
      memory_bytes: of a device of which no datasheet is known.
    """

    config: str
    what: str
    topology: Topology
    mesh: dict[str, int]
    batch_size: int
    parameter_bytes: int
    optimizer_bytes: int
    model_flops: float
    items: int
    outcome: Outcome
    rounds: int = 0
    token_bytes: float = 0.0
    memory_bytes: float | None = None

    @property
    def seconds(self) -> float | None:
        """Of a run, by the summed cycles, which are a GPU's kernels at their rooflines."""
        chip, cycles = self.topology.chip, self.outcome.cycles
        return cycles / chip.clock if chip and cycles else None

    def utilisation(self, seconds: float | None) -> float | None:
        """Returns model FLOPs over what the datasheet could do in that time."""
        return self.model_flops / seconds / self.topology.chip.flops if seconds and self.topology.chip else None

    @property
    def token_seconds(self) -> tuple[float, float | None, float] | None:
        """Of a token of each row: by the cycles of the loop, by the roofline, and what reading `token_bytes` takes."""
        chip, outcome = self.topology.chip, self.outcome
        if chip is None or not outcome.cycles or not self.rounds:
            return None
        share = sum(cycles for *_, runs, cycles in outcome.costs if runs >= self.rounds) / outcome.cycles / self.rounds
        optimal = outcome.optimal_seconds and outcome.optimal_seconds * share
        return outcome.cycles / chip.clock * share, optimal, self.token_bytes / chip.bandwidth

    @property
    def held(self) -> int:
        """Bytes of the state."""
        return self.parameter_bytes + self.optimizer_bytes

    @property
    def free_bytes(self) -> float | None:
        """Memory that is left, or (negative) that lacks."""
        memory = self.topology.chip.hbm if self.topology.chip else self.memory_bytes
        return None if memory is None else memory - self.outcome.hbm_bytes

    @property
    def fits(self) -> bool:
        """Into the memory of each chip."""
        return self.outcome.fits and (self.free_bytes is None or self.free_bytes >= 0)

    def record(self) -> dict[str, Any]:
        """Returns the plan for JSON, None for what is not known. Bytes, FLOPs and seconds are of one chip, one run."""
        outcome, chips, seconds = self.outcome, len(self.topology.devices), self.seconds
        token, token_optimal, token_floor = self.token_seconds or (None, None, None)
        return {
            "config": self.config,
            "topology": self.topology.name,
            "chips": chips,
            "batch_per_chip": self.batch_size / chips,
            "fits": self.fits,
            "hbm_bytes": outcome.hbm_bytes,
            "step_seconds": seconds,
            "items_per_second_per_chip": self.items / chips / seconds if seconds else None,
            "model_flops": self.model_flops,
            "compiler_flops": outcome.flops,
            "model_flops_utilisation": self.utilisation(seconds),
            "collective_bytes": outcome.collectives,
            "compile_seconds": outcome.compile_seconds,
            "what": self.what,
            "mesh": self.mesh,
            "parameter_bytes": self.parameter_bytes,
            "optimizer_bytes": self.optimizer_bytes,
            "free_bytes": self.free_bytes,
            "estimated_cycles": outcome.cycles,
            "optimal_seconds": outcome.optimal_seconds,
            "optimal_utilisation": self.utilisation(outcome.optimal_seconds),
            "unestimated": outcome.unestimated,
            "compiler": self.topology.compiler,
            "kernel_seconds": {kind: seconds for kind, (_, seconds) in by_kernel(self).items()},
            "token_seconds": token,
            "token_optimal_seconds": token_optimal,
            "token_floor_seconds": token_floor,
        }

    def advice(self) -> str:
        """Returns what to change where it does not fit."""
        name = f"{self.topology.name}, {self.batch_size / len(self.topology.devices):g} a chip"
        lacking = f"{name}: {-(self.free_bytes or 0) / GIB:.1f} GiB too much. "
        more = self.topology.chip.advice if self.topology.chip else ""
        if self.held > 0.5 * self.outcome.hbm_bytes:
            return lacking + "Most of it is the state: raise --config.mesh.fsdp, or take more chips." + more
        less = "a smaller --batch, --config.accumulate=2 or more, more chips, or --config.model.remat=full, of a prior "
        less += "--config.transformer.remat=full"
        return f"{lacking}Most of it are activations: take {less}." + more


def tables(plans: list[Plan]) -> list[Table]:
    """Returns tables of memory, speed, kernels, what a token takes, and traffic; in the first two a row a plan."""
    chips = [plan.topology.chip for plan in plans]
    by = " or ".join(dict.fromkeys(chip.estimate if chip else "cycles" for chip in chips))
    memory = headed("GiB a chip", "topology", "batch", "fits", "needs", "params", "optim.", "rest", "compile s")
    title = f"{plans[0].what} of {plans[0].config}, a chip: by {by}{' (by the roofline)' * ('cycles' in by)}"
    speed = headed(title, "topology", "batch", "ms", "items/s", "TFLOP", "compiler's", "MFU")
    drawing = headed("a token of each row, ms", "topology", "batch", f"by {by}", "by the roofline", "floor", "over it")
    kernels = headed("kernels at their rooflines", "topology", "batch", "kind", "runs", "ms", "%")
    traffic = headed("sent by a chip", "topology", "batch", "kind", "over", "MiB")
    for plan in plans:
        r, outcome = plan.record(), plan.outcome
        name = plan.topology.name, f"{r['batch_per_chip']:g}"
        parts = (outcome.hbm_bytes, plan.parameter_bytes, plan.optimizer_bytes, outcome.hbm_bytes - plan.held)
        sizes = (number(size, 2, 1 / GIB) for size in parts)
        memory.add_row(*name, fits(plan), *sizes, number(outcome.compile_seconds, 0))
        time = f"{number(plan.seconds, 1, 1e3)} ({number(outcome.optimal_seconds, 1, 1e3)})"
        used = f"{number(r['model_flops_utilisation'], 2)} ({number(r['optimal_utilisation'], 2)})"
        work = number(plan.model_flops, 2, 1e-12), number(outcome.flops, 2, 1e-12)
        speed.add_row(*name, time, number(r["items_per_second_per_chip"], 1), *work, used)
        for kind, (runs, seconds) in by_kernel(plan).items():
            share = number(seconds / (plan.seconds or 1.0), 1, 100.0)
            kernels.add_row(*name, kind, f"{runs:g}", number(seconds, 2, 1e3), share)
        if plan.token_seconds:
            token, optimal, floor = plan.token_seconds
            over = f"{number(token, 1, 1 / floor)} ({number(optimal, 1, 1 / floor)})"
            drawing.add_row(*name, *(number(seconds, 2, 1e3) for seconds in plan.token_seconds), over)
        for kind, by_axes in outcome.collectives.items():
            for axes, size in by_axes.items():
                traffic.add_row(*name, kind, axes, number(size, 2, 2**-20))
    return [memory, speed, *(table for table in (kernels, drawing, traffic) if table.row_count)]


def by_kernel(plan: Plan) -> dict[str, tuple[float, float]]:
    """Returns runs and seconds of each kind of kernel of a GPU, zeros of a kind that there is not; nothing of a TPU."""
    chip = plan.topology.chip
    if chip is None:
        return {}
    rows = {kind: [row[3:] for row in plan.outcome.costs if row[2] == kind] for kind in chip.kernels}
    total = lambda column, row: sum((values[column] for values in row), start=0.0)
    return {kind: (total(0, row), total(1, row) / chip.clock) for kind, row in rows.items()}


def sizes(plans: Sequence[Plan], steps: Sequence[int]) -> Table:
    """Returns a table with a row a plan: what fits, and how long so many steps take where that is known."""
    made = headed("a device", "config", "topology", "batch", "fits", "needs GiB", "TFLOP a step", "days")
    for plan, count in zip(plans, steps, strict=True):
        name = plan.config, plan.topology.name, f"{plan.batch_size / len(plan.topology.devices):g}"
        needs, work = number(plan.outcome.hbm_bytes, 2, 1 / GIB), number(plan.model_flops, 2, 1e-12)
        made.add_row(*name, fits(plan), needs, work, number(plan.seconds, 2, count / 86_400))
    return made


def headed(title: str, *heads: str) -> Table:
    """Returns an empty table without lines, for numbers are many."""
    made = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for i, head in enumerate(heads):
        wide = head in ("operation", "module", "kind")  # what is folded where a terminal is narrow
        made.add_column(head, justify="left" if wide or i == 0 else "right", no_wrap=not wide, overflow="fold")
    return made


def fits(plan: Plan) -> str:
    """Returns yes or no, and by how much."""
    if plan.free_bytes is None:
        return "yes" if plan.fits else "no"
    return (
        f"yes, {plan.free_bytes / GIB:.1f} free" if plan.fits else f"[bold red]no, {-plan.free_bytes / GIB:.1f} over[/]"
    )


def number(value: float | int | None, digits: int, scale: float = 1.0) -> str:
    """Returns a number as text, a dash for what is not known."""
    return "-" if value is None else f"{value * scale:,.{digits}f}"


def profile(plan: Plan) -> list[Table]:
    """Returns cycles by module and by kind of operation, and the twenty dearest operations."""
    costs, whole = plan.outcome.costs, plan.outcome.cycles or 1.0
    modules: dict[str, float] = defaultdict(float)
    kinds: dict[str, float] = defaultdict(float)
    dearest = headed("the dearest", "operation", "module", "kind", "runs", "M cycles", "%")
    for i, (name, module, kind, runs, cycles) in enumerate(costs):
        modules[module] += cycles
        kinds[kind] += cycles
        if i < 20:
            dearest.add_row(name, module, kind, f"{runs:g}", number(cycles, 2, 1e-6), number(cycles / whole, 1, 100))
    tables = []
    for title, sums in (("module", modules), ("kind", kinds)):
        made = headed(f"{plan.topology.name}: cycles by {title}", title, "M cycles", "%")
        for name, cycles in sorted(sums.items(), key=lambda row: -row[1])[:25]:
            made.add_row(name, number(cycles, 2, 1e-6), number(cycles / whole, 1, 100))
        tables.append(made)
    return [*tables, dearest]
