"""Hostile pickles do nothing, honest ones come out as the standard library reads them."""

import contextlib
import copyreg
import io
import pickle
import random
import struct
import sys
import time
import tracemalloc

import numpy as np
import pytest
from mutations import program, text
from torch_files import Pickle

from vqgan_jax.convert import pickles
from vqgan_jax.convert.pickles import Stub
from vqgan_jax.convert.read import _storage
from vqgan_jax.convert.tensors import ConvertError, Tensor

CODE = 240  # of the extension registry


def load(data):
    """What files get, with views in place of tensors."""
    return pickles.plain(pickles.load(io.BytesIO(data), _storage), lambda view: view)


def is_stub(value):
    return issubclass(value if isinstance(value, type) else type(value), Stub)


def short(string):
    return b"\x8c" + bytes([len(string)]) + string.encode()


SYSTEM = b"cposix\nsystem\n"
# Each runs a command when the standard library reads it; the command comes in place of %.
ATTACKS = {
    "reduce": SYSTEM + b"(%tR.",
    "reduce of a name on the stack": b"\x80\x04" + short("posix") + short("system") + b"\x93%\x85R.",
    "instance": b"(%iposix\nsystem\n.",
    "object": b"(" + SYSTEM + b"%o.",
    "object within containers": b"}(K\x01](" + SYSTEM + b"%\x85Reu.",
    "builtin": b"cbuiltins\neval\n(" + text("__import__('os').system") + b"tR(%tR.",
    "attribute": b"cbuiltins\ngetattr\n(cos\n__dict__\n" + text("get") + b"tR(" + text("system") + b"tR(%tR.",
    "attribute in a dotted name": b"\x80\x04" + short("os") + short("path.os.system") + b"\x93%\x85R.",
    "new object": b"\x80\x02cfunctools\npartial\n(" + SYSTEM + b"%t\x81)R.",
    "new object with keywords": b"\x80\x04cfunctools\npartial\n" + SYSTEM + b"%\x86}\x92)R.",
    "state": b"cargparse\nNamespace\n)R}" + text("__setstate__") + SYSTEM + b"sb%b.",
    "extension": b"\x80\x02\x82" + bytes([CODE]) + b"%\x85R.",
    "extension, wide": b"\x80\x02\x84" + struct.pack("<i", CODE) + b"%\x85R.",
    "dropped result": SYSTEM + b"(%tR0N.",
    "key": b"}(" + SYSTEM + b"%\x85RNu.",
}


@pytest.fixture
def command(tmp_path):
    """A command as an opcode, and the file that it makes."""
    canary = tmp_path / "canary"
    copyreg.add_extension("posix", "system", CODE)
    yield text(f"touch {canary}"), canary
    copyreg.remove_extension("posix", "system", CODE)


@pytest.mark.parametrize("name", ATTACKS)
def test_what_others_run_does_nothing(name, command):
    opcode, canary = command
    data = ATTACKS[name].replace(b"%", opcode)
    pickle.loads(data)
    assert canary.exists(), "this is an attack"
    canary.unlink()
    with contextlib.suppress(ConvertError):
        load(data)
    assert not canary.exists()


def test_nothing_is_imported():
    assert "this" not in sys.modules
    assert load(b"cthis\nd\n.").name == "this.d"
    assert "this" not in sys.modules
    assert "torch" not in sys.modules


@pytest.mark.parametrize(
    "name",
    ["torch._utils _rebuild_tensor_v2.__globals__", "torch.Size.__init__ x", "numpy dtype.type", "pickle loads"],
)
def test_names_lead_to_the_table_or_to_a_stub(name):
    found = load(b"c" + name.replace(" ", "\n").encode() + b"\n.")
    assert is_stub(found)
    assert found.name == name.replace(" ", ".")


def test_stubs_take_everything_and_give_stubs():
    data = b"\x80\x02cfoo\nBar\n)\x81}(K\x01K\x02ub(K\x01K\x02eK\x03aK\x01K\x02s(K\x01\x90."
    assert load(data).name == "foo.Bar"
    assert load(b"cfoo\nBar\n(K\x01tR(K\x02tR.").name == "foo.Bar", "what a stub gave can be called, too"


ARRAY = pickle.dumps(np.arange(6, dtype=np.float32), 2)


@pytest.mark.parametrize("name", pickles.NAMES)
def test_no_state_changes_what_names_stand_for(name):
    """Neither a dict of attributes, nor one of slots, nor the state of a NumPy type, nor items."""
    known = pickles.NAMES[name]
    before = {slot: getattr(known, slot) for slot in ("call", "dtype") if hasattr(known, slot)}
    push = b"c" + name.rpartition(".")[0].encode() + b"\n" + name.rpartition(".")[2].encode() + b"\n"
    attributes = b"}(" + b"".join(text(slot) + b"cposix\nsystem\n" for slot in ("call", "dtype", "__setstate__")) + b"u"
    for change in (attributes + b"b", b"N" + attributes + b"\x86b", b"(K\x03" + text(">") + b"NNNtb", b"K\x01K\x02s"):
        with contextlib.suppress(ConvertError):
            load(push + change + b".")
    assert {slot: getattr(known, slot) for slot in before} == before
    assert not hasattr(known, "__dict__")
    assert load(ARRAY).read().tolist() == [0, 1, 2, 3, 4, 5]


STORAGE, FLOAT, REST = b"(" + text("storage"), b"ctorch\nFloatStorage\n", text("cpu") + b"K\x01tQ."
IDS = {
    "number": b"K\x01Q.",
    "line": b"Pstorage\n.",
    "empty": b")Q.",
    "short": text("storage") + b"\x85Q.",
    "type": STORAGE + b"K\x01" + text("0") + REST,
    "no storage": STORAGE + SYSTEM + text("0") + REST,
    "kind": b"(]" + FLOAT + text("0") + REST,
    "count": STORAGE + FLOAT + text("0") + text("cpu") + b"J\xff\xff\xff\xfftQ.",
    "key": STORAGE + FLOAT + b"]" + REST,
}


@pytest.mark.parametrize("name", IDS)
def test_odd_persistent_ids_are_errors_or_nothing(name):
    with contextlib.suppress(ConvertError):
        assert is_stub(load(IDS[name]))


NONSENSE = {
    "nothing": b"",
    "no object": b".",
    "no stop": b"K\x01",
    "no opcode": b"\xff.",
    "protocol": b"\x80\x06N.",
    "names that are numbers": b"K\x01K\x02\x93.",
    "names that are lists": b"]]\x93.",
    "call of a number": b"K\x01)R.",
    "arguments that are a number": b"ccollections\nOrderedDict\nK\x01R.",
    "pairs that are numbers": b"ccollections\nOrderedDict\n(](K\x01K\x02etR.",
    "no arguments": b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
    "odd arguments": b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNNtR.",
    "append to nothing": b"NNa.",
    "item of a class": b"ccollections\nOrderedDict\nK\x01K\x02s.",
    "state of a class": b"cfoo\nBar\nNb.",
    "state of a list": b"]}b.",
    "empty memo": b"h\x05.",
    "no mark": b"t.",
    "too many pops": b"(0000.",
    "append below a mark": b"N(Na.",
    "half an item": b"(K\x01d.",
    "key that is a list": b"}]Ns.",
    "buffers elsewhere": b"\x96" + struct.pack("<Q", 3) + b"abc\x97.",
    "many digits": b"I" + b"9" * 100_000 + b"\n.",
    "wide integer": b"\x8b" + struct.pack("<i", 200_000) + b"\x7f" * 200_000 + b".",
    "no text": b"X\x04\x00\x00\x00\xff\xff\xff\xff.",
    "no line": b"cos",
    "distant memo": b"Nr\xff\xff\xff\xff.",
    "distant memo in digits": b"Np4294967295\n.",
    "negative memo": b"Np-1\n.",
    "opcode of no writer": b"N2.",
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_an_error(name):
    with pytest.raises(ConvertError):
        load(NONSENSE[name])


TWICE = b"q\x00h\x00"  # what is on the stack, once more
TUPLES = b")" + (TWICE + b"\x86") * 60  # 2^60 of them, in 61 objects
MEGABYTE = b"X" + struct.pack("<I", 10**6) + b"x" * 10**6
NEW_ARRAY, FLOAT32 = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01", b"cnumpy\ndtype\n" + text("f4") + b"\x85R"
LIST = b"]q\x00(" + b"N" * 3000 + b"e"
BOMBS = {
    "text of terabytes": b"\x8d" + struct.pack("<Q", 2**43) + b"abc.",
    "bytes of terabytes": b"\x8e" + struct.pack("<Q", 2**43) + b"abc.",
    "bytearray of terabytes": b"\x96" + struct.pack("<Q", 2**43) + b"abc.",
    "more bytes than there can be": b"\x8e" + struct.pack("<Q", 2**63 + 1) + b"abc.",
    "bytes of gigabytes": b"B" + struct.pack("<I", 2**32 - 1) + b"abc.",
    "integer of gigabytes": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
    "negative text": b"T" + struct.pack("<i", -5) + b"abc.",
    "lists in lists": b"]" * 3000 + b"a" * 2999 + b".",
    "tuples in tuples": b")" + b"\x85" * 3000 + b".",
    "a key of tuples in tuples": b"})" + b"\x85" * 300_000 + b"Ns.",
    "a set of tuples in tuples": b"\x8f()" + b"\x85" * 300_000 + b"\x90.",
    "a billion tuples": TUPLES + b".",
    "a billion tuples, duplicated": b")" + b"2\x86" * 40 + b".",
    "a billion lists": b"]" + (TWICE + b"\x86q\x00](h\x00h\x00e") * 40 + b".",
    "a billion hashes": b"}" + TUPLES + b"Ns.",
    "a billion hashes in a set": b"(" + TUPLES + b"\x91.",
    "a list in itself": b"]q\x00h\x00a.",
    "a dict in itself": b"}q\x00K\x01h\x00s.",
    "large argument, many times": MEGABYTE + b"q\x00c_codecs\nencode\nq\x010" + b"h\x01h\x00\x85R0" * 10_000 + b".",
    "large name, many times": MEGABYTE + b"q\x00" + b"h\x00h\x00\x930" * 10_000 + b".",
    "large list, many times": b"]q\x00("
    + b"N" * 3000
    + b"eccollections\nOrderedDict\nq\x010"
    + b"h\x01h\x00\x85R0" * 9999
    + b".",
    "large key, many times": b"}" + MEGABYTE + b"q\x00" + MEGABYTE + b"0" + b"h\x00Ns" * 10_000 + b".",
    "a billion sizes": NEW_ARRAY + TUPLES + FLOAT32 + b"\x89Ntb.",
    "a billion strides": b"ctorch._utils\n_rebuild_tensor\n(NN" + TUPLES + TWICE + b"tR.",
    "a billion encodings": b"c_codecs\nencode\n(" + text("a") + TUPLES + b"tR.",
    "a billion names": TUPLES + TWICE + b"\x93.",
    "a billion ids": TUPLES + b"Q.",
    "a billion calls": TUPLES + TWICE + b"R.",
    "a million classes": b"".join(b"cm\nC%d\n0" % i for i in range(2000)) + b"N.",
    "long keys": b"}(" + text("x" * 2000) + b"Nu.",
    "large keys": b"}(\x8a\x09" + b"\x7f" * 9 + b"Nu.",
    "array of terabytes": NEW_ARRAY + b"\x8a\x06\xff\xff\xff\xff\xff\x7f\x85" + FLOAT32 + b"\x89C\x00tb.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_an_error_and_takes_little_time_and_memory(name, monkeypatch):
    monkeypatch.setattr(pickles, "_MOST_NODES", 10_000)  # for checking types while testing takes time
    monkeypatch.setattr(pickles, "_MOST_WORK", 2**20)
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(ConvertError):
        load(BOMBS[name])
    assert time.process_time() - began < 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**27


@pytest.mark.parametrize("body", [b"\x95" + b"\xff" * 8, b"\x95" + struct.pack("<Q", 2**62)])
def test_large_frames_take_no_memory(body):
    tracemalloc.start()
    assert load(b"N" + body + b".") is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_frame_that_ends_within_an_opcode_hides_nothing(command):
    """The unpickler would drop what is left of such a frame, and go on with other opcodes than those that were seen."""
    opcode, canary = command
    pickle.loads(ATTACKS["extension"].replace(b"%", opcode))  # from here on the registry knows the function
    canary.unlink()
    hidden = b"\0\0\x82" + bytes([CODE]) + opcode + b"\x85R."
    data = b"\x80\x04\x95" + struct.pack("<Q", 3) + b"B" + struct.pack("<I", len(hidden)) + hidden + b"."
    pickle.load(io.BytesIO(data))
    assert canary.exists(), "this is an attack"
    canary.unlink()
    assert load(data) == hidden
    assert not canary.exists()


def test_steps_are_counted(monkeypatch):
    monkeypatch.setattr(pickles, "_MOST_STEPS", 1000)
    load(b"(" + b"\x8f" * 990 + b"l.")
    with pytest.raises(ConvertError, match="less than 1000 steps"):
        load(b"(" + b"\x8f" * 1000 + b"l.")


def random_tree(rng, sets, depth=0):
    """Containers and numbers as checkpoints hold them; sets are opcodes from protocol 4 on, before that stubs."""
    leaves = [None, True, False, 0, -1, 255, 2**31, -(2**40), 2**62, 0.5, -1e300, "", "déjà vu", "x\ny", b"", b"\xff\0"]
    kind = rng.randrange(8 if depth < 4 else 3)
    if kind < 3:
        return rng.choice(leaves)
    parts = [random_tree(rng, sets, depth + 1) for _ in range(rng.randrange(5))]
    if kind == 3:
        return {rng.choice([0, 3, -1, 2.5, "a", "b", ("c", 1), None]): part for part in parts}
    if kind == 4 and sets:
        return {rng.choice([0, 1, "a", b"b"]) for _ in parts}
    if kind == 5 and sets:
        return frozenset(rng.choice([0, 1, "a", b"b"]) for _ in parts)
    return tuple(parts) if kind == 6 else parts


@pytest.mark.parametrize("protocol", range(6))
def test_containers_are_as_the_standard_library_reads_them(protocol):
    rng = random.Random(protocol)
    for _ in range(40):
        tree = random_tree(rng, sets=protocol >= 4)
        for dumps in (pickle.dumps, python_dumps):
            assert load(dumps(tree, protocol) + b"more") == tree


def python_dumps(tree, protocol):
    """By the writer in Python, whose opcodes differ in places."""
    file = io.BytesIO()
    pickle._Pickler(file, protocol).dump(tree)
    return file.getvalue()


def test_pickles_follow_each_other():
    file = io.BytesIO(b"".join(pickle.dumps(part, 4) for part in ([1, 2], "b", {"c": 3})))
    assert [pickles.load(file, _storage) for _ in range(3)] == [[1, 2], "b", {"c": 3}]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "f2", "<i8", ">u2", "i1", "?"])
def test_arrays_of_numpy(protocol, dtype):
    rng = np.random.default_rng(0)
    for shape in ((), (3,), (2, 3), (0, 4)):
        array = np.asarray(rng.normal(size=shape) * 5, dtype)
        for values in (array, np.asfortranarray(array), array.T):
            found = load(pickle.dumps({"x": values}, protocol))["x"]
            assert type(found) is Tensor
            read = found.read()
            assert (found.shape, found.dtype) == (values.shape, values.dtype.newbyteorder("="))
            assert (read.shape, read.dtype) == (found.shape, found.dtype)
            assert read.flags.c_contiguous
            np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("protocol", range(6))
def test_what_is_no_array_of_numbers(protocol):
    scalars = [np.float32(0.5), np.int64(-3), np.bool_(True), np.dtype(">f4")]
    assert load(pickle.dumps(scalars, protocol)) == scalars
    for array in (np.array([{}, 1], object), np.zeros(2, [("a", "f4")]), np.zeros(2, "M8[s]"), np.array(["a"])):
        with contextlib.suppress(ConvertError):
            assert is_stub(load(pickle.dumps(array, protocol)))


def test_an_array_must_have_its_bytes():
    with pytest.raises(ConvertError, match="as many bytes"):
        load(ARRAY.replace(b"K\x06\x85", b"K\x07\x85"))


def test_the_writer_of_these_tests_writes_pickles():
    tree = {"a": [1, 300, -7, 2**60], "b": (0.25, None, True, "ü"), 3: {}}
    assert pickle.loads(Pickle().dumps(tree)) == load(Pickle().dumps(tree)) == tree


def test_random_opcodes_end_in_an_error_or_in_containers():
    """Programs of valid opcodes, which get further than random bytes."""
    rng = random.Random(0)
    ended = 0
    for _ in range(1500):
        with contextlib.suppress(ConvertError):
            load(program(rng))
            ended += 1
    assert ended > 100
