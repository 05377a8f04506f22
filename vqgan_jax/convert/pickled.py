"""What the names in a pickle stand for: our own tensors and containers, or an inert stub. Nothing is imported.

References:
  torch/_utils.py and torch/storage.py for how tensors are put together; numpy/_core/multiarray for arrays.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from vqgan_jax.convert import mapped
from vqgan_jax.convert.mapped import DTYPES
from vqgan_jax.convert.weights import ConvertError, Tensor

_LONGEST_KEY = 1000


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Stub:
    """Something that the file names and that is not looked up: a class, or what a call of it would have given."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Known:
    """A name that stands for one of our functions; it is called where the pickle calls what the name meant."""

    name: str
    call: Callable[..., Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """Elements that lie elsewhere in the file, under a key; a view of a storage begins at element `first`."""

    dtype: np.dtype
    key: str
    count: int
    first: int = 0


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class View:
    """A tensor of torch's: part of a storage; not checked yet."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(eq=False, slots=True)
class ArrayType:
    """A NumPy dtype while it is put together: `build` tells its byte order."""

    code: str
    order: str = "="

    def build(self, state: Any) -> None:
        """Takes (version, order, subtype, names, fields, ...), of which plain types have the order only."""
        if (
            type(state) is not tuple
            or len(state) < 5
            or state[1] not in ("<", ">", "=", "|")
            or state[2:5] != (None,) * 3
        ):
            raise ConvertError("an array's type must be a plain number's; this one has parts. Save tensors.")
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype:
        """The finished type."""
        return np.dtype(self.order + self.code)


@dataclasses.dataclass(eq=False, slots=True)
class Array:
    """A NumPy array while it is put together: `build` gives it its values, if they are numbers."""

    values: np.ndarray | None = None

    def build(self, state: Any) -> None:
        """Takes (version, shape, type, whether it is column by column, bytes)."""
        if type(state) is not tuple or len(state) != 5 or type(state[1]) is not tuple:
            raise ConvertError("an array must be told as NumPy does; this one is not. Save tensors.")
        _, shape, kind, by_columns, data = state
        if type(kind) is ArrayType:
            self.values = _array(data, kind, shape, "F" if by_columns is True else "C")


def _array(data: Any, kind: ArrayType, shape: tuple[Any, ...], order: Any) -> np.ndarray:
    """A read-only array over the bytes; ConvertError unless they are as many as the shape needs."""
    data = data.encode("latin-1") if type(data) is str else data  # as Python 2 wrote them
    # A shape is never put into a message before it is known to be one: shared parts can make its text endless.
    if mapped.size(shape) * kind.dtype.itemsize != (len(data) if type(data) in (bytes, bytearray) else -1):
        raise ConvertError(
            f"an array of {kind.dtype}, shape {str(shape)[:100]}, must have as many bytes as that needs; it has other "
            "data. Do not trust the file."
        )
    flat = np.frombuffer(data, np.uint8) != 0 if kind.dtype.kind == "b" else np.frombuffer(data, kind.dtype)
    array = flat.reshape(shape, order="F" if type(order) is str and order == "F" else "C")
    array.flags.writeable = False
    return array


def _array_type(code: Any, *_: Any) -> ArrayType | Stub:
    match = re.fullmatch(r"([<>=|]?)(b1|[iu][1248]|f[248])", code) if type(code) is str else None
    return Stub("numpy.dtype") if match is None else ArrayType(match[2], match[1] or "=")


def _array_scalar(kind: Any, data: Any = None) -> Any:
    return _array(data, kind, (1,), "C")[0].item() if type(kind) is ArrayType else Stub("numpy scalar")


def _array_from_bytes(data: Any, kind: Any, shape: Any, order: Any) -> Array | Stub:
    if type(kind) is not ArrayType or type(shape) is not tuple:
        return Stub("numpy.ndarray")
    return Array(_array(data, kind, shape, order))


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> View | Stub:
    """`_rebuild_tensor` and `_rebuild_tensor_v2`; the latter also has: requires_grad, hooks, metadata."""
    if len(_) > 2 and _[2]:
        raise ConvertError(
            "a tensor must be stored as it is; one is stored negated or conjugated. Resolve it and save."
        )
    return _view(storage, None, offset, shape, strides)


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> Any:
    """`_rebuild_tensor_v3`, whose storage has no type."""
    return _view(storage, dtype, offset, shape, strides) if isinstance(dtype, np.dtype) else Stub("torch.Tensor")


def _view(storage: Any, dtype: np.dtype | None, offset: Any, shape: Any, strides: Any) -> View | Stub:
    if type(storage) is Stub:
        return storage
    sizes = type(shape) is tuple and type(strides) is tuple and len(shape) == len(strides) <= mapped.MOST_AXES
    if type(storage) is not Storage or not sizes or not all(type(n) is int for n in (offset, *shape, *strides)):
        raise ConvertError(
            "a tensor must have a storage, an offset, sizes and strides; one does not. Do not trust the file."
        )
    return View(storage, storage.dtype if dtype is None else dtype, offset, shape, strides)


def _from_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """`_rebuild_from_type_v2`: a tensor with attributes or of a subclass."""
    tensors = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_parameter")
    known = type(function) is Known and function.name in tensors and type(arguments) is tuple and len(arguments) < 10
    return function.call(*arguments) if known else Stub("torch.Tensor")


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocols 0 to 2 write bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ConvertError("bytes must be written as Latin-1; some are not. Do not trust the file.")
    return text.encode("latin-1")


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    found = {}
    for key, value in pairs if type(pairs) is list else ():
        found[hashable(key)] = value
    return found


def _set(items: Any = ()) -> set[Any]:
    return {hashable(item) for item in items} if type(items) in (list, tuple, set) else set()


def hashable(key: Any, depth: int = 2) -> Any:
    """The key, if it is small enough that no choice of keys makes a dict slow; else ConvertError.

    Tuples and whole numbers do not remember their hash, strings are compared in full, and the hashes of numbers from
    2^61 on can be chosen to collide.
    """
    fine = key is None or isinstance(key, (bool, float, Stub, Known, np.dtype))
    fine = fine or (isinstance(key, (str, bytes)) and len(key) <= _LONGEST_KEY)
    fine = fine or (isinstance(key, int) and abs(key) < 2**60)
    if isinstance(key, tuple) and len(key) <= 16 and depth:
        return tuple(hashable(part, depth - 1) for part in key)
    if not fine:
        raise ConvertError(
            f"the keys of a dict must be short strings or numbers; got {type(key).__name__}. Save tensors."
        )
    return key


def array_tensor(values: np.ndarray) -> Tensor:
    """An array that was in the pickle itself; read-only."""
    native = values.dtype.newbyteorder("=")
    return Tensor(values.shape, native, lambda: np.require(np.asarray(values, native), requirements=["C", "ALIGNED"]))


_STORAGES = {
    "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Double": "float64", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _dict,
    "collections.defaultdict": lambda *_: {},
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.Size": lambda sizes=(): sizes if type(sizes) is tuple else Stub("torch.Size"),
    "numpy.dtype": _array_type,
    "_codecs.encode": _encode,
    **{f"{module}.{name}": _set for module in ("builtins", "__builtin__") for name in ("set", "frozenset")},
    **{f"{module}.bytes": lambda *_: b"" for module in ("builtins", "__builtin__")},
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: Array() for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _array_scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array_from_bytes for core in ("core", "_core")},
}
NAMES: dict[str, Known | np.dtype] = {
    **{f"torch.{name}Storage": DTYPES[dtype] for name, dtype in _STORAGES.items()},
    **{f"torch.{dtype}": dtype_ for dtype, dtype_ in DTYPES.items()},
    **{f"torch{module}.UntypedStorage": DTYPES["uint8"] for module in ("", ".storage")},
    **{name: Known(name, call) for name, call in _FUNCTIONS.items()},
}
