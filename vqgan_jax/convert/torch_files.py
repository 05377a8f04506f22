"""What `torch.save` writes, today's zip archives and the streams before torch 1.6, without torch."""

import mmap
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from vqgan_jax.convert import mapped, pickles
from vqgan_jax.convert.pickled import Storage, Stub, View
from vqgan_jax.convert.weights import ConvertError, Tensor

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LARGEST_DIRECTORY = 4 * 2**20  # bytes that `zipfile` may read at once; a directory of 3,500 entries has 0.3


class _Entry(NamedTuple):
    """Bytes of an archive, and their checksum; 0 if it was not made."""

    place: range
    checksum: int


def open_zip(path: Path) -> Any:
    """The object in a zip archive of torch's, with a Tensor for each of its tensors.

    Raises:
      ConvertError: if it is damaged, packed, encrypted, or for another machine.
    """
    entries = _entries(path)
    name = _only_pickle(entries)
    prefix = name.removesuffix("data.pkl")
    order = entries.get(prefix + "byteorder")
    if order is not None and _content(path, order) != b"little":
        raise ConvertError("numbers must be little-endian; these are not. Save the file on a common machine.")
    value, _ = pickles.load(_content(path, entries[name]), stored)

    def resolve(view: View) -> Tensor:
        entry = entries.get(f"{prefix}data/{view.storage.key}")
        if entry is None:
            raise ConvertError(f"storage {view.storage.key[:80]!r} must be in the archive; it is not. Fetch it again.")
        return _tensor(path, entry.place, view)

    return pickles.plain(value, resolve)


def open_pickle(path: Path) -> Any:
    """The object in a stream of pickles: of old torch's, followed by the storages, or a single one that holds arrays.

    Raises:
      ConvertError: if it is damaged or for another machine.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        value, end = pickles.load(data, stored)
        if type(value) is not int:
            return pickles.plain(value, _no_storage)
        if value != LEGACY_MAGIC:
            raise ConvertError("a pickle must hold arrays; this one is a number. Name another file.")
        return _legacy(path, data, end)


def _legacy(path: Path, data: mmap.mmap, end: int) -> Any:
    """After the magic number: protocol, system, object, keys of storages, and these in turn."""
    storages: dict[str, Storage] = {}

    def remember(pid: Any) -> Storage | Stub:
        found = stored(pid)
        if type(found) is Storage and storages.setdefault(found.key, found).dtype != found.dtype:
            raise ConvertError(f"storage {found.key[:80]!r} must have one type; it has two. Do not trust the file.")
        return found

    protocol, end = pickles.load(data, stored, end)
    system, end = pickles.load(data, stored, end)
    value, end = pickles.load(data, remember, end)
    keys, end = pickles.load(data, stored, end)
    if type(protocol) is not int or protocol != 1001 or type(system) is not dict or type(keys) is not list:
        raise ConvertError("a stream of torch's must be of protocol 1001; this one is not. Save it with a newer torch.")
    if system.get("little_endian") is not True:
        raise ConvertError("numbers must be little-endian; these are not. Save the file on a common machine.")
    places = _legacy_places(data, end, keys, storages)

    def resolve(view: View) -> Tensor:
        if view.storage.key not in places:
            raise ConvertError(f"storage {view.storage.key[:80]!r} must be in the file; it is not. Fetch it again.")
        return _tensor(path, places[view.storage.key], view)

    return pickles.plain(value, resolve)


def _legacy_places(data: mmap.mmap, end: int, keys: list[Any], storages: dict[str, Storage]) -> dict[str, range]:
    """Where each storage's bytes are: an element count stands before them."""
    places = {}
    for key in keys:
        storage = storages.get(key) if type(key) is str else None
        if storage is None or key in places or len(data) < end + 8:
            raise ConvertError("each storage must be told once and be in the file; one is not. Fetch the file again.")
        (count,) = struct.unpack("<q", data[end : end + 8])
        places[key] = range(end + 8, end + 8 + count * storage.dtype.itemsize)
        end = places[key].stop
        if count < 0 or end > len(data):
            raise ConvertError(
                f"storage {key[:80]!r} must be whole; of {count} elements {len(data) - places[key].start} bytes are "
                "there. Fetch the file again."
            )
    return places


def stored(pid: Any) -> Storage | Stub:
    """What a persistent id stands for: ("storage", type, key, device, elements) and, in old files, a part of it.

    Raises:
      ConvertError: if it is of another kind.
    """
    kind = pid[0] if type(pid) is tuple and pid else None
    if type(kind) is str and kind == "module":  # old files keep a class's source code beside it
        return Stub("torch.nn.Module")
    if type(kind) is not str or kind != "storage" or len(pid) not in (5, 6):
        raise ConvertError("persistent ids must be torch's storages; one is not. Do not trust the file.")
    dtype, key, _, count = pid[1:5]
    if type(dtype) is Stub:
        return dtype
    part = pid[5] if len(pid) == 6 and pid[5] is not None else ("", 0, count)
    fine = isinstance(dtype, np.dtype) and type(key) is str and type(part) is tuple and len(part) == 3
    if not fine or not all(type(n) is int and 0 <= n < 2**60 for n in (count, *part[1:])) or sum(part[1:]) > count:
        raise ConvertError("a storage must have a type, a key and a number of elements. Do not trust the file.")
    return Storage(dtype, key, part[2], part[1])


def _tensor(path: Path, place: range, view: View) -> Tensor:
    """Part of a storage, which must itself be where the file says that its key is."""
    size = view.storage.dtype.itemsize
    first = place.start + view.storage.first * size
    if first + view.storage.count * size > place.stop:
        raise ConvertError(
            f"storage {view.storage.key[:80]!r} must have the {view.storage.count} elements that are told; the file "
            f"has {len(place)} bytes of it. Fetch it again."
        )
    part = range(first, first + view.storage.count * size)
    return mapped.tensor(path, part, view.dtype, view.shape, offset=view.offset, strides=view.strides)


def _no_storage(view: View) -> Tensor:
    raise ConvertError(f"storage {view.storage.key[:80]!r} must be in the file; it is not. Fetch the file again.")


class _Careful:
    """A file of which nobody reads much at once: a damaged directory can claim to be as large as the file."""

    def __init__(self, file: BinaryIO):
        self._file, self.seek, self.tell, self.close = file, file.seek, file.tell, file.close

    def seekable(self) -> bool:
        return True

    def read(self, count: int = -1) -> bytes:
        if count > _LARGEST_DIRECTORY:
            raise ConvertError(f"an archive's directory must be small; this one claims {count} bytes. Fetch it again.")
        return self._file.read(count if count >= 0 else _LARGEST_DIRECTORY)


def _entries(path: Path) -> dict[str, _Entry]:
    """What an archive holds."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(_Careful(file)) as archive:  # type: ignore[arg-type]
                infos = archive.infolist()
        except ConvertError:
            raise
        except Exception as error:  # BadZipFile, and what struct, codecs and seek have to say about damage
            raise ConvertError(
                f"an archive must end with its directory; this one does not ({error}). Fetch it again."
            ) from error
        entries = {}
        for info in infos:
            if info.filename in entries:
                raise ConvertError(f"entries must be there once; {info.filename[:80]!r} is twice. Save it with torch.")
            entries[info.filename] = _Entry(_place(file, info, size), info.CRC)
    return entries


def _place(file: BinaryIO, info: zipfile.ZipInfo, size: int) -> range:
    """After the entry's own header, which repeats its name and may be filled up differently."""
    name = repr(info.filename[:80])
    if info.flag_bits & 1 or info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ConvertError(
            f"entries must be neither packed nor encrypted; {name} is. Unpack it, then save it with torch."
        )
    if not 0 <= info.header_offset <= size - 30:
        raise ConvertError(f"entry {name} must be in the archive; it is not. Fetch it again.")
    file.seek(info.header_offset)
    header = file.read(30)
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
    if header[:4] != b"PK\x03\x04" or start + info.file_size > size:
        raise ConvertError(f"entry {name} must be whole, {info.file_size} bytes; it is not. Fetch the file again.")
    return range(start, start + info.file_size)


def _only_pickle(entries: dict[str, _Entry]) -> str:
    names = [name for name in entries if name == "data.pkl" or name.endswith("/data.pkl")]
    names = [name for name in names if name.count("/") < 2]
    if len(names) != 1:
        raise ConvertError(
            f"an archive of torch's must have one `data.pkl`; this one has {len(names)}. If it is another zip file, "
            "unpack it first."
        )
    return names[0]


def _content(path: Path, entry: _Entry) -> bytes:
    """Bytes that are read at once. Tensors are not: their checksums would have to be made of all that is mapped."""
    place = entry.place
    if len(place) > pickles.LARGEST:
        raise ConvertError(f"a pickle must be at most {pickles.LARGEST} bytes long; got {len(place)}. Save tensors.")
    with open(path, "rb") as file:
        file.seek(place.start)
        content = file.read(len(place))
    if entry.checksum and zlib.crc32(content) != entry.checksum:
        raise ConvertError("the archive must be undamaged; its checksums say that it is not. Fetch the file again.")
    return content
