"""Pickles, read without running them: a machine of our own for their opcodes, which knows containers and tensors.

The standard library's `pickletools` tells the opcodes and their arguments, which it only looks at; what they do is
written here. Names lead to a table and nowhere else, so that there is nothing in this machine that a file could call,
import or change. Its time and memory are bounded by the bytes that it is given.

References:
  pickletools.py in Python's standard library, which describes every opcode.
"""

import mmap
import pickletools
from collections.abc import Callable
from typing import Any

from vqgan_jax.convert.pickled import NAMES, Array, ArrayType, Known, Storage, Stub, View, array_tensor, hashable
from vqgan_jax.convert.weights import ConvertError, Tensor

LARGEST = 256 * 2**20  # bytes of one pickle; those of the largest published checkpoint are a hundredth of it
_MOST_STEPS = 1_000_000  # an opcode of one byte may make an object of 200
_MOST_NODES = 1_000_000  # of what comes out, counted as a tree
_DEEPEST = 100
_WIDEST_INTEGER = 1024  # bits

Persistent = Callable[[Any], Any]


def load(data: bytes | mmap.mmap, persistent: Persistent, start: int = 0) -> tuple[Any, int]:
    """What a pickle describes, made of plain containers, stubs and unfinished tensors; see `plain`.

    Args:
      data: a pickle and what follows it.
      persistent: gives what a persistent id stands for.
      start: where the pickle begins.

    Returns:
      The object, and the position after it.

    Raises:
      ConvertError: if the bytes are no pickle, or one that is larger than a checkpoint needs.
    """
    stream = _Stream(data, start)
    machine = _Machine(persistent, budget=8 * (stream.stop - start) + 2**16)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):  # type: ignore[arg-type]
            if count == _MOST_STEPS:
                raise ConvertError(
                    f"a pickle must have less than {_MOST_STEPS} steps; this one has more. Save tensors."
                )
            _STEPS[opcode.name](machine, argument)
        return machine.stack.pop(), stream.position
    except ConvertError:
        raise
    except Exception as error:  # every sort, as from any program that makes no sense
        raise ConvertError(
            f"a pickle must be whole and at most {LARGEST} bytes long; this one fails at byte {stream.position} "
            f"({type(error).__name__}: {str(error)[:200]}). Fetch the file again."
        ) from error


def plain(value: Any, resolve: Callable[[View], Tensor]) -> Any:
    """A copy of what `load` gave: tensors, containers without cycles, numbers, strings, dtypes and stubs.

    Raises:
      ConvertError: if it holds itself, or is large when its shared parts are counted wherever they are.
    """
    nodes = 0

    def copy(value: Any, depth: int) -> Any:
        nonlocal nodes
        nodes += 1
        if nodes > _MOST_NODES or depth > _DEEPEST:
            raise ConvertError(
                f"a checkpoint must hold at most {_MOST_NODES} objects, {_DEEPEST} deep; this one holds more, or "
                "itself. Do not trust the file."
            )
        if type(value) in (list, tuple, set, frozenset):
            return type(value)(copy(part, depth + 1) for part in value)
        if type(value) is dict:
            return {copy(key, depth + 1): copy(part, depth + 1) for key, part in value.items()}
        return _finished(value, resolve)

    return copy(value, 0)


def _finished(value: Any, resolve: Callable[[View], Tensor]) -> Any:
    if type(value) is View:
        return resolve(value)
    if type(value) is Array:
        return Stub("numpy.ndarray") if value.values is None else array_tensor(value.values)
    if type(value) is ArrayType:
        return value.dtype
    if type(value) in (Known, Storage):
        return Stub(value.name if type(value) is Known else "torch.Storage")
    return value


class _Stream:
    """What `pickletools` reads from: never more than there is, nor than a pickle may have."""

    def __init__(self, data: bytes | mmap.mmap, start: int):
        self._data, self.position, self.stop = data, start, min(len(data), start + LARGEST)

    def read(self, count: int) -> bytes:
        begin, self.position = self.position, min(self.position + max(count, 0), self.stop)
        return self._data[begin : self.position]

    def readline(self) -> bytes:
        end = self._data.find(b"\n", self.position, self.stop)
        return self.read((self.stop if end < 0 else end + 1) - self.position)

    def tell(self) -> int:
        return self.position


class _Machine:
    """The stack, the marked stacks below it, and the memo."""

    def __init__(self, persistent: Persistent, budget: int):
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.persistent = persistent
        self.budget = budget

    def push(self, value: Any) -> None:
        if type(value) is int and value.bit_length() > _WIDEST_INTEGER:
            raise ConvertError(f"whole numbers must have at most {_WIDEST_INTEGER} bits. Do not trust the file.")
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def remember(self, index: Any) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def call(self, function: Any, arguments: Any) -> None:
        """Pushes what a function of ours gives, or a stub in place of what another one would have given."""
        if type(function) is Stub:
            return self.push(Stub(function.name))
        if type(function) is not Known or type(arguments) is not tuple or len(arguments) > 16:
            raise ConvertError(
                f"only what has a name can be called; got {type(function).__name__}. Do not trust the file."
            )
        # A large argument can be passed again and again by a byte or two.
        self.budget -= sum(_cost(argument) for argument in arguments)
        if self.budget < 0:
            raise ConvertError("a pickle must not pass large arguments again and again. Do not trust the file.")
        return self.push(function.call(*arguments))

    def create(self, arguments: Any) -> None:
        """An instance of a class, which lies on the stack."""
        self.call(self.pop(), arguments)

    def create_with_keywords(self, _: Any) -> None:
        self.pop()  # no class that is known takes any
        self.create(self.pop())

    def create_marked(self, _: Any) -> None:
        function, *arguments = self.pop_mark()
        self.call(function, tuple(arguments))

    def create_named(self, name: str) -> None:
        arguments = self.pop_mark()
        self.find(name.replace(" ", ".", 1))
        self.create(tuple(arguments))

    def find(self, name: str) -> None:
        """From module and name to what they stand for here."""
        self.push(NAMES[name] if name in NAMES else Stub(name[:200]))

    def find_on_stack(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise ConvertError("the name of a class must be a string; one is not. Do not trust the file.")
        self.find(f"{module}.{name}")

    def build(self, _: Any) -> None:
        """Gives an array or its type what is missing; whatever else has a state does without."""
        state, target = self.pop(), self.stack[-1]
        if type(target) in (Array, ArrayType):
            target.build(state)

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target.update([hashable(item) for item in items])
        elif type(target) is not Stub:
            raise ConvertError(f"only a list can be appended to; got {type(target).__name__}. Do not trust the file.")

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is dict:
            target.update(_pairs(items))
        elif type(target) is not Stub:
            raise ConvertError(f"only a dict can be given items; got {type(target).__name__}. Do not trust the file.")


def _cost(argument: Any) -> int:
    """Bytes to look at; an element of a container counts for what a dict needs for it."""
    if type(argument) in (str, bytes, bytearray):
        return len(argument)
    return 64 * len(argument) if type(argument) in (list, tuple, set, dict) and len(argument) > 64 else 0


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return {hashable(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _popped(machine: _Machine, count: int) -> list[Any]:
    items = [machine.pop() for _ in range(count)]
    return items[::-1]


def _protocol(_: _Machine, version: int) -> None:
    if version > 5:
        raise ConvertError(f"pickles must be of protocol 5 at most; got {version}. Fetch the file again.")


_VALUES = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip
# What is not here ends the reading: buffers outside of the pickle.
_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "PROTO": _protocol,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    **dict.fromkeys(_VALUES, _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "LIST": lambda machine, _: machine.push(machine.pop_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(_popped(machine, 1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(_popped(machine, 2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(_popped(machine, 3))),
    "DICT": lambda machine, _: machine.push(_pairs(machine.pop_mark())),
    "FROZENSET": lambda machine, _: machine.push(frozenset(hashable(item) for item in machine.pop_mark())),
    "APPEND": lambda machine, _: machine.extend(_popped(machine, 1)),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.update(_popped(machine, 2)),
    "SETITEMS": lambda machine, _: machine.update(machine.pop_mark()),
    "MARK": _Machine.mark,
    "POP": lambda machine, _: machine.pop() if machine.stack else machine.pop_mark(),
    "POP_MARK": lambda machine, _: machine.pop_mark(),
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, index: machine.push(machine.memo[index])),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.remember),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), lambda machine, code: machine.push(Stub(f"extension {code}"))),
    "GLOBAL": lambda machine, name: machine.find(name.replace(" ", ".", 1)),
    "STACK_GLOBAL": _Machine.find_on_stack,
    "REDUCE": lambda machine, _: machine.create(machine.pop()),
    "NEWOBJ": lambda machine, _: machine.create(machine.pop()),
    "NEWOBJ_EX": _Machine.create_with_keywords,
    "OBJ": _Machine.create_marked,
    "INST": _Machine.create_named,
    "BUILD": _Machine.build,
    "PERSID": lambda machine, name: machine.push(machine.persistent(name)),
    "BINPERSID": lambda machine, _: machine.push(machine.persistent(machine.pop())),
}
