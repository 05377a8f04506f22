"""One compilation: what it says of memory, time and traffic, kept in a folder for the next time."""

import dataclasses
import hashlib
import json
import os
import re
import time
from collections import defaultdict
from typing import Any

import jax
from etils import epath

from vqgan_jax import storage
from vqgan_jax.plan import program_text
from vqgan_jax.plan.topology import Topology

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
CONTROL = ("while", "body", "cond", "closed_call", "checkpoint", "rematted_computation", "vmap", "pjit")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the compiler says of a program, a device.

    Attributes:
      fits: it could be compiled within the memory.
      hbm_bytes: that it needs at its peak; of what does not fit, as far as the compiler tells.
      optimal_seconds: the compiler's roofline, its loops weighted by their share of the cycles; None where it has none.
      cycles: estimated ones of all operations, bodies of loops times their trips; None where there are none. What
        collectives take beyond the work that hides them is not in it.
      flops: of all products, those that are done again included; None of what does not fit.
      collectives: kind -> axes, joined by "+" -> bytes that a device sends.
      unestimated: operations that take a time the compiler does not know, such as a scatter on a TPU's sparse cores.
      compile_seconds: wall time of the compiler when it ran.
      costs: (operation, module, kind, runs, cycles) of everything that takes cycles, the dearest first.
    """

    fits: bool
    hbm_bytes: float
    optimal_seconds: float | None = None
    cycles: float | None = None
    flops: float | None = None
    collectives: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    unestimated: list[str] = dataclasses.field(default_factory=list)
    compile_seconds: float = 0.0
    costs: list[tuple[str, str, str, float, float]] = dataclasses.field(default_factory=list)


def compiled(lowered: Any, topology: Topology, mesh: jax.sharding.Mesh, cache: epath.PathLike) -> tuple[Outcome, Any]:
    """Compiles a lowered program, unless `cache` has its outcome under its text, topology, compiler and flags.

    Returns:
      The outcome; the executable, or None where there is none or it was not made.

    Raises:
      jax.errors.JaxRuntimeError: the compiler fails by another reason than memory.
    """
    path = cached(lowered, topology, cache)
    if path.exists():
        kept = json.loads(path.read_text())
        return Outcome(**kept | {"costs": [tuple(row) for row in kept["costs"]]}), None
    outcome, executable = compile_now(lowered, mesh)
    storage.make_folder(path.parent)
    storage.write_json(path, dataclasses.asdict(outcome))
    return outcome, executable


def cached(lowered: Any, topology: Topology, cache: epath.PathLike) -> epath.Path:
    """The file that keeps the outcome of this program for this topology by this compiler with these flags."""
    flags = os.environ.get("LIBTPU_INIT_ARGS", "")
    digest = hashlib.sha256(f"5 {topology.name} {topology.compiler} {flags}\n{lowered.as_text()}".encode())
    return storage.place(cache) / f"{digest.hexdigest()[:32]}.json"


def compile_now(lowered: Any, mesh: jax.sharding.Mesh) -> tuple[Outcome, Any]:
    """The outcome of compiling, and the executable where it fits."""
    start = time.monotonic()
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = out_of_memory(str(error))
        if needed is None:
            raise
        return Outcome(False, needed, compile_seconds=time.monotonic() - start), None
    seconds = time.monotonic() - start
    memory, cost = executable.memory_analysis(), executable.cost_analysis() or {}
    # Arguments that the program does not read stay out of the peak, but in the memory.
    whole = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    program, entry = program_text.read(executable.as_text())
    costs = program_text.cycles(program, entry)
    cycles, once = sum(total for *_, total in costs), program_text.once(program, entry)
    sent: dict[str, dict[str, float]] = defaultdict(dict)
    for one in program_text.collectives(program, entry, dict(mesh.shape)):
        sent[one.kind]["+".join(one.axes)] = one.bytes
    optimal = cost.get("optimal_seconds", 0.0)
    rows = [
        (line.name, *place(line.op_name or line.kind, line.kind), times, total)
        for line, times, total in sorted(costs, key=lambda cost: -cost[2])
    ]
    outcome = Outcome(
        fits=True, hbm_bytes=float(max(memory.peak_memory_in_bytes, whole)),
        optimal_seconds=optimal * cycles / once if once and optimal > 0 else None,
        cycles=cycles or None, flops=program_text.flops(program, entry), collectives=dict(sent),
        unestimated=[line.op_name or line.name for line, *_ in costs if line.unestimated and cycles],
        compile_seconds=seconds, costs=[row for row in rows if row[-1]],
    )  # fmt: skip
    return outcome, executable


def out_of_memory(message: str) -> float | None:
    """Bytes that a compiler's message says are needed; None of a message about something else."""
    found = re.search(r"RESOURCE_EXHAUSTED.*?(?:Used |\()([\d.]+)([KMGT])", message, re.DOTALL)
    return float(found.group(1)) * UNITS[found.group(2)] if found else None


def place(op_name: str, kind: str) -> tuple[str, str]:
    """Module and direction, and kind of operation, of a traced operation's path.

    `jit(train_step)/transpose(jvp(VQGAN))/decoder/up/conv/conv_general_dilated` is "VQGAN/decoder/up backward" and
    "conv_general_dilated".
    """
    *path, last = op_name.split(";")[0].split("/")
    again, names = "rematted_computation" in path, []
    direction = "again" if again else "backward" if any("transpose(" in part for part in path) else "forward"
    for part in path:
        name = part.split("(")[-1].rstrip(")")
        if not name or name in CONTROL or part.startswith("jit(") or "->" in name:
            continue
        if names and name.startswith(f"{names[-1]}."):
            names.pop()
        names.append(name)
    return f"{'/'.join(names[:3]) or 'outside of modules'} {direction}", last if path else kind
