"""Writes files as `torch.save` does, without torch: the same opcodes, archive and stream, and damaged ones."""

import collections
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
STORAGES = {
    "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "float64": "Double", "int64": "Long",
    "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte", "bool": "Bool", "complex64": "ComplexFloat",
}  # fmt: skip
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}

Ordered = collections.OrderedDict


class Global(NamedTuple):
    """A name, as opcode GLOBAL has it."""

    module: str
    name: str


class Call(NamedTuple):
    """REDUCE of a name, and then BUILD if there is a state."""

    function: Global
    arguments: tuple
    state: Any = None


class Hole(NamedTuple):
    """Elements of a storage that take no place on the disk."""

    dtype: np.dtype
    size: int


class Stored(NamedTuple):
    """A storage, as a persistent id tells it."""

    key: str
    storage: np.ndarray | Hole
    name: str
    count: int


class View(NamedTuple):
    """A tensor: part of a storage, which is a 1-D array."""

    key: str
    storage: np.ndarray | Hole
    offset: int
    shape: tuple
    strides: tuple
    count: int | None = None  # what the persistent id tells; None for the truth


def tensor(key, array):
    """An array of its own, row by row."""
    array = np.asarray(array)
    strides = tuple(int(np.prod(array.shape[i + 1 :], dtype=int)) for i in range(array.ndim))
    return View(key, array.reshape(-1), 0, array.shape, strides)


class Pickle:
    """Protocol 2, as torch.save writes it; collects the storages that the tensors need."""

    def __init__(self, legacy=False):
        self.legacy, self.storages = legacy, {}

    def dumps(self, value):
        return b"\x80\x02" + self.opcodes(value) + b"."

    def opcodes(self, value: Any) -> bytes:
        kind = type(value)
        if value is None or kind is bool:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        if kind is int:
            if 0 <= value < 256:
                return b"K" + bytes([value])
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(data)]) + data
        if kind is float:
            return b"G" + struct.pack(">d", value)
        if kind is str:
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        if kind is Global:
            return f"c{value.module}\n{value.name}\n".encode()
        if kind is Call:
            state = b"" if value.state is None else self.opcodes(value.state) + b"b"
            return self.opcodes(value.function) + self.opcodes(value.arguments) + b"R" + state
        if kind is Stored:
            return self.persistent_id(value)
        if kind is View:
            return self.rebuild(value)
        if kind is tuple:
            return b"(" + b"".join(map(self.opcodes, value)) + b"t"
        if kind is list:
            return b"](" + b"".join(map(self.opcodes, value)) + b"e"
        pairs = b"".join(self.opcodes(key) + self.opcodes(part) for key, part in value.items())
        new = self.opcodes(Call(Global("collections", "OrderedDict"), ())) if isinstance(value, Ordered) else b"}"
        metadata = b"}X\x09\x00\x00\x00_metadata}sb" if isinstance(value, Ordered) else b""
        return new + b"(" + pairs + b"u" + metadata

    def rebuild(self, view):
        """`_rebuild_tensor_v2` of a persistent id."""
        count = view.storage.size if view.count is None else view.count
        stored = Stored(view.key, view.storage, STORAGES[view.storage.dtype.name] + "Storage", count)
        hooks = Call(Global("collections", "OrderedDict"), ())
        arguments = (stored, view.offset, view.shape, view.strides, False, hooks)
        return self.opcodes(Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments))

    def persistent_id(self, stored):
        self.storages[stored.key] = stored.storage
        pid = ("storage", Global("torch", stored.name), stored.key, "cpu", stored.count) + (None,) * self.legacy
        return self.opcodes(pid) + b"Q"


def write_zip(path, value, *, archive: dict[str, Any] | None = None, **options):
    """An archive of torch's; `archive` changes or, with None, removes its entries."""
    pickle = Pickle()
    entries = {"data.pkl": pickle.dumps(value), "byteorder": b"little"}
    for key, storage in pickle.storages.items():
        entries[f"data/{key}"] = storage if isinstance(storage, Hole) else storage.tobytes()
    entries |= {"version": b"3\n"} | (archive or {})
    entries = [(f"model/{name}", content) for name, content in entries.items() if content is not None]
    return write_archive(path, entries, **options)


def write_archive(path, entries, *, method=0, flags=0x808, checksums=True, entry_size=None):
    """A zip file, its entries aligned as torch does it; 64-bit records where sizes or offsets need them."""
    directory = b""
    with open(path, "wb") as file:
        for name, content in entries:
            name, start, hole = name.encode(), file.tell(), isinstance(content, Hole)
            size = content.size * content.dtype.itemsize if hole else len(content)
            checksum = 0 if hole or not checksums else zlib.crc32(content)
            told = size if entry_size is None else entry_size
            wide = max(told, start) >= 2**32 - 1
            sizes = (2**32 - 1,) * 2 if wide else (told,) * 2
            extra = struct.pack("<HHQQ", 1, 16, told, told) if wide else b""
            padding = -(start + 30 + len(name) + len(extra) + 4) % 64
            extra += struct.pack("<HH", 0x4246, padding) + b"Z" * padding
            head = struct.pack("<HHHHIII", flags, method, 0, 0, checksum, *sizes)
            file.write(b"PK\x03\x04\x14\x00" + head + struct.pack("<HH", len(name), len(extra)) + name + extra)
            file.seek(size, 1) if hole else file.write(content)
            extra = struct.pack("<HHQQQ", 1, 24, told, told, start) if wide else b""
            directory += b"PK\x01\x02\x14\x00\x14\x00" + head
            directory += struct.pack("<HHHHHI", len(name), len(extra), 0, 0, 0, 0)
            directory += struct.pack("<I", 2**32 - 1 if wide else start) + name + extra
        place, count = file.tell(), len(entries)
        file.write(directory)
        record = struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, len(directory), place)
        file.write(b"PK\x06\x06" + record + b"PK\x06\x07" + struct.pack("<IQI", 0, place + len(directory), 1))
        end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), min(place, 2**32 - 1), 0)
        file.write(b"PK\x05\x06" + end)
    return path


def write_legacy(path, value, *, magic=MAGIC, protocol=1001, system=SYSTEM, keys=None, counts: dict[str, int] = {}):  # noqa: B006
    """A stream of torch's before 1.6."""
    pickle = Pickle(legacy=True)
    body = pickle.dumps(value)
    keys = sorted(pickle.storages) if keys is None else keys
    data = b"".join(Pickle().dumps(part) for part in (magic, protocol, system)) + body + Pickle().dumps(keys)
    for key in keys:
        storage = pickle.storages.get(str(key), np.zeros(0))
        data += struct.pack("<q", counts.get(str(key), storage.size)) + storage.tobytes()
    Path(path).write_bytes(data)
    return path


def write_holes(path, shapes):
    """Tensors that take no place on the disk."""
    held = {}
    for i, (name, shape) in enumerate(shapes.items()):
        view = tensor(str(i), np.broadcast_to(np.float32(0), shape))
        held[name] = view._replace(storage=Hole(np.dtype(np.float32), int(np.prod(shape))))
    write_zip(path, held, checksums=False)
