"""What a file of weights holds, whoever wrote it: names, and tensors that are read when they are asked for."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class ConvertError(ValueError):
    """A file cannot be used as a checkpoint; the message names the file, what was found and what to do."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array in a file.

    Attributes:
      shape: as stored, not yet in our layout.
      dtype: of what `read` gives, in native byte order.
      read: gives the array, C-contiguous: a read-only memory map where possible, which is freed with the array.
        ConvertError if the file has changed meanwhile.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class Checkpoint(NamedTuple):
    """A file that was opened; no tensor is read yet.

    Attributes:
      tensors: by flat name.
      other: what else was in the file: numbers, strings, lists, dicts, Tensors and inert stubs, nested.
    """

    tensors: dict[str, Tensor]
    other: Any
