"""Files of weights of every kind, told apart by their first bytes, opened without trusting them.

Opening reads names and shapes only, but for files of Flax, whose arrays are read at once. Nothing that a file holds is
run, however it is damaged or forged:

- safetensors: the library `safetensors` checks the header, and that tensors neither overlap nor leave the file.
- `torch.save`, zip: `zipfile` reads the directory, at most 4 MiB of it. Entries must be stored plainly, so none unfolds
  to more than it is. The pickle is read by `pickles`; tensors are mapped from the archive when they are read, and must
  lie within their storage, see `_tensor`.
- `torch.save` before 1.6, and pickles of NumPy's arrays: the same without an archive.
- Flax: `flax.serialization` reads the tree, after MessagePack's own reader has counted its nodes.

All that goes wrong is a `ConvertError` that names the file.
"""

import contextlib
import functools
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from flax import serialization
from safetensors import safe_open

from vqgan_jax.convert import pickles, tensors
from vqgan_jax.convert.pickles import Storage, Stub, Type, View
from vqgan_jax.convert.tensors import DTYPES, Checkpoint, ConvertError, Tensor
from vqgan_jax.data import storage

# Of the entries that hold a model in files of trainers, the first that is there is taken.
WRAPPERS = ("state_dict", "model", "module", "ema")

# Types of elements as safetensors names them, without the number of bits.
_SAFETENSORS = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "C": "complex", "BOOL": "bool"}

_LARGEST_JSON = 4 * 2**20  # bytes
_LARGEST_DIRECTORY = 4 * 2**20  # bytes; a directory of 3,500 entries has 0.3 MiB
_MOST_NODES = 1_000_000  # of a tree of Flax's


def find_published(files: Sequence[str], need: str, source: str) -> Path:
    """Returns the first of some files that is in `storage.cache_folder`.

    Args:
      files: names, as they were published; all hold the same.
      need: of the error, what needs one of them.
      source: of the error, where one of them comes from.

    Raises:
      FileNotFoundError: none is there.
    """
    folder = storage.cache_folder()
    for name in files:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{need}; {folder} has none of {', '.join(files)}. Fetch {source} and put it there, or set VQGAN_JAX_CACHE to "
        "its folder."
    )


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a file of `torch.save` (zip or legacy), safetensors, Flax's MessagePack, a pickle of arrays, or a folder.

    Of a dict of `torch.save` that wraps its tensors, those under the first of `WRAPPERS` are taken; all else, other
    wrappers included, stays in `other`. A leading `module.` is dropped from names. The names of trees, as of Flax,
    are joined by "/". A folder holds one file of weights and `config.json`: `other` is then {"config": its content,
    "weights": what the file holds besides tensors}.

    Raises:
      ConvertError: the file is of another kind, damaged or hostile, or holds no tensors.
      OSError: there is no such file, or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    with _readable(path):
        return _file(path)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns every error within into a `ConvertError` that names the file, but for those of the disk."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        known = isinstance(error, ConvertError)
        text = str(error) if known else f"it must be whole; got {type(error).__name__}: {error}."
        raise ConvertError(f"{path}: {text[:600]} Fetch it again, or do not trust it.") from error


def _file(path: Path) -> Checkpoint:
    with open(path, "rb") as file:
        magic = file.read(9)
    if magic.startswith(b"PK\x03\x04"):
        checkpoint = _unwrapped(_zip(path))
    elif len(magic) == 9 and magic[8:] == b"{" and struct.unpack("<Q", magic[:8])[0] <= os.path.getsize(path):
        checkpoint = _safetensors(path)
    elif magic[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        checkpoint = _unwrapped(_pickle(path))
    elif magic and (0x81 <= magic[0] <= 0x8F or magic[0] in (0xDE, 0xDF)):
        checkpoint = _split(_flax(path))
    else:
        raise ConvertError(
            f"a checkpoint must be of `torch.save`, safetensors or Flax; this file begins with {magic[:8]!r}. If it "
            "was downloaded, see whether it is a web page; if it is packed, unpack it."
        )
    if not checkpoint.tensors:
        raise ConvertError("a checkpoint must hold tensors; this file has none. Save the model's `state_dict()`.")
    return checkpoint


def _folder(path: Path) -> Checkpoint:
    """Opens a folder as diffusers and vqgan-jax publish models."""
    config = path / "config.json"
    with _readable(config):
        if not config.is_file() or config.stat().st_size > _LARGEST_JSON:
            raise ConvertError("a folder of weights must have a `config.json` of moderate size. Name the right folder.")
        settings = json.loads(config.read_bytes())
    for ending in ("safetensors", "bin", "msgpack"):
        if files := sorted(file for file in path.glob(f"*.{ending}") if file.is_file()):
            break
    else:
        raise ConvertError(f"{path} must have a file *.safetensors, *.bin or *.msgpack; it has none. Fetch it, too.")
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:5])
        raise ConvertError(f"{path} must have one file of weights; it has {names}. Leave one of them there.")
    with _readable(files[0]):
        tensors, other = _file(files[0])
    return Checkpoint(tensors, {"config": settings, "weights": other})


def _safetensors(path: Path) -> Checkpoint:
    file, size = safe_open(path, "numpy"), os.path.getsize(path)

    def read(name: str) -> np.ndarray:
        if os.path.getsize(path) != size:  # a map of what is no longer there would end the process
            raise _changed(path, f"it has not {size} bytes any more")
        return file.get_tensor(name)

    def entry(name: str) -> Tensor:
        part = file.get_slice(name)
        kind = part.get_dtype().rstrip("0123456789")
        dtype = DTYPES.get(_SAFETENSORS.get(kind, "") + part.get_dtype()[len(kind) :])
        if dtype is None:
            raise ConvertError(f"tensors must be of {', '.join(DTYPES)}; {name[:80]!r} is {part.get_dtype()}.")
        tensors.size(part.get_shape())
        return Tensor(tuple(part.get_shape()), dtype.newbyteorder("="), lambda: read(name))

    other = {"__metadata__": file.metadata()} if file.metadata() else {}
    return Checkpoint({name: entry(name) for name in file.offset_keys()}, other)


def _flax(path: Path) -> Any:
    """Returns a tree of Flax's, with a Tensor for each array and for each scalar of NumPy's."""
    data, nodes = path.read_bytes(), 0

    def count(container: Any) -> None:
        nonlocal nodes
        nodes += 1 + len(container)
        if nodes > _MOST_NODES:
            raise ConvertError(f"a tree must have at most {_MOST_NODES} nodes; this one has more.")

    # Reads all and keeps nothing, also of the arrays, which are types 1 to 3 that Flax adds.
    walk = functools.partial(msgpack.unpackb, list_hook=count, object_hook=count, strict_map_key=False, raw=True)
    walk = functools.partial(walk, max_array_len=_MOST_NODES, max_map_len=_MOST_NODES)
    nothing = lambda kind, content: None
    walk(data, ext_hook=lambda kind, content: walk(content, ext_hook=nothing) if kind in (1, 2, 3) else None)

    def tensor(value: Any) -> Any:
        if type(value) is list:
            return [tensor(part) for part in value]
        if type(value) is dict:
            return {key: tensor(part) for key, part in value.items()}
        if isinstance(value, np.ndarray | np.generic):
            if value.dtype.newbyteorder("<") not in DTYPES.values():
                raise ConvertError(f"arrays must be of {', '.join(DTYPES)}; one is {value.dtype}.")
            return tensors.in_memory(np.asarray(value))
        return Stub() if isinstance(value, msgpack.ExtType) else value

    return tensor(serialization.msgpack_restore(data))


# What torch.save writes


def _zip(path: Path) -> Any:
    """Returns the object in an archive of torch's, with a Tensor for each of its tensors."""
    entries = _entries(path)
    names = [name for name in entries if name.split("/")[-1] == "data.pkl" and name.count("/") < 2]
    if len(names) != 1:
        raise ConvertError(f"an archive of torch's must have one `data.pkl`; it has {len(names)}. Unpack other files.")
    prefix = names[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in entries and _content(path, *entries[f"{prefix}byteorder"]) != b"little":
        raise ConvertError("numbers must be little-endian; these are not. Save the file on a common machine.")

    def place(key: str) -> range:
        if f"{prefix}data/{key}" not in entries:
            raise ConvertError(f"storage {key[:80]!r} must be in the archive; it is not.")
        return entries[f"{prefix}data/{key}"][0]

    value = pickles.load(io.BytesIO(_content(path, *entries[names[0]])), _storage)
    return pickles.plain(value, lambda view: _tensor(path, place(view.storage.key), view))


class _Directory(io.FileIO):
    """A file of which nobody reads much at once: a damaged directory can claim to be as large as the file."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LARGEST_DIRECTORY:
            raise ConvertError(f"an archive's directory must have at most {_LARGEST_DIRECTORY} bytes; got {size}.")
        return super().read(size)


def _entries(path: Path) -> dict[str, tuple[range, int]]:
    """Returns what an archive holds: positions of the bytes, and their checksum, which is 0 if there is none."""
    entries, size = {}, os.path.getsize(path)
    with _Directory(path) as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            name = repr(info.filename[:80])
            if info.filename in entries:
                raise ConvertError(f"entries must be there once; {name} is twice.")
            if info.flag_bits & 1 or info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise ConvertError(f"entries must be neither packed nor encrypted; {name} is. Save it with torch.")
            if not 0 <= info.header_offset <= size - 30:
                raise ConvertError(f"entry {name} must be in the archive; it is not.")
            file.seek(info.header_offset)
            header = file.read(30)  # repeats the name, and may be filled up differently than the directory's
            start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
            if header[:4] != b"PK\x03\x04" or start + info.file_size > size:
                raise ConvertError(f"entry {name} must be whole, {info.file_size} bytes; it is not.")
            entries[info.filename] = (range(start, start + info.file_size), info.CRC)
    return entries


def _content(path: Path, place: range, checksum: int) -> bytes:
    """Reads an entry at once. Tensors are not: their checksums would have to be made of all that is mapped."""
    if len(place) > pickles.LARGEST:
        raise ConvertError(f"a pickle must be at most {pickles.LARGEST} bytes long; got {len(place)}. Save tensors.")
    with open(path, "rb") as file:
        file.seek(place.start)
        content = file.read(len(place))
    if checksum and zlib.crc32(content) != checksum:
        raise ConvertError("the archive must be undamaged; its checksums say that it is not.")
    return content


def _pickle(path: Path) -> Any:
    """Returns the object in a pickle of arrays, or in a stream of torch's before 1.6."""
    with open(path, "rb") as file:
        head = io.BytesIO(file.read(pickles.LARGEST))
    value, places = pickles.load(head, _storage), {}
    if type(value) is int and value == pickles.LEGACY_MAGIC:
        value, places = _stream(path, head)
    return pickles.plain(value, lambda view: _tensor(path, places.get(view.storage.key, range(0)), view))


def _stream(path: Path, head: io.BytesIO) -> tuple[Any, dict[str, range]]:
    """Returns the object of a stream of torch's whose magic number is read, and the bytes of each storage.

    Next are pickles of protocol, system, object and keys of storages, and these in turn, each behind the number of its
    elements.
    """
    storages: dict[str, Storage] = {}
    places: dict[str, range] = {}

    def remember(pid: Any) -> Storage | Stub:
        storage = _storage(pid)
        if isinstance(storage, Storage) and storages.setdefault(storage.key, storage).dtype != storage.dtype:
            raise ConvertError(f"storage {storage.key[:80]!r} must have one type; it has two.")
        return storage

    protocol, system, value, keys = (pickles.load(head, remember) for _ in range(4))
    if type(protocol) is not int or protocol != 1001 or type(system) is not dict or type(keys) is not list:
        raise ConvertError("a stream of torch's must be of protocol 1001; this one is not. Save it with a newer torch.")
    if system.get("little_endian") is not True:
        raise ConvertError("numbers must be little-endian; these are not. Save the file on a common machine.")
    end = head.tell()
    with open(path, "rb") as file:
        for key in keys:
            if type(key) is not str or key not in storages or key in places:
                raise ConvertError("each storage must be named once by a tensor and in the list of keys; one is not.")
            file.seek(end)
            (count,) = struct.unpack("<q", file.read(8))
            places[key] = range(end + 8, end + 8 + count * storages[key].dtype.itemsize)
            end = places[key].stop
            if count < 0 or end > os.path.getsize(path):
                raise ConvertError(f"storage {key[:80]!r} must be whole; {count} elements are not in the file.")
    return value, places


def _storage(pid: Any) -> Storage | Stub:
    """Returns the storage of a persistent id: ("storage", type, key, device, elements) and, in old files, a part."""
    if type(pid) is tuple and pid[:1] == ("module",):  # old files keep a class's source code beside it
        return Stub()
    if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage":
        raise ConvertError("persistent ids must be torch's storages; one is not.")
    _, kind, key, _, count, *part = pid
    if isinstance(kind, type) and issubclass(kind, Stub):
        return kind()
    part = part[0] if part and part[0] is not None else ("", 0, count)
    fine = isinstance(kind, Type) and type(key) is str and type(part) is tuple and len(part) == 3
    if not fine or not all(type(n) is int and 0 <= n < 2**60 for n in (count, *part[1:])) or sum(part[1:]) > count:
        raise ConvertError("a storage must have a type, a key and a number of elements; one has not.")
    return Storage(kind.dtype, key, part[2], part[1])


def _tensor(path: Path, place: range, view: View) -> Tensor:
    """Returns a view of a storage that is a part of a file, read when it is asked for.

    The storage must be where the file says that its key is. It must hold all elements of the view, and at least as many
    as the view has: no shape or stride makes a small file large in memory.
    """
    storage, dtype, shape, steps = view.storage, view.dtype, view.shape, (view.offset, *view.strides)
    start, stop = (n * storage.dtype.itemsize for n in (storage.first, storage.first + storage.count))
    place, there = place[start:stop], len(place)
    if len(place) < stop - start:
        raise ConvertError(f"storage {storage.key[:80]!r} must have {stop} bytes; the file has {there} bytes of it.")
    count = tensors.size(shape)
    whole = len(steps) == len(shape) + 1 and all(type(step) is int and step >= 0 for step in steps)
    end = 1 + steps[0] + sum((n - 1) * step for n, step in zip(shape, steps[1:], strict=True)) if whole and count else 0
    if not whole or max(end, count) * dtype.itemsize > len(place):
        raise ConvertError(f"a tensor of shape {shape} must lie within its storage of {len(place)} bytes; it does not.")
    first, length = place.start + view.offset * dtype.itemsize, (end - view.offset) * dtype.itemsize
    return Tensor(shape, dtype.newbyteorder("="), functools.partial(_read, path, first, length if count else 0, view))


def _read(path: Path, first: int, length: int, view: View) -> np.ndarray:
    """Returns the elements of a view, which has `length` bytes from byte `first` on."""
    if not length:
        return np.zeros(view.shape, view.dtype.newbyteorder("="))
    try:  # a map of its own for each tensor, so that its pages are given back with it
        flat = np.asarray(np.memmap(path, np.uint8, mode="r", offset=first, shape=(length,)))
    except (OSError, ValueError) as error:
        raise _changed(path, f"byte {first + length} cannot be read ({error})") from error
    flat = flat.view(np.uint8 if view.dtype.kind == "b" else view.dtype)
    strides = [step * view.dtype.itemsize for step in view.strides]
    values = np.lib.stride_tricks.as_strided(flat, view.shape, strides, writeable=False)
    # Bytes other than 0 and 1 are no truth values of NumPy's.
    return tensors.native(values != 0 if view.dtype.kind == "b" else values)


def _changed(path: Path, what: str) -> ConvertError:
    """Returns the error for a file that is another one than when it was opened."""
    return ConvertError(f"{path} must stay as it was while tensors are read; now {what}. Open it again.")


# From what a file holds to flat names


def _unwrapped(value: Any) -> Checkpoint:
    """Returns the tensors of a model within what a trainer saved."""
    other: dict[Any, Any] = {}
    while type(value) is dict and (name := next((name for name in WRAPPERS if type(value.get(name)) is dict), None)):
        other |= {key: part for key, part in value.items() if key != name}
        value = value[name]
    if type(value) is not dict:
        raise ConvertError("a checkpoint must be a dict of tensors; this is none. Save the model's `state_dict()`.")
    # Without tensors of its own it is a tree, as a pickle of arrays may hold.
    if not any(isinstance(part, Tensor) for part in value.values()):
        tensors, rest = _split(value)
        return Checkpoint(tensors, other | rest)
    named = {key: part for key, part in value.items() if isinstance(part, Tensor) and type(key) is str}
    tensors = {key.removeprefix("module."): part for key, part in named.items()}
    if len(tensors) < len(named):
        raise ConvertError("each name must be there once, with `module.` or without; one is twice. Save it anew.")
    return Checkpoint(tensors, other | {key: part for key, part in value.items() if key not in named})


def _split(tree: Any) -> Checkpoint:
    """Returns the tensors of a tree, by their path, and the tree without them."""
    tensors: dict[str, Tensor] = {}

    def walk(value: dict[Any, Any], path: str) -> dict[Any, Any]:
        rest = {}
        for key, part in value.items():
            if isinstance(part, Tensor):
                if f"{path}{key}" in tensors:
                    raise ConvertError(f"{path}{key}"[:80] + " must be there once; it is twice.")
                tensors[f"{path}{key}"] = part
            elif type(part) is not dict or (part := walk(part, f"{path}{key}/")):
                rest[key] = part
        return rest

    return Checkpoint(tensors, walk(tree, ""))
