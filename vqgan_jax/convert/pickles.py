"""Pickles of weights, built by the standard library's unpickler; nothing that a file names is imported or called.

A pickle is a program: it names functions, calls them, and sets attributes. Three walls keep that program harmless.

- Allow-list: `find_class` looks a name up in `NAMES` and nowhere else. A name in that table stands for a function of
  this file that puts a tensor, an array or a container together. Nothing is ever imported.
- Inertness: any other name stands for a class that does nothing. Its instances take every argument, item and state, and
  keep none of them. All objects that the unpickler handles have slots only and a `__setstate__` of their own, so that
  no pickle can give them an attribute.
- Bounds: before the unpickler runs, `_examine` walks over the opcodes with `pickletools`, which only looks at them. It
  refuses opcodes that no writer of checkpoints uses (codes of the extension registry would go around `find_class`),
  wide whole numbers, distant places of the memo, keys that take long to hash, and large arguments passed again and
  again. Then `plain` copies the result and counts shared parts wherever they are. So time and memory are bounded by
  the size of the pickle, and no result is endless.

References:
  pickletools.py in the standard library for the opcodes; torch/_utils.py and torch/storage.py for how tensors are put
  together; numpy/_core/multiarray for arrays.
"""

import dataclasses
import io
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from vqgan_jax.convert.tensors import DTYPES, ConvertError, Tensor, in_memory, size

LARGEST = 256 * 2**20  # bytes of one pickle; those of the largest published checkpoint are a hundredth of it
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # begins files of torch before 1.6; the only whole number of over 64 bits
_MOST_STEPS = 1_000_000  # an opcode of one byte may make an object of 200
_MOST_NODES = 1_000_000  # of the result, counted as a tree
_MOST_NAMES = 1_000  # that are unknown
_DEEPEST = 100
_MOST_WORK = 2**26  # weights, see `_examine`, that all opcodes together may take from the stack
_HEAVIEST_KEY = 16
_REFUSED = ("EXT1", "EXT2", "EXT4", "DUP", "NEXT_BUFFER", "READONLY_BUFFER")
_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), ("GET", "BINGET", "LONG_BINGET")
_KEYS = {"SETITEM": 2, "SETITEMS": 2, "DICT": 2, "ADDITEMS": 1, "FROZENSET": 1}  # a key comes every so many items
_FILLS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")  # change the object below their items


def load(file: io.BytesIO, persistent: Callable[[Any], Any]) -> Any:
    """Loads the pickle at which a file in memory stands, and leaves the file behind it.

    Args:
      file: an `io.BytesIO`.
      persistent: returns the object that a persistent id stands for.

    Returns:
      Containers, numbers, strings, and unfinished tensors; see `plain`.

    Raises:
      ConvertError: the bytes are no pickle, or one that asks for more than a checkpoint needs.
    """
    try:
        whole = _examine(file)
        return _Unpickler(whole, persistent).load()
    except ConvertError:
        raise
    except Exception as error:  # of every sort, as from any program that makes no sense
        text = f"{type(error).__name__}: {str(error)[:200]}"
        raise ConvertError(f"a pickle must be whole, of plain containers and tensors; this one: {text}.") from error


def plain(value: Any, resolve: Callable[["View"], Tensor]) -> Any:
    """Copies what `load` returned: tensors, containers without cycles, numbers, strings, dtypes and stubs.

    Raises:
      ConvertError: the value holds itself, or is large when shared parts are counted wherever they are.
    """
    nodes = 0

    def copy(value: Any, depth: int) -> Any:
        nonlocal nodes
        nodes += 1
        if nodes > _MOST_NODES or depth > _DEEPEST:
            raise ConvertError(f"a checkpoint must hold at most {_MOST_NODES} objects, {_DEEPEST} deep; it holds more.")
        if isinstance(value, dict):
            return {copy(key, depth + 1): copy(part, depth + 1) for key, part in value.items()}
        if type(value) in (list, tuple, set, frozenset):
            return type(value)(copy(part, depth + 1) for part in value)
        if isinstance(value, View):
            return resolve(value)
        return value.finished() if isinstance(value, _Inert) else value

    return copy(value, 0)


def _examine(file: io.BytesIO) -> io.BytesIO:
    """Reads over a pickle without running it, and returns its bytes; ConvertError if it is out of bounds.

    Each object on the stack is a weight: 1, plus the weights of its parts, plus a 64th of its bytes. A weight is in a
    list, so that the stack and the memo share it as they share the object. Frames are cut out: they mean nothing, and
    the unpickler and `pickletools` disagree about those that end within an opcode.
    """
    stack: list[list[int]] = []
    marks, memo, work, cuts = [], {}, 0, [file.tell()]
    for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        name, before = opcode.name, opcode.stack_before
        if step >= _MOST_STEPS or work > _MOST_WORK:
            raise ConvertError(f"a pickle must have less than {_MOST_STEPS} steps, and not repeat large parts.")
        if name in _REFUSED:
            raise ConvertError(f"a checkpoint must do without the opcode {name}; this one has it.")
        if type(argument) is int and argument.bit_length() > 64 and argument != LEGACY_MAGIC:
            raise ConvertError(f"whole numbers must have at most 64 bits; one has {argument.bit_length()}.")
        if name == "FRAME":
            cuts += [file.tell() - 9, file.tell()]
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _PUTS:
            index = len(memo) if argument is None else argument
            if not 0 <= index <= step:
                raise ConvertError(f"places of the memo must be taken in turn; number {index} is not.")
            memo[index] = stack[-1]
        elif name in _GETS:
            stack.append(memo[argument])
        else:
            marked = pickletools.markobject in before or (name == "POP" and marks and marks[-1] == len(stack))
            bottom = marks.pop() if marked else len(stack) - len(before) + (name in _FILLS)
            if bottom - (name in _FILLS) < (marks[-1] if marks else 0):
                raise ConvertError(f"{name} must find its arguments on the stack; they are not there.")
            items = [item[0] for item in stack[bottom:]]
            del stack[bottom:]
            if name in _KEYS and any(weight > _HEAVIEST_KEY for weight in items[:: _KEYS[name]]):
                raise ConvertError("the keys of a dict must be short strings, numbers or small tuples; one is not.")
            weight = sum(items)
            work += weight
            if name in _FILLS:
                stack[-1][0] += weight
            elif opcode.stack_after:
                length = len(argument) if isinstance(argument, str | bytes | bytearray) else 0
                stack.append([1 + weight + length // 64])
    cuts, data = [*cuts, file.tell()], file.getbuffer()
    return io.BytesIO(b"".join(data[start:stop] for start, stop in zip(cuts[::2], cuts[1::2], strict=True)))


class _Unpickler(pickle.Unpickler):
    """The standard unpickler with the allow-list in front of it."""

    def __init__(self, file: io.BytesIO, persistent: Callable[[Any], Any]):
        super().__init__(file, encoding="latin1")  # as strings of Python 2, among them arrays, come out whole
        self.persistent, self.stubs = persistent, {}

    def find_class(self, module: str, name: str) -> Any:
        name = f"{module}.{name}"[:200]
        if name in NAMES:
            return NAMES[name]
        if name not in self.stubs:
            self.stubs[name] = type("Stub", (Stub,), {"__slots__": (), "name": name})
        if len(self.stubs) > _MOST_NAMES:
            raise ConvertError(f"a checkpoint must name at most {_MOST_NAMES} classes; this one names more.")
        return self.stubs[name]

    def persistent_load(self, pid: Any) -> Any:
        return self.persistent(pid)


# Objects that stand for what a pickle names. They have slots and take no state: no opcode can change them.


class _Inert:
    """Something that the unpickler handles and that no pickle can change."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Ignores an object's state."""

    def finished(self) -> Any:
        """Returns what a result holds in its place."""
        return self


class Stub(_Inert):
    """A class that is not in `NAMES`, and what a call of it returns; it takes everything and does nothing.

    Attributes:
      name: that the file gave to the class.
    """

    __slots__ = ()
    name = "unknown"

    def __new__(cls, *_: Any, **__: Any) -> "Stub":
        """Ignores all arguments."""
        return object.__new__(cls)

    def __call__(self, *_: Any, **__: Any) -> "Stub":
        """Ignores all arguments; what it returns can be called, too."""
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Ignores an item; so do the two below."""

    extend = add = append


class _Function(_Inert):
    """One of our functions."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]):
        self.call = call

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


@dataclasses.dataclass(eq=False, slots=True)
class Type(_Inert):
    """A type of elements, or of storages."""

    dtype: np.dtype

    def finished(self) -> np.dtype:
        """Returns the type itself."""
        return self.dtype


class _ArrayType(Type):
    """A type of NumPy's, made anew at each call; its state is its byte order."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Takes (version, order, subtype, names, fields, ...), of which a plain number has the order only."""
        if type(state) is not tuple or len(state) < 5 or state[2:5] != (None,) * 3 or state[1] not in tuple("<>=|"):
            raise ConvertError("an array's type must be a plain number's; this one has parts.")
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(_Inert):
    """An array of NumPy's, whose state is its values; they are left out unless they are numbers."""

    __slots__ = ("values",)

    def __setstate__(self, state: Any) -> None:
        """Takes (version, shape, type, whether it is column by column, bytes)."""
        _, shape, kind, by_columns, data = state
        if isinstance(kind, Type):
            self.values = _values(data, kind, shape, by_columns is True)

    def finished(self) -> Any:
        return in_memory(self.values) if hasattr(self, "values") else Stub()


@dataclasses.dataclass(eq=False, slots=True)
class Storage(_Inert):
    """Elements that lie elsewhere in the file, under a key; a view of a storage begins at element `first`."""

    dtype: np.dtype
    key: str
    count: int
    first: int = 0


@dataclasses.dataclass(eq=False, slots=True)
class View(_Inert):
    """A tensor of torch's, which is a part of a storage; not checked yet."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Dict(dict):
    """A dict that takes no attributes; OrderedDict has them."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Ignores an object's state."""


# What the known names do. No argument is to be trusted, nor to be printed: shared parts can make its text endless.


def _values(data: Any, kind: Type, shape: Any, by_columns: bool) -> np.ndarray:
    data = data.encode("latin-1") if type(data) is str else data  # as Python 2 wrote them
    if type(shape) is not tuple or type(data) not in (bytes, bytearray):
        raise ConvertError("an array must have a shape and bytes; one has not.")
    if size(shape) * kind.dtype.itemsize != len(data):
        raise ConvertError(f"an array {kind.dtype} of shape {shape} must have as many bytes as that; got {len(data)}.")
    flat = np.frombuffer(data, np.uint8) != 0 if kind.dtype.kind == "b" else np.frombuffer(data, kind.dtype)
    return flat.reshape(shape, order="F" if by_columns else "C")


def _type(code: Any, *_: Any) -> _Inert:
    fine = type(code) is str and re.fullmatch("[<>=|]?(b1|[iu][1248]|f[248])", code)
    return _ArrayType(np.dtype(code)) if fine else Stub()


def _scalar(kind: Any, data: Any = None) -> Any:
    return _values(data, kind, (1,), False)[0].item() if isinstance(kind, Type) else Stub()


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> _Inert:
    array = _Array()
    array.__setstate__((1, shape, kind, type(order) is str and order == "F", data))
    return array


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *options: Any) -> _Inert:
    """Does `_rebuild_tensor` and, with options requires_grad, hooks and metadata, `_rebuild_tensor_v2`."""
    if len(options) > 2 and options[2]:
        raise ConvertError("a tensor must be stored as it is; one is stored negated or conjugated. Resolve it first.")
    return _view(storage, None, offset, shape, strides)


def _typed_tensor(storage: Any, offset: Any, shape: Any, strides: Any, _: Any, __: Any, kind: Any, *___: Any) -> _Inert:
    """Does `_rebuild_tensor_v3`, whose storage has no type."""
    return _view(storage, kind.dtype, offset, shape, strides) if isinstance(kind, Type) else Stub()


def _view(storage: Any, dtype: np.dtype | None, offset: Any, shape: Any, strides: Any) -> _Inert:
    if isinstance(storage, Stub):
        return storage
    if not isinstance(storage, Storage) or type(shape) is not tuple or type(strides) is not tuple:
        raise ConvertError("a tensor must have a storage, an offset, sizes and strides; one has not.")
    return View(storage, storage.dtype if dtype is None else dtype, offset, shape, strides)


def _parameter(data: Any = None, *_: Any) -> Any:
    return data


def _from_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """Does `_rebuild_from_type_v2`: a tensor with attributes, or of a subclass."""
    known = isinstance(function, _Function) and function.call in (_tensor, _typed_tensor, _parameter)
    return function(*arguments) if known and type(arguments) is tuple else Stub()


def _size(sizes: Any = ()) -> Any:
    return sizes if type(sizes) is tuple else Stub()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Does what protocols 0 to 2 write bytes with."""
    if type(text) is not str or type(encoding) is not str or encoding not in ("latin1", "latin-1"):
        raise ConvertError("bytes must be written as Latin-1; some are not.")
    return text.encode("latin-1")


def _dict(pairs: Any = (), *_: Any) -> _Dict:
    """Returns an OrderedDict's items, which Python 2 wrote as a list of lists."""
    pairs = pairs if type(pairs) is list else []
    if any(type(pair) not in (list, tuple) or len(pair) != 2 or type(pair[0]) not in (str, int) for pair in pairs):
        raise ConvertError("an OrderedDict must have pairs of a name and a value; this one has not.")
    return _Dict(pairs)


# Storages of torch's, and the types of their elements.
_STORAGES = {
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Double": "float64",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda *_: _Dict(),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": _size,
    "_codecs.encode": _encode,
    "numpy.dtype": _type,
    "builtins.bytes": lambda *_: b"",
    "__builtin__.bytes": lambda *_: b"",
}
for _core in ("core", "_core"):
    _FUNCTIONS |= {
        f"numpy.{_core}.multiarray._reconstruct": lambda *_: _Array(),
        f"numpy.{_core}.multiarray.scalar": _scalar,
        f"numpy.{_core}.numeric._frombuffer": _from_buffer,
    }
NAMES: dict[str, _Inert] = {name: _Function(call) for name, call in _FUNCTIONS.items()}
NAMES |= {f"torch.{name}Storage": Type(DTYPES[dtype]) for name, dtype in _STORAGES.items()}
NAMES |= {f"torch.{name}": Type(dtype) for name, dtype in DTYPES.items()}
NAMES |= {f"torch.{name}": Type(DTYPES["uint8"]) for name in ("UntypedStorage", "storage.UntypedStorage")}
