"""Files of weights in two forms that others read, written tensor by tensor, whole or not at all."""

import contextlib
import json
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vqgan_jax.convert.weights import ConvertError

_SAFETENSORS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "uint8": "U8"}
_TORCH = {
    "float32": "Float",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "int64": "Long",
    "int32": "Int",
    "uint8": "Byte",
}


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a file in the form that its suffix names.

    Args:
      path: `.safetensors`, or `.ckpt`, `.pt`, `.pth` for what `torch.save` writes: a dict with the tensors under
        "state_dict".
      tensors: by name; of float32, float16, bfloat16, int64, int32 or uint8.
      metadata: for safetensors only; the other form has no place for it.

    Raises:
      ConvertError: the suffix names no form.
      OSError: the disk is full or cannot be written; no file is left behind.
    """
    writers: dict[str, Callable[..., None]] = {".safetensors": _safetensors}
    writers |= dict.fromkeys((".ckpt", ".pt", ".pth"), _torch)
    if path.suffix not in writers:
        raise ConvertError(f"a file of weights must end in one of {', '.join(writers)}; got {path}. Name it so.")
    with whole(path) as file:
        writers[path.suffix](file, tensors, metadata)


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its name when all is written, and is removed when something goes wrong."""
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _safetensors(file: BinaryIO, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        kind = _SAFETENSORS[tensor.dtype.name]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of eight bytes
    file.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        file.write(_bytes(tensor))


def _torch(file: BinaryIO, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """An archive of a pickle, which names a storage for each tensor, and of the storages."""
    del metadata
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", _pickle(tensors))
        archive.writestr("archive/byteorder", "little")
        for key, tensor in enumerate(tensors.values()):
            with archive.open(f"archive/data/{key}", "w", force_zip64=tensor.nbytes >= 2**31) as entry:
                entry.write(_bytes(tensor))
        archive.writestr("archive/version", "3\n")


def _bytes(tensor: np.ndarray) -> Any:
    """Row by row, little-endian."""
    tensor = np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<"))
    return tensor.reshape(-1).view(np.uint8).data


# What torch.load expects, in the opcodes of pickle's protocol 2.

_REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
_EMPTY = b"ccollections\nOrderedDict\n)R"  # of hooks, which no tensor has


def _pickle(tensors: Mapping[str, np.ndarray]) -> bytes:
    items = b"".join(_text(name) + _tensor(str(key), each) for key, (name, each) in enumerate(tensors.items()))
    return b"\x80\x02}(" + _text("state_dict") + b"}(" + items + b"uu."


def _tensor(key: str, tensor: np.ndarray) -> bytes:
    storage = f"ctorch\n{_TORCH[tensor.dtype.name]}Storage\n".encode()
    place = b"(" + _text("storage") + storage + _text(key) + _text("cpu") + _number(tensor.size) + b"tQ"
    strides = [int(np.prod(tensor.shape[axis + 1 :], dtype=np.int64)) for axis in range(tensor.ndim)]
    shape, steps = (b"(" + b"".join(map(_number, each)) + b"t" for each in (tensor.shape, strides))
    return _REBUILD + b"(" + place + _number(0) + shape + steps + b"\x89" + _EMPTY + b"tR"


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _number(number: int) -> bytes:
    data = number.to_bytes(9, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data
