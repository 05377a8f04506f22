"""Files of weights of every kind, told apart by their first bytes, opened without trusting them.

Opening reads names and shapes only. Whatever a file holds, nothing of it is run.
"""

import contextlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vqgan_jax.convert import flax_files, mapped, torch_files
from vqgan_jax.convert.weights import Checkpoint, ConvertError, Tensor

# Of the entries that hold a model in files of trainers, the first that is there is taken.
WRAPPERS = ("state_dict", "model", "module", "ema")

_LARGEST_JSON = 4 * 2**20  # bytes; the header of 3,500 tensors has an eighth of it, and each byte may become 25
_SAFETENSORS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
    "C64": "complex64",
}  # fmt: skip


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a file of `torch.save` (zip or legacy), safetensors, Flax's MessagePack, a pickle of arrays, or a folder.

    Of a dict of `torch.save` that wraps its tensors, those under the first of `WRAPPERS` are taken; all else, other
    wrappers included, stays in `other`. A leading `module.` is dropped from names. The names of trees, as of Flax,
    are joined by "/". A folder holds one file of weights and `config.json`: `other` is then {"config": its content,
    "weights": what the file holds besides tensors}.

    Raises:
      ConvertError: if it is of another kind, damaged or hostile, or holds no tensors.
      OSError: if there is no such file, or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    with _readable(path):
        return _file(path)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Whatever goes wrong within becomes a `ConvertError` that names the file; a disk that fails does not."""
    try:
        yield
    except OSError:
        raise
    except ConvertError as error:
        raise ConvertError(f"{path} cannot be used as a checkpoint: {error}") from error
    except Exception as error:  # what damage leads to: struct.error, UnicodeError, RecursionError, TypeError, ...
        raise ConvertError(
            f"{path} cannot be used as a checkpoint: it must be whole; reading failed with {type(error).__name__}: "
            f"{str(error)[:200]}. Fetch it again."
        ) from error


def _file(path: Path) -> Checkpoint:
    with open(path, "rb") as file:
        magic = file.read(9)
    if magic.startswith(b"PK\x03\x04"):
        return _unwrapped(torch_files.open_zip(path))
    if len(magic) == 9 and magic[8:] == b"{" and _header_length(magic) <= os.path.getsize(path):
        return _safetensors(path)
    if magic[:1] == b"\x80" and magic[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _unwrapped(torch_files.open_pickle(path))
    if magic and (0x81 <= magic[0] <= 0x8F or magic[0] in (0xDE, 0xDF)):
        return _split(flax_files.open_msgpack(path))
    raise ConvertError(
        f"a checkpoint must be of `torch.save`, safetensors or Flax; this file begins with {magic[:8]!r}. If it was "
        "downloaded, see whether it is a web page; if it is packed, unpack it."
    )


def _folder(path: Path) -> Checkpoint:
    """As diffusers and vqgan-jax publish models."""
    config = path / "config.json"
    with _readable(config):
        if not config.is_file() or config.stat().st_size > _LARGEST_JSON:
            raise ConvertError("a folder of weights must have a `config.json` of moderate size. Name the right folder.")
        settings = _json(config.read_bytes())
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


def _json(data: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            raise ConvertError("names must be there once; some are twice. Do not trust the file.")
        return found

    return json.loads(data.decode(), object_pairs_hook=unique)


# safetensors


def _header_length(magic: bytes) -> int:
    return struct.unpack("<Q", magic[:8])[0]


def _safetensors(path: Path) -> Checkpoint:
    with open(path, "rb") as file:
        length = _header_length(file.read(8))
        if length > _LARGEST_JSON:
            raise ConvertError(
                f"the header must have at most {_LARGEST_JSON} bytes; got {length}. Do not trust the file."
            )
        header = _json(file.read(length))
    other = header.pop("__metadata__", {})
    data = range(8 + length, os.path.getsize(path))
    places = {name: _place(name, entry, data) for name, entry in header.items()}
    end = 0
    for place, name in sorted(((place.start, place.stop), name) for name, place in places.items()):
        if place[0] < end and place[1] > place[0]:
            raise ConvertError(f"tensors must not overlap; {name[:80]!r} begins within another. Do not trust the file.")
        end = max(end, place[1])
    tensors = {name: _entry(path, name, header[name], place) for name, place in places.items()}
    return _checked(Checkpoint(tensors, {"__metadata__": other} if other else {}))


def _place(name: str, entry: Any, data: range) -> range:
    """Where a tensor is in the file."""
    offsets = entry.get("data_offsets") if type(entry) is dict else None
    if type(offsets) is not list or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise ConvertError(
            f"a tensor must have a type, a shape and two offsets; {name[:80]!r} has not. Fetch it again."
        )
    if not 0 <= offsets[0] <= offsets[1] <= len(data):
        raise ConvertError(
            f"tensors must lie within the file, which has {len(data)} bytes of them; {name[:80]!r} is at "
            f"{str(offsets)[:80]}. Fetch it again."
        )
    return range(data.start + offsets[0], data.start + offsets[1])


def _entry(path: Path, name: str, entry: dict[str, Any], place: range) -> Tensor:
    kind, shape = entry.get("dtype"), entry.get("shape")
    if type(kind) is not str or kind not in _SAFETENSORS:
        raise ConvertError(
            f"tensors must be of {', '.join(_SAFETENSORS)}; {name[:80]!r} is of {str(kind)[:40]}. Convert it first."
        )
    dtype = mapped.DTYPES[_SAFETENSORS[kind]]
    if type(shape) is not list or mapped.size(shape) * dtype.itemsize != len(place):
        raise ConvertError(
            f"a tensor must have as many bytes as its shape needs; {name[:80]!r} has not. Fetch it again."
        )
    return mapped.tensor(path, place, dtype, shape)


# From what a file holds to flat names


def _unwrapped(value: Any) -> Checkpoint:
    """The tensors of a model within what a trainer saved."""
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
    tensors: dict[str, Tensor] = {}
    for key, part in value.items():
        if not isinstance(part, Tensor) or type(key) is not str:
            continue
        name = key.removeprefix("module.")
        if name in tensors:
            raise ConvertError(
                f"{name[:80]!r} must be there once, with `module.` or without; it is twice. Save it anew."
            )
        tensors[name] = part
    rest = {key: part for key, part in value.items() if not isinstance(part, Tensor) or type(key) is not str}
    return Checkpoint(tensors, other | rest)


def _split(tree: Any) -> Checkpoint:
    """The tensors of a tree, by their path, and the tree without them."""
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, path: tuple[str, ...]) -> Any:
        if type(value) is not dict:
            return value
        rest = {}
        for key, part in value.items():
            name = "/".join((*path, str(key)))
            if name in tensors:
                raise ConvertError(f"{name[:80]!r} must be there once; it is twice. Do not trust the file.")
            if isinstance(part, Tensor):
                tensors[name] = part
            elif type(part) is not dict or (part := walk(part, (*path, str(key)))):
                rest[key] = part
        return rest

    return _checked(Checkpoint(tensors, walk(tree, ())))


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    if not checkpoint.tensors:
        raise ConvertError("a checkpoint must hold tensors; this file has none. Save the model's `state_dict()`.")
    return checkpoint
