"""What a file of weights holds: names, and tensors that stay in the file until they are read."""

import dataclasses
import math
import os
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
    other: Any


def in_memory(array: np.ndarray) -> Tensor:
    """Returns a Tensor of an array that is read already."""
    native = array.dtype.newbyteorder("=")
    return Tensor(array.shape, native, lambda: np.require(np.asarray(array, native), requirements=["C", "ALIGNED"]))


def mapped(
    path: str | os.PathLike[str],
    place: range,
    dtype: np.dtype,
    shape: Sequence[int],
    offset: int = 0,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Returns a Tensor whose storage is a part of a file; nothing is read.

    Args:
      path: of the file.
      place: positions of the storage's bytes.
      dtype: of the elements as stored.
      shape: of the tensor.
      offset: of its first element, counted in elements of the storage.
      strides: from one element to the next along each axis, in elements; None is row by row.

    Raises:
      ConvertError: unless the storage holds all elements of the tensor, and at least as many as the tensor has. So no
        shape or stride makes a small file large in memory.
    """
    count = size(shape)
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))] if strides is None else strides
    whole = all(type(step) is int and step >= 0 for step in (offset, *strides))
    stop = offset + 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if whole and count else 0
    if not whole or max(stop, count) * dtype.itemsize > len(place):
        raise ConvertError(
            f"a tensor must lie within its storage; {dtype} of shape {str(tuple(shape))[:100]}, strides "
            f"{str(tuple(strides))[:100]} and offset {str(offset)[:20]} does not fit into {len(place)} bytes."
        )
    native, first = dtype.newbyteorder("="), place.start + offset * dtype.itemsize

    def read() -> np.ndarray:
        if not count:
            return np.zeros(shape, native)
        flat = _map(path, first, (stop - offset) * dtype.itemsize).view(np.uint8 if dtype.kind == "b" else dtype)
        steps = [step * dtype.itemsize for step in strides]
        values = np.lib.stride_tricks.as_strided(flat, tuple(shape), steps, writeable=False)
        # Bytes other than 0 and 1 are no truth values of NumPy's.
        values = values != 0 if dtype.kind == "b" else np.asarray(values, native)
        return np.require(values, requirements=["C", "ALIGNED"])

    return Tensor(tuple(shape), native, read)


def size(shape: Sequence[Any]) -> int:
    """Returns the number of elements of a shape; ConvertError unless it is one."""
    if len(shape) > MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise ConvertError(f"a shape must be at most {MOST_AXES} whole numbers from 0 on; one is not.")
    return math.prod(shape)


def _map(path: str | os.PathLike[str], first: int, count: int) -> np.ndarray:
    """Returns bytes of a file, as a map of its own for each tensor, so that its pages are given back with it."""
    try:
        return np.asarray(np.memmap(path, np.uint8, mode="r", offset=first, shape=(count,)))
    except (OSError, ValueError) as error:
        raise changed(path, f"byte {first + count} cannot be read ({error})") from error


def changed(path: str | os.PathLike[str], what: str) -> ConvertError:
    """Returns the error for a file that is another one than when it was opened."""
    return ConvertError(f"{os.fspath(path)} must stay as it was while tensors are read; now {what}. Open it again.")
