"""What a file of weights holds: names, and tensors that stay in the file until they are read."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

MOST_AXES = 32

# Types of elements by NumPy's names; numbers of several bytes are little-endian in files.
_NATIVE = "bool int8 uint8 int16 uint16 int32 uint32 int64 uint64 float16 float32 float64 complex64 complex128"
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in _NATIVE.split()}
DTYPES |= {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


class ConvertError(ValueError):
    """A file cannot be used as a checkpoint; the message says what must hold, what came, and what to do."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array in a file.

    Attributes:
      shape: as stored, not yet in our layout.
      dtype: of the array that `read` returns, in native byte order.
      read: returns the array, C-contiguous and where possible a read-only memory map, which is freed with the array.
        ConvertError if the file has changed since it was opened.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


class Checkpoint(NamedTuple):
    """An opened file; no tensor is read yet.

    Attributes:
      tensors: by flat name.
      other: everything else in the file: numbers, strings, lists, dicts, Tensors and inert stubs, nested.
    """

    tensors: dict[str, Tensor]
    other: dict[Any, Any]


def in_memory(array: np.ndarray) -> Tensor:
    """Returns a Tensor of an array that is read already."""
    return Tensor(array.shape, array.dtype.newbyteorder("="), lambda: native(array))


def native(array: np.ndarray) -> np.ndarray:
    """Returns an array in native byte order, C-contiguous; a view where it is so already."""
    return np.require(np.asarray(array, array.dtype.newbyteorder("=")), requirements=["C", "ALIGNED"])


def size(shape: Sequence[Any]) -> int:
    """Returns the number of elements of a shape; ConvertError unless it is one."""
    if len(shape) > MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise ConvertError(f"a shape must be at most {MOST_AXES} whole numbers from 0 on; one is not.")
    return math.prod(shape)
