"""Tensors that are parts of a file: checked when it is opened, mapped into memory when they are read."""

import math
import os
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

from vqgan_jax.convert.weights import ConvertError, Tensor

MOST_AXES = 32

# Names of the types of elements, as Flax and NumPy write them; multi-byte ones are little-endian in files.
DTYPES = {
    **{name: np.dtype(name).newbyteorder("<") for name in ("float16", "float32", "float64", "complex64", "complex128")},
    **{
        f"{sign}int{bits}": np.dtype(f"{sign}int{bits}").newbyteorder("<")
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
    "bool": np.dtype(bool),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def tensor(
    path: str | os.PathLike[str],
    place: range,
    dtype: np.dtype,
    shape: Sequence[int],
    *,
    offset: int = 0,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """A tensor whose storage is a place in a file.

    Args:
      path: of the file.
      place: positions of the storage's bytes.
      dtype: of the elements as stored.
      shape: of the tensor.
      offset: its first element, counted in the storage.
      strides: from one element to the next along each axis, in elements; row by row by default.

    Raises:
      ConvertError: unless all elements are in the storage, and not more than there are in it. Thus no shape makes a
        small file large in memory.
    """
    count = size(shape)
    strides = _row_by_row(shape) if strides is None else tuple(strides)
    whole = all(type(step) is int and step >= 0 for step in (offset, *strides))
    stop = offset + 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if whole and count else 0
    if not whole or max(stop, count) * dtype.itemsize > len(place):
        raise ConvertError(
            f"a tensor must lie within its storage; one of {dtype}, shape {str(tuple(shape))[:100]}, strides "
            f"{str(strides)[:100]} and offset {str(offset)[:20]} does not fit into {len(place)} bytes. Do not trust "
            "the file."
        )
    native = dtype.newbyteorder("=")
    first, steps = place.start + offset * dtype.itemsize, [step * dtype.itemsize for step in strides]

    def read() -> np.ndarray:
        if not count:
            return np.zeros(shape, native)
        values = _bytes(path, first, (stop - offset) * dtype.itemsize).view(np.uint8 if dtype.kind == "b" else dtype)
        values = np.lib.stride_tricks.as_strided(values, tuple(shape), steps, writeable=False)
        if dtype.kind == "b":
            values = values != 0  # other bytes than 0 and 1 are no truth values of NumPy's
        return np.require(np.asarray(values, native), requirements=["C", "ALIGNED"])

    return Tensor(tuple(shape), native, read)


def size(shape: Sequence[Any]) -> int:
    """Elements of a shape; ConvertError unless it is one."""
    if len(shape) > MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise ConvertError(
            f"a shape must be at most {MOST_AXES} whole numbers from 0 on; one is not. Do not trust the file."
        )
    return math.prod(shape)


def _row_by_row(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _bytes(path: str | os.PathLike[str], first: int, count: int) -> np.ndarray:
    """A map of its own for each tensor, so that its pages are given back with it."""
    try:
        return np.asarray(np.memmap(path, np.uint8, mode="r", offset=first, shape=(count,)))
    except (OSError, ValueError) as error:
        raise ConvertError(
            f"{os.fspath(path)} must stay as it was while tensors are read; now it ends before byte {first + count} or "
            f"cannot be read ({error}). Open it again."
        ) from error
