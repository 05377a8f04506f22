"""Slices and hosts by name: TPUs and GPUs that are only described to the compiler, and this machine's CPU."""

import dataclasses
import math
import re
from typing import Any

import jax

from vqgan_jax.plan.chips import CHIPS, FORMS, GPUS, Chip, quiet

__all__ = ["CHIPS", "Topology", "describe", "parse", "quiet"]


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for, one a chip.

    Attributes:
      name: as it was given.
      devices: described ones for a TPU or a GPU, this machine's for a CPU.
      chip: its datasheet; None for a CPU.
      compiler: which versions decide what comes out.
    """

    name: str
    devices: tuple[Any, ...]
    chip: Chip | None
    compiler: str


def parse(name: str) -> tuple[int, str, tuple[int, ...]]:
    """Number of slices or hosts, family and sides of a topology's name.

    Raises:
      ValueError: a family that is not known, or sides that are no numbers; of GPUs there is one.
    """
    sides = rf"(?:{'|'.join(GPUS)}):[1-9]\d*|(?:{'|'.join(set(CHIPS) - set(GPUS))}|cpu):[1-9]\d*(?:x[1-9]\d*){{0,2}}"
    match = re.fullmatch(rf"(?:(\d+)x(?!cpu))?({sides})", name)
    if match is None or match[1] == "0":
        raise ValueError(f"`--topology` must be {FORMS}; got {name!r}.")
    family, _, sides = match[2].partition(":")
    return int(match[1] or 1), family, tuple(map(int, sides.split("x")))


def describe(name: str) -> Topology:
    """The topology of a name.

    Raises:
      ValueError: the name is not of a known form, the compiler does not know such a slice, there are too few CPU
        devices, or the compiler of TPUs or of GPUs is not installed.
    """
    count, family, sides = parse(name)
    if family != "cpu":
        devices, compiler = CHIPS[family].describe(name, count, sides)
        return Topology(name, devices, CHIPS[family], compiler)
    devices = jax.devices("cpu")
    if math.prod(sides) > len(devices):
        raise ValueError(
            f"`--topology={name}` needs {math.prod(sides)} CPU devices; JAX was started with {len(devices)}. "
            f"Start it with jax_num_cpu_devices={math.prod(sides)}."
        )
    return Topology(name, tuple(devices[: math.prod(sides)]), None, f"jax {jax.__version__}")
