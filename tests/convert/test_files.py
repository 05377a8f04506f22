"""Files of every container, whole and damaged: what comes out, what it costs, and what is refused."""

import random
import struct
import sys
import time
import zipfile
from pathlib import Path

import flax.serialization
import numpy as np
import pytest
from mutations import BASE, arrays, mutated, samples, try_to_read, views, write_header, write_msgpack, write_safetensors
from torch_files import Call, Global, Hole, Ordered, Stored, View, tensor, write_archive, write_legacy, write_zip

from vqgan_jax.convert import read
from vqgan_jax.convert.pickles import Stub
from vqgan_jax.convert.read import open_checkpoint
from vqgan_jax.convert.tensors import ConvertError

WRITERS = [pytest.param(write_zip, id="zip"), pytest.param(write_legacy, id="legacy")]
CONTAINERS = {  # that hold arrays by name
    "zip": lambda path, arrays: write_zip(path, {name: tensor(name, array) for name, array in arrays.items()}),
    "legacy": lambda path, arrays: write_legacy(path, {name: tensor(name, array) for name, array in arrays.items()}),
    "safetensors": write_safetensors,
    "msgpack": write_msgpack,
}


def assert_reads(found, expected):
    read = found.read()
    assert type(read) is np.ndarray
    assert (read.shape, read.dtype) == (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert read.flags.c_contiguous
    assert read.flags.aligned
    np.testing.assert_array_equal(read, expected)


# What comes out


@pytest.mark.parametrize("container", CONTAINERS)
def test_types_of_elements(container, tmp_path):
    tensors, other = open_checkpoint(CONTAINERS[container](tmp_path / "file", arrays()))
    assert other == ({"__metadata__": {"format": "pt"}} if container == "safetensors" else {})
    assert set(tensors) == set(arrays())
    for name, array in arrays().items():
        assert_reads(tensors[name], array)


@pytest.mark.parametrize("write", WRITERS)
def test_views_of_one_storage(write, tmp_path):
    path = write(tmp_path / "file", Ordered((name, view) for name, (view, _) in views().items()))
    tensors, _ = open_checkpoint(path)
    for name, (_, array) in views().items():
        assert_reads(tensors[name], array)


@pytest.mark.parametrize("write", WRITERS)
def test_a_lightning_file(write, tmp_path):
    hyperparameters = Call(Global("argparse", "Namespace"), (), {"lr": 0.1})
    moments = {"state": {0: {"step": 5, "exp_avg": tensor("m", BASE)}}, "param_groups": [{"lr": 0.5, "params": [0]}]}
    tree = {
        "epoch": 3,
        "state_dict": Ordered(a=tensor("a", BASE)),
        "optimizer_states": [moments],
        "callbacks": {Global("pytorch_lightning.callbacks", "ModelCheckpoint"): {"best": "x.ckpt"}},
        "hyper_parameters": hyperparameters,
    }
    tensors, other = open_checkpoint(write(tmp_path / "file", tree))
    assert list(tensors) == ["a"]
    assert other["epoch"] == 3
    assert_reads(other["optimizer_states"][0]["state"][0]["exp_avg"], BASE)
    assert isinstance(other["hyper_parameters"], Stub)
    ((callback, state),) = other["callbacks"].items()
    assert (callback.name, state) == ("pytorch_lightning.callbacks.ModelCheckpoint", {"best": "x.ckpt"})


@pytest.mark.parametrize(
    ("tree", "names", "rest"),
    [
        ({"model": {"a": 0}, "ema": {"b": 0}, "steps": 7}, ["a"], ["ema", "steps"]),
        ({"ema": {"b": 0}, "optimizer": {}}, ["b"], ["optimizer"]),
        ({"module": {"module.a": 0, "module.b": 0}}, ["a", "b"], []),
        ({"model": {"state_dict": {"a": 0}, "epoch": 1}, "args": None}, ["a"], ["args", "epoch"]),
        ({"a": 0, "model": 3, "n": {"b": 0}}, ["a"], ["model", "n"]),
        ({"net": {"a": 0, "b": 0}, "step": 3}, ["net/a", "net/b"], ["step"]),
    ],
)
def test_wrappers(tree, names, rest, tmp_path):
    checkpoint = open_checkpoint(write_zip(tmp_path / "file", filled(tree)))
    assert list(checkpoint.tensors) == names
    assert sorted(checkpoint.other) == rest


def filled(tree):
    """Zeros become tensors."""
    return {k: filled(v) if type(v) is dict else tensor("0", BASE) if v == 0 else v for k, v in tree.items()}


def test_trees_of_flax(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 200)
    other = {"step": 7, "z": [1, -3, 1e-3, None, 2j, "ü"]}
    tree = {"params": {"encoder": {"a": BASE}, "large": BASE.reshape(10, 12)}, "t": np.float32(0.5)}
    tensors, rest = open_checkpoint(write_msgpack(tmp_path / "file", tree | other))
    assert rest == other
    assert sorted(tensors) == ["params/encoder/a", "params/large", "t"]
    np.testing.assert_array_equal(tensors["params/large"].read(), tree["params"]["large"])
    assert tensors["t"].read() == np.float32(0.5)


@pytest.mark.parametrize(
    ("name", "container"), [("x.safetensors", "safetensors"), ("flax_model.msgpack", "msgpack"), ("x.bin", "zip")]
)
def test_folders(name, container, tmp_path):
    with pytest.raises(ConvertError, match=r"config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"latent_channels": 4}')
    with pytest.raises(ConvertError, match="it has none"):
        open_checkpoint(tmp_path)
    CONTAINERS[container](tmp_path / name, arrays())
    tensors, other = open_checkpoint(tmp_path)
    assert set(tensors) == set(arrays())
    assert other["config"] == {"latent_channels": 4}
    CONTAINERS[container](tmp_path / f"again.{name}", arrays())
    with pytest.raises(ConvertError, match="one file"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ConvertError, match=r"config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("write", WRITERS)
def test_parameters_attributes_and_storages_without_a_type(write, tmp_path):
    """As torch writes parameters, parameters with attributes, and types that are younger than storages of bytes."""
    parameter = Global("torch._utils", "_rebuild_parameter")
    arguments = (tensor("0", BASE), True, Ordered())
    from_type = Global("torch._tensor", "_rebuild_from_type_v2")
    numbers = np.arange(6, dtype=np.uint16)
    storage = Stored("1", numbers.view(np.uint8), "UntypedStorage", 12)
    typed = (storage, 1, (2, 2), (2, 1), False, Ordered(), Global("torch", "uint16"))
    tree = {
        "parameter": Call(parameter, arguments),
        "attributes": Call(from_type, (parameter, Global("torch", "Tensor"), arguments, {"x": 3})),
        "numbers": Call(Global("torch._utils", "_rebuild_tensor_v3"), typed),
        "sparse": Call(Global("torch._utils", "_rebuild_sparse_tensor"), (Global("torch", "sparse_coo"), ())),
        "foreign": Call(from_type, (Global("os", "system"), Global("torch", "Tensor"), ("touch x",), {})),
    }
    tensors, other = open_checkpoint(write(tmp_path / "file", tree))
    assert_reads(tensors["parameter"], BASE)
    assert_reads(tensors["attributes"], BASE)
    assert_reads(tensors["numbers"], numbers[1:5].reshape(2, 2))
    assert all(isinstance(other[name], Stub) for name in ("sparse", "foreign"))
    negated = Call(Global("torch._utils", "_rebuild_tensor_v2"), (*typed[:4], False, Ordered(), {"neg": True}))
    refused(write(tmp_path / "negated", {"a": negated}), "stored negated")


# What it costs


def peak_memory():
    """Bytes that this process has had in memory at most, since the last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_six_gigabytes_open_in_little_memory(tmp_path):
    """The file has holes, so that it takes no place: 6 GB of zeros, with offsets beyond 32 bits, and one tensor."""
    float32 = np.dtype(np.float32)
    last = np.arange(1_000_000, dtype=np.float32)
    tree = {"hole": View("h", Hole(float32, 10**9), 0, (10**9,), (1,))}
    tree |= {f"part{i}": View(f"p{i}", Hole(float32, 10**8), 0, (10**4, 10**4), (10**4, 1)) for i in range(5)}
    path = write_zip(tmp_path / "file", tree | {"last": tensor("z", last)})
    assert path.stat().st_size > 6e9
    assert path.stat().st_blocks * 512 < 2e7
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, began = peak_memory(), time.perf_counter()
    tensors, _ = open_checkpoint(path)
    assert_reads(tensors["last"], last)
    assert tensors["hole"].read()[-1] == 0
    assert peak_memory() - before < 100e6
    assert time.perf_counter() - began < 10


@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_tensors_are_mapped_when_they_are_read(container, tmp_path):
    path = CONTAINERS[container](tmp_path / "file", {"a": BASE})
    tensors = open_checkpoint(path).tensors
    assert container == "legacy" or not tensors["a"].read().flags.owndata, "there it may lie at an odd place"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConvertError, match="must stay as it was"):
        tensors["a"].read()


def test_bytes_that_are_no_truth_values(tmp_path):
    odd = np.array([0, 1, 2, 255], np.uint8).view(bool)
    read = open_checkpoint(write_zip(tmp_path / "file", {"a": tensor("0", odd)})).tensors["a"].read()
    assert read.view(np.uint8).tolist() == [0, 1, 1, 1]


# What is refused


def refused(path, match):
    with pytest.raises(ConvertError, match=match) as error:
        open_checkpoint(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000


ONE = {"a": View("0", BASE, 0, (120,), (1,))}


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize(
    "fields",
    [
        {"offset": 1},
        {"offset": -1},
        {"shape": (121,)},
        {"strides": (2,)},
        {"strides": (-1,), "offset": 119},
        {"shape": (-1,)},
        {"shape": (2**40,), "strides": (0,)},
        {"shape": (2**62, 2**62)},
        {"shape": (2**62, 2**62), "strides": (2**62, 1)},
        {"shape": (12, 10), "strides": (12, 1), "offset": 2**70},
        {"shape": (2, 100), "strides": (1, 1)},
        {"shape": (1,) * 64, "strides": (1,) * 64},
        {"shape": (True,)},
        {"shape": ("3",)},
        {"shape": [120]},
        {"offset": 0.0},
        {"count": 121},
        {"count": 2**59},
        {"count": -1},
    ],
    ids=str,
)
def test_tensors_outside_of_their_storage(write, fields, tmp_path):
    refused(write(tmp_path / "file", {"a": ONE["a"]._replace(**fields)}), "must")


@pytest.mark.parametrize(
    ("archive", "options", "match"),
    [
        ({"byteorder": b"big"}, {}, "little-endian"),
        ({"data/0": None}, {}, "'0' must be in the archive"),
        ({"data/0": b"short"}, {}, "5 bytes of it"),
        ({"data.pkl": None}, {}, r"`data\.pkl`; it has 0"),
        ({"data.pkl": b"no pickle"}, {}, "a pickle must be whole"),
        ({}, {"method": zipfile.ZIP_DEFLATED}, "neither packed nor encrypted"),
        ({}, {"flags": 0x809}, "neither packed nor encrypted"),
        ({}, {"entry_size": 10**6}, "must be whole"),
        ({}, {"entry_size": 2**62}, "must be whole"),
    ],
)
def test_odd_archives(archive, options, match, tmp_path):
    refused(write_zip(tmp_path / "file", ONE, archive=archive, **options), match)


def test_entries_that_are_there_twice(tmp_path):
    refused(write_archive(tmp_path / "file", [("m/data.pkl", b"N."), ("m/data.pkl", b"N.")]), "is twice")
    refused(write_archive(tmp_path / "two", [("m/data.pkl", b"N."), ("n/data.pkl", b"N.")]), "it has 2")


def test_a_directory_that_claims_to_be_as_large_as_the_file(tmp_path):
    path = write_zip(tmp_path / "file", {"a": View("0", Hole(np.dtype(np.float32), 10**9), 0, (1,), (1,))})
    with open(path, "r+b") as file:
        file.seek(-22 - 20 - 56 + 40, 2)
        file.write(struct.pack("<QQ", 4 * 10**9, 10))
    refused(path, "directory")


def test_a_checksum_that_does_not_fit(tmp_path):
    path = write_zip(tmp_path / "file", ONE | {"epoch": 3})
    path.write_bytes(path.read_bytes().replace(b"epoch", b"epocx"))
    refused(path, "undamaged")
    path = write_zip(tmp_path / "without", ONE | {"epoch": 3}, checksums=False)
    assert open_checkpoint(path).other == {"epoch": 3}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"protocol": 1000}, "protocol 1001"),
        ({"system": {"little_endian": False}}, "little-endian"),
        ({"system": {}}, "little-endian"),
        ({"magic": 7}, "must be a dict of tensors"),
        ({"keys": []}, "'0' must have 480 bytes"),
        ({"keys": ["0", "0"]}, "named once"),
        ({"keys": ["1"]}, "named once"),
        ({"keys": [1]}, "named once"),
        ({"keys": [("a", ["b"])]}, "named once"),
        ({"counts": {"0": 121}}, "must be whole"),
        ({"counts": {"0": -5}}, "must be whole"),
        ({"counts": {"0": 2**62}}, "must be whole"),
        ({"counts": {"0": 100}}, "must have 480 bytes; the file has 400 bytes"),
    ],
    ids=str,
)
def test_odd_streams(options, match, tmp_path):
    refused(write_legacy(tmp_path / "file", ONE, **options), match)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1] * 1000, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, "4"]},
        {"dtype": "F32", "shape": [1]},
        7,
    ],
    ids=str,
)
def test_odd_entries_of_safetensors(entry, tmp_path):
    refused(write_header(tmp_path / "file", {"a": entry}, b"abcd"), "must")


@pytest.mark.parametrize(
    "header", [b'{"a":' * 100_000, b'{"a": 1, "a": 2}', b'{"a"', b'{"\xff"}', b"{}", b'{"a": ' + b"9" * 10_000 + b"}"]
)
def test_odd_headers_of_safetensors(header, tmp_path):
    refused(write_header(tmp_path / "file", header), "must")


def test_overlapping_tensors_holes_and_a_long_header(tmp_path):
    entry = lambda first, last: {"dtype": "I8", "shape": [last - first], "data_offsets": [first, last]}
    for other in (entry(2, 4), entry(0, 3)):
        refused(write_header(tmp_path / "file", {"a": entry(0, 3), "b": other}, b"abcd"), "must be whole")
    refused(write_header(tmp_path / "file", {"a": entry(0, 1), "b": entry(2, 4)}, b"abcd"), "must be whole")
    path = write_header(tmp_path / "hole", b"{")
    with open(path, "r+b") as file:
        file.write(struct.pack("<Q", 10**9))
        file.truncate(2 * 10**9)
    refused(path, "must be whole")


FULL = b"\xdd" + struct.pack(">I", 50_000)  # begins a list
TREES = {
    "dict of billions": b"\x81\xa1a\xdf\xff\xff\xff\xff",
    "list of billions": b"\x81\xa1a\xdd\xff\xff\xff\xff",
    "bytes of gigabytes": b"\x81\xa1a\xc6\xff\xff\xff\xff",
    "array of gigabytes": b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
    "no value": b"\x81\xa1a\xc1",
    "lists in lists": b"\x81\xa1a" + b"\x91" * 10_000,
    "dicts in dicts": b"\x81\xa1a" * 10_000 + b"\x01",
    "a million lists": b"\x81\xa1a" + FULL + b"\x90" * 50_000,
    "a million lists in an array": b"\x81\xa1a\xc9" + struct.pack(">I", 50_005) + b"\x01" + FULL + b"\x90" * 50_000,
    "a name twice": b"\x82\xa1a\x01\xa1a\x01",
    "a list for a name": b"\x81\x90\x01",
    "no array": b"\x81\xa1a\x01",
    "a tail": b"\x81\xa1a\x01tail",
    "an array of nothing": b"\x81\xa1a\xd4\x01\x90",
    "an array of an unknown type": b"\x81\xa1a\xd6\x01\x93\x90\xa1x\xc0",
    "an array with a tail": b"\x81\xa1a\xc7\x0d\x01\x93\x91\x02\xa5uint8\xc4\x01z\x00",
    "an array with too few bytes": b"\x81\xa1a\xc7\x0c\x01\x93\x91\x02\xa5uint8\xc4\x01z",
    "an array of objects": b"\x81\xa1a\xc7\x0d\x01\x93\x91\x01\xa6object\xc4\x01z",
    "an array of parts": b"\x81\xa1a\xc7\x0e\x01\x93\x91\x01\xa5u1,u1\xc4\x02zz",
    "chunks of nothing": b"\x81\xa1a\x81\xb9__msgpack_chunked_array__\xc3",
    "no text": b"\x82\xa1a\x01\xa1\xff\x01",
}


@pytest.mark.parametrize("name", TREES)
def test_odd_trees_of_flax(name, tmp_path, monkeypatch):
    monkeypatch.setattr(read, "_MOST_NODES", 20_000)
    path = tmp_path / "file"
    path.write_bytes(TREES[name])
    refused(path, "must")


OTHERS = [b"", b"P", b"PK\x03\x04", b"<!DOCTYPE html>", b"\x89PNG\r\n", b"\x80", b"\x80\x02", b"\x1f\x8b"]


@pytest.mark.parametrize("data", OTHERS)
def test_other_files(data, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(data)
    refused(path, "must")


@pytest.mark.parametrize(
    "tree",
    [[tensor("0", BASE)], tensor("0", BASE), {}, {"a": 1}, Call(Global("m", "Net"), (), {"a": tensor("0", BASE)})],
)
def test_what_holds_no_names_of_tensors(tree, tmp_path):
    refused(write_zip(tmp_path / "file", tree), "Save the model's")


def test_a_missing_file_is_no_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_checkpoint(tmp_path / "none")


def test_a_truncated_file_is_refused_or_is_as_it_was(tmp_path):
    """Only whole files open: all containers tell where they end."""
    for path in samples(tmp_path):
        data = path.read_bytes()
        for stop in [*range(0, len(data), max(1, len(data) // 25)), len(data) - 1]:
            path.write_bytes(data[:stop])
            refused(path, "must")


def test_mutated_files_open_or_are_refused(tmp_path):
    """A few of each container; `benchmarks/fuzz_convert.py` goes on for as long as you like."""
    rng = random.Random(0)
    for path in samples(tmp_path):
        data = path.read_bytes()
        assert try_to_read(path)
        for _ in range(60):
            path.write_bytes(mutated(data, rng))
            try_to_read(path)
