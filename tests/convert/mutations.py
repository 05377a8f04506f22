"""Valid files of every container, and how they are damaged: for the tests and for the fuzzer in benchmarks."""

import json
import math
import random
import struct

import flax.serialization
import numpy as np
import safetensors.numpy
from torch_files import STORAGES, Call, Global, View, write_legacy, write_zip

from vqgan_jax.convert.pickles import NAMES
from vqgan_jax.convert.read import open_checkpoint
from vqgan_jax.convert.tensors import ConvertError

BASE = np.arange(120, dtype=np.float32)


def arrays():
    """One of each type of elements."""
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(3, 4)) * 3 for name in STORAGES}
    return {name: value.astype(np.dtype(name)) for name, value in values.items()} | {"half": np.zeros((0, 3), "f2")}


def views():
    """Tensors that share a storage, and what they are."""
    grid, images = BASE.reshape(10, 12), BASE.reshape(2, 4, 5, 3).transpose(0, 3, 1, 2)
    return {
        "whole": (View("s", BASE, 0, (10, 12), (12, 1)), grid),
        "transposed": (View("s", BASE, 0, (12, 10), (1, 12)), grid.T),
        "part": (View("s", BASE, 25, (3, 4), (12, 3)), grid[2:5, 1::3]),
        "channels last": (View("s", BASE, 0, (2, 3, 4, 5), (60, 1, 15, 3)), images),
        "scalar": (View("s", BASE, 119, (), ()), BASE[119]),
        "none": (View("s", BASE, 500, (0, 7), (99, 99)), np.zeros((0, 7), np.float32)),
        "one row": (View("s", BASE, 5, (1, 3), (1000, 1)), BASE[5:8][None]),
    }


def write_safetensors(path, arrays):
    path.write_bytes(safetensors.numpy.save(arrays, {"format": "pt"}))
    return path


def write_header(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as the library does, so that tensors are aligned
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def write_msgpack(path, tree):
    path.write_bytes(flax.serialization.msgpack_serialize(tree))
    return path


def samples(folder):
    """A valid file of each container."""
    tree = {name: view for name, (view, _) in views().items()} | {"epoch": 3, "odd": Call(Global("a", "B"), (1,))}
    return [
        write_zip(folder / "zip", {"state_dict": tree, "lr": 0.5}),
        write_zip(folder / "unchecked", {"state_dict": tree, "lr": 0.5}, checksums=False),
        write_legacy(folder / "legacy", {"state_dict": tree, "lr": 0.5}),
        write_safetensors(folder / "safetensors", arrays()),
        write_msgpack(folder / "msgpack", {"params": arrays(), "step": 7}),
    ]


def mutated(data, rng):
    """A few bytes changed, taken out, repeated, or numbers set to extremes."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place, size = rng.randrange(len(data)), rng.choice([1, 1, 2, 4, 8])
        kind = rng.randrange(5)
        if kind == 0:
            data[place] = rng.randrange(256)
        elif kind == 1:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            data[place : place + size] = rng.choice([b"\xff", b"\0", b"\x7f"]) * size
        elif kind == 3:
            del data[place : place + size]
        else:
            start = rng.randrange(len(data))
            data[place:place] = data[start : start + rng.randrange(40)]
    return bytes(data)


def try_to_read(path):
    """Opens and reads all; True if that went well."""
    try:
        for found in open_checkpoint(path).tensors.values():
            assert found.read().shape == found.shape
    except ConvertError:
        return False
    return True


def text(string):
    """A string, as opcode BINUNICODE has it."""
    return b"X" + struct.pack("<I", len(string)) + string.encode()


EXTENSION = 5
OF_EXTENSION = b"\x82" + bytes([EXTENSION])
PIECES = [
    *(bytes([code]) for code in b"(012]})\x8fNaesutldoRb\x81\x85\x86\x87\x90\x91\x92\x93\x94Q"),
    *(b"K\x01", b"G" + struct.pack(">d", math.pi), b"q\x00", b"h\x00", b"h\x01", b"C\x02ab", b"J\xff\xff\xff\xff"),
    *(text("storage"), text("f4"), text("state_dict"), b"cposix\nsystem\n", b"iposix\nsystem\n", OF_EXTENSION),
    *(b"\x95" + struct.pack("<Q", length) for length in (0, 1, 3, 20)),
    *(f"c{name.rpartition('.')[0]}\n{name.rpartition('.')[2]}\n".encode() for name in NAMES),
]


def program(rng: random.Random, length=30):
    """A pickle of valid opcodes, which gets further than random bytes."""
    return b"".join(rng.choices(PIECES, k=rng.randrange(1, length))) + b"."
