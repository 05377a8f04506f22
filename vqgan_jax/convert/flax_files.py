"""Trees of arrays as Flax serialises them, in MessagePack; arrays stay in the file until they are read.

References:
  The MessagePack specification, https://github.com/msgpack/msgpack/blob/master/spec.md; flax/serialization.py for the
  types that Flax adds and for arrays in chunks.
"""

import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from vqgan_jax.convert import mapped
from vqgan_jax.convert.mapped import DTYPES
from vqgan_jax.convert.pickled import Stub
from vqgan_jax.convert.weights import ConvertError, Tensor

_MOST_NODES = 1_000_000
_DEEPEST = 100
_LONGEST = 2**20  # bytes of a string; arrays are not read
_CHUNKED = "__msgpack_chunked_array__"

_NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
_NUMBERS |= {0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
# How long the number is that tells the length.
_BYTES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_STRINGS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_LISTS = {0xDC: ">H", 0xDD: ">I"}
_DICTS = {0xDE: ">H", 0xDF: ">I"}
_EXTENSIONS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}


def open_msgpack(path: Path) -> Any:
    """The tree in a file of Flax's, with a Tensor for each array and for each scalar of NumPy's.

    Raises:
      ConvertError: if it is damaged, or larger than a checkpoint's needs to be.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(path, data)
        tree = reader.value(0)
        if reader.position != len(data):
            raise ConvertError(
                f"the file must end with its tree; {len(data) - reader.position} bytes follow. Fetch it again."
            )
        return tree


class _Reader:
    """Reads one value after the other."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.position, self.nodes = path, data, 0, 0

    def value(self, depth: int, raw: bool = False) -> Any:
        """Any value; with `raw`, bytes are their place in the file."""
        self.nodes += 1
        if self.nodes > _MOST_NODES or depth > _DEEPEST:
            raise ConvertError(f"a tree must have at most {_MOST_NODES} nodes, {_DEEPEST} deep. Do not trust the file.")
        code = self._number(">B")
        if code < 0x80 or code >= 0xE0:
            return code if code < 0x80 else code - 256
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            return self._number(_NUMBERS[code])
        if code < 0x90 or code in _DICTS:
            return self._dict(code & 15 if code < 0x90 else self._number(_DICTS[code]), depth)
        if code < 0xA0 or code in _LISTS:
            count = code & 15 if code < 0xA0 else self._number(_LISTS[code])
            return [self.value(depth + 1, raw) for _ in range(count)]
        if code < 0xC0 or code in _STRINGS:
            return self._text(self._place(code & 31 if code < 0xC0 else self._number(_STRINGS[code]))).decode()
        if code in _BYTES:
            place = self._place(self._number(_BYTES[code]))
            return place if raw else self._text(place)
        if code in _EXTENSIONS or 0xD4 <= code <= 0xD8:
            return self._extension(
                self._number(_EXTENSIONS[code]) if code in _EXTENSIONS else 2 ** (code - 0xD4), depth
            )
        raise ConvertError(f"no value begins with {code:#x}, as byte {self.position - 1} does. Fetch the file again.")

    def _place(self, count: int) -> range:
        first, self.position = self.position, self.position + count
        if self.position > len(self.data):
            raise ConvertError(f"the file must be whole; it ends within a value of {count} bytes. Fetch it again.")
        return range(first, self.position)

    def _number(self, form: str) -> Any:
        place = self._place(struct.calcsize(form))
        return struct.unpack(form, self.data[place.start : place.stop])[0]

    def _text(self, place: range) -> bytes:
        if len(place) > _LONGEST:
            raise ConvertError(f"a string must have at most {_LONGEST} bytes; got {len(place)}. Do not trust the file.")
        return self.data[place.start : place.stop]

    def _dict(self, count: int, depth: int) -> Any:
        found = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if type(key) not in (str, int) or str(key) in found:
                raise ConvertError(
                    f"a dict's keys must be different strings; got {str(key)[:80]!r}. Do not trust the file."
                )
            found[str(key)] = self.value(depth + 1)
        return _joined(found) if _CHUNKED in found else found

    def _extension(self, count: int, depth: int) -> Any:
        kind, place = self._number(">b"), self._place(count)
        if kind not in (1, 2, 3):
            return Stub(f"MessagePack extension {kind}")
        self.position = place.start
        parts = self.value(depth + 1, raw=True)
        if self.position != place.stop or type(parts) is not list or len(parts) != (2 if kind == 2 else 3):
            raise ConvertError("an array must be told by its shape, type and bytes; one is not. Fetch the file again.")
        return _complex(*parts) if kind == 2 else self._array(*parts)

    def _array(self, shape: Any, name: Any, place: Any) -> Tensor:
        name = self._text(name).decode() if type(name) is range else name
        if type(shape) is not list or type(name) is not str or type(place) is not range or name not in DTYPES:
            raise ConvertError(
                f"an array must be told by its shape, type and bytes; one of {str(name)[:40]!r} is not, or of a type "
                "that is unknown here. Convert it to float32 and save."
            )
        if mapped.size(shape) * DTYPES[name].itemsize != len(place):
            raise ConvertError(
                f"an array {name} of shape {shape} must not have {len(place)} bytes. Fetch the file again."
            )
        return mapped.tensor(self.path, place, DTYPES[name], shape)


def _complex(real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise ConvertError("a complex number must have two parts; one has not. Fetch the file again.")
    return complex(real, imaginary)


def _joined(tree: dict[str, Any]) -> Tensor:
    """An array that Flax wrote in chunks, for it is larger than 1 GiB."""
    shape, chunks = (list(tree.get(name, {}).values()) for name in ("shape", "chunks"))
    fine = chunks and all(isinstance(chunk, Tensor) and len(chunk.shape) == 1 for chunk in chunks)
    if not fine or len({chunk.dtype for chunk in chunks}) > 1 or mapped.size(shape) != sum(c.shape[0] for c in chunks):
        raise ConvertError("the chunks of an array must add up to its shape; they do not. Fetch the file again.")
    read = lambda: np.concatenate([chunk.read() for chunk in chunks]).reshape(shape)
    return Tensor(tuple(shape), chunks[0].dtype, read)
