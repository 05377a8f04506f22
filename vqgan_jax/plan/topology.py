"""Chips by name and slices of them: TPUs that are only described to the compiler, and this machine's CPU."""

import dataclasses
import math
import os
import re
from typing import Any

import jax

from vqgan_jax.train.compat import topologies

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A datasheet.

    Attributes:
      flops: bfloat16 operations a second at best.
      clock: cycles a second, by which the compiler's cycles become seconds: `flops` over twice the multiplications a
        cycle, which are 131,072 of v4 and v5p, 65,536 of v5e and 262,144 of v6e.
      hbm: bytes of memory that the compiler gives to a program.
      bandwidth: bytes a second from and to that memory.
      options: of the compiler's description, where its default is not one device a chip.
    """

    flops: float
    clock: float
    hbm: float
    bandwidth: float
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


MEGACORE = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
CHIPS = {
    "v4": Chip(275e12, 1.05e9, 30.75 * GIB, 1.228e12, MEGACORE),
    "v5e": Chip(197e12, 1.5e9, 15.75 * GIB, 0.819e12),
    "v5p": Chip(459e12, 1.75e9, 95.74 * GIB, 2.765e12),
    "v6e": Chip(918e12, 1.75e9, 31.25 * GIB, 1.638e12),
}
FORMS = (
    f"{', '.join(CHIPS)} with the sides of its slice in chips, such as v5p:4x4x4 or v6e:8x8 (v4 and v5p in steps of "
    "2x2x1), 2xv5p:4x4x4 for two of them, or cpu:8"
)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for, one a chip.

    Attributes:
      name: as it was given.
      devices: described ones for a TPU, this machine's for a CPU.
      chip: its datasheet; None for a CPU.
      compiler: which versions decide what comes out.
    """

    name: str
    devices: tuple[Any, ...]
    chip: Chip | None
    compiler: str


def parse(name: str) -> tuple[int, str, tuple[int, ...]]:
    """Number of slices, family and sides of a topology's name.

    Raises:
      ValueError: a family that is not known, or sides that are no numbers.
    """
    match = re.fullmatch(rf"(?:(\d+)x(?=v))?({'|'.join(CHIPS)}|cpu):([1-9]\d*(?:x[1-9]\d*){{0,2}})", name)
    if match is None or match[1] == "0":
        raise ValueError(f"`--topology` must be {FORMS}; got {name!r}.")
    return int(match[1] or 1), match[2], tuple(map(int, match[3].split("x")))


def quiet() -> None:
    """Lets libtpu describe a TPU without asking the network which one is there, and beside another compilation."""
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")


def describe(name: str) -> Topology:
    """The topology of a name.

    Raises:
      ValueError: the name is not of a known form, the compiler does not know such a slice, there are too few CPU
        devices, or the TPU's compiler, libtpu, is not installed.
    """
    slices, family, sides = parse(name)
    if family == "cpu":
        devices = jax.devices("cpu")
        if math.prod(sides) > len(devices):
            raise ValueError(
                f"`--topology={name}` needs {math.prod(sides)} CPU devices; JAX was started with {len(devices)}. "
                f"Start it with jax_num_cpu_devices={math.prod(sides)}."
            )
        return Topology(name, tuple(devices[: math.prod(sides)]), None, f"jax {jax.__version__}")
    try:
        import libtpu  # type: ignore[import-not-found]
    except ModuleNotFoundError:
        raise ValueError(
            f"`--topology={name}` needs the TPU's compiler, which runs without a TPU; libtpu is not installed. "
            "Run `pip install 'vqgan_jax[tpu]'`, or plan for cpu:8."
        ) from None
    quiet()
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=name[name.index("v") :], num_slices=slices, **CHIPS[family].options
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"`--topology` must be a slice that there is: {FORMS}; got {name!r}: {error}") from None
    compiler = f"jax {jax.__version__}, libtpu {libtpu.__version__}"
    return Topology(name, tuple(description.devices), CHIPS[family], compiler)
