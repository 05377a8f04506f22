"""Two contenders that take turns: what our benchmarks against peers share.

Each is in a process of its own with its default number of threads. The processes take turns (theirs, ours, theirs,
ours, ...), so that only one computes at a time, and every ratio is of two neighbours. A ratio above 1 is ours faster.

Measure on an idle machine: turns cancel a slow drift, but not a load, which need not slow both alike. On a busy one
torch's two threads were seen to burn far more CPU time than the same work should take, which flatters us. With
`taskset -c 0` in front of a script both have one thread.
"""

import contextlib
import dataclasses
import importlib.util
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Contender:
    """One framework: what it is, what both must agree on, and what each row runs, until the result is there."""

    about: str
    agreed: Any
    rows: dict[str, Callable[[], object]]


def from_tests(name: str) -> Any:
    """A module of our tests, such as `golden/upstream`, which makes upstream importable."""
    spec = importlib.util.spec_from_file_location(Path(name).name, ROOT / "tests" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def print_load() -> None:
    """Says whether the machine is idle; call it before anything else adds to its load."""
    busy = os.getloadavg()[0]
    Console().print(f"load average {busy:.1f}" + (": this machine is too busy, do not trust the ratios" * (busy > 0.5)))


def work(make: Callable[[], Contender], connection: Any) -> None:
    """The other process: introduces itself, then runs each row that it is told to and answers in seconds."""
    contender = make()
    connection.send((contender.about, contender.agreed))
    for row in iter(connection.recv, None):
        start = time.perf_counter()
        contender.rows[row]()
        connection.send(time.perf_counter() - start)


@contextlib.contextmanager
def worker(make: Callable[[], Contender]) -> Iterator[tuple[Callable[[str], float], Any]]:
    """Starts a contender's process and prints its introduction; gives a function from row to seconds, and `agreed`."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=work, args=(make, far), daemon=True)
    process.start()
    far.close()  # so that a worker's death is an EOFError here
    about, agreed = near.recv()
    Console().print(about)

    def go(row: str) -> float:
        near.send(row)
        return near.recv()

    yield go, agreed
    near.send(None)
    process.join()


def measure(
    title: str,
    torch: Callable[[], Contender],
    ours: Callable[[], Contender],
    rows: Iterable[str],
    *,
    pairs: int,
    unit: str = "ms",
    value: Callable[[str, float], float] = lambda _, seconds: 1e3 * seconds,
) -> Table:
    """Every row of both, as a table.

    Args:
      title: of the table.
      torch, ours: make the contenders, each in its process; module-level functions or partials of them.
      rows: names in `Contender.rows`.
      pairs: turns of each, after two that are not counted: compilation, allocation.
      unit: of the two columns.
      value: from a row and its seconds to that unit.
    """
    table = Table(title=f"{title}: torch / ours, of time, median \\[min, max] of {pairs} pairs")
    for heading in ("what", f"torch {unit}", f"ours {unit}", "ratio"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    with worker(torch) as (go_torch, theirs), worker(ours) as (go_ours, agreed):
        np.testing.assert_array_equal(agreed, theirs, "the two do not compute the same")
        for row in rows:
            for go in 2 * (go_torch, go_ours):
                go(row)
            times = [(go_torch(row), go_ours(row)) for _ in range(pairs)]
            ratios = [a / b for a, b in times]
            spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
            medians = (statistics.median(side) for side in zip(*times, strict=True))
            table.add_row(row, *(f"{value(row, seconds):.0f}" for seconds in medians), spread)
    return table
