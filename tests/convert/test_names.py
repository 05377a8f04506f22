"""The table of names: there and back to the bit, and as the parity arrays have it."""

import math

import numpy as np
import published
import pytest
from flax.traverse_util import flatten_dict
from published import TINY
from reference import GPT, golden, gpt_params, translate, under

from vqgan_jax.config import Stage1
from vqgan_jax.convert import names, taming, trees
from vqgan_jax.convert.names import CONV, Row
from vqgan_jax.nn.quantizer import GumbelQuantizer


def everything(converted):
    """Our arrays by path, as the table knows them."""
    return flatten_dict(converted.networks, sep="/")


def written(converted, prefix=""):
    """Their tensors, out of our arrays."""
    config = converted.config
    table = names.vq_model(config) if config.stage == 1 else names.GPT
    arrays = everything(converted)
    entries = names.entries(table, {path: array.shape for path, array in arrays.items()})
    return {prefix + name: names.take(entry, arrays[entry.path]) for name, entry in entries.items()}


@pytest.mark.parametrize("name", TINY)
def test_there_and_back_is_exact(name):
    arrays = published.random(TINY[name])
    converted = published.load(taming, published.checkpoint(arrays), num_heads=4)
    again = written(converted)
    if converted.tokenizer:
        again |= written(converted.tokenizer, "first_stage_model.")
    if converted.condition:
        again |= written(converted.condition, "cond_stage_model.")
    forgotten = set(converted.report.dropped) | {n for n in arrays if n.startswith("permuter.")}
    assert again.keys() == arrays.keys() - forgotten
    for tensor, array in again.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, arrays[tensor], err_msg=tensor)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (names.SAME, (5,)),
        (CONV, (3, 3, 4, 5)),
        (names.LINEAR_OF_CONV, (1, 1, 4, 5)),
        (names.OUT, (4, 3, 5)),
        (names.IN, (3, 5, 4)),
        (names.FLAT, (3, 5)),
        (names.CHANNELS, (5,)),
        (names.BATCH_OF_ONE, (4, 5)),
    ],
)
def test_layouts_undo_each_other(layout, shape):
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(layout.ours(layout.theirs(array), shape), array)


def test_kernels_turn_as_the_convolution_does():
    """Theirs are (out, in, row, column), ours (row, column, in, out)."""
    theirs = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert CONV.ours(theirs, (4, 5, 3, 2))[3, 1, 2, 0] == theirs[0, 2, 3, 1]


def test_heads_are_neighbouring_rows_of_their_projections():
    """Row h * p + i of a query's weight is channel i of head h; of the output's projection it is a column."""
    query = np.arange(6 * 4).reshape(6, 4)
    assert names.OUT.ours(query, (4, 3, 2))[1, 2, 0] == query[2 * 2 + 0, 1]
    assert names.IN.ours(query.T, (3, 2, 4))[2, 0, 1] == query.T[1, 2 * 2 + 0]


def test_a_stack_is_one_tensor_for_each_layer():
    shapes = {"transformer/layers/qkv/kernel": (2, 4, 3, 2, 2)}
    entries = names.entries(names.GPT, shapes)
    assert len(entries) == 6
    entry = entries["transformer.blocks.1.attn.key.weight"]
    assert entry.shape == (4, 4)
    array, tensor = np.zeros(shapes[entry.path]), np.arange(16.0).reshape(4, 4)
    names.put(entry, array, tensor)
    assert np.count_nonzero(array) == np.count_nonzero(array[1, :, 1]) == 15
    np.testing.assert_array_equal(array[1, 2, 1].reshape(-1), tensor[:, 2])


def test_what_has_no_name_is_told():
    with pytest.raises(ValueError, match="`generator/extra` has none"):
        names.entries(names.GPT, {"generator/extra": (1,)})


def test_two_arrays_have_no_common_name():
    table = (Row("[ab]", "same"),)
    with pytest.raises(ValueError, match="`same` is a and b"):
        names.entries(table, {"a": (1,), "b": (1,)})


def same(ours, recorded):
    assert ours.keys() == recorded.keys()
    for path, array in recorded.items():
        np.testing.assert_array_equal(ours[path], np.asarray(array, np.float32), err_msg=path)


def test_autoencoder_as_in_the_parity_tests():
    weights = golden("weights")
    converted = published.load(taming, published.checkpoint(weights), allow=["loss.perceptual_loss.*"])
    same(everything(converted), translate(weights))


@pytest.mark.parametrize("norm", ["batchnorm", "actnorm"])
def test_discriminator_as_in_the_parity_tests(norm):
    arrays = under(f"{norm}/before/state", golden("discriminator"))
    recorded = translate(arrays)
    shapes = {path: array.shape for path, array in recorded.items()}
    layers = sum(path.endswith("/kernel") for path in shapes) - 2
    entries = names.entries(names.discriminator(layers, norm.removesuffix("norm")), shapes)
    found = trees.assemble(shapes, entries, published.checkpoint(arrays).tensors)
    same({path: leaf.read() for path, leaf in flatten_dict(found, sep="/").items()}, recorded)


def test_transformer_as_in_the_parity_tests():
    arrays = under("state", golden("gpt", stage=2))
    recorded = flatten_dict({"transformer": gpt_params(arrays, GPT.num_heads)}, sep="/")
    shapes = {path: array.shape for path, array in recorded.items()}
    entries = names.entries(names.GPT, shapes)
    found = trees.assemble(shapes, entries, published.checkpoint(arrays).tensors)
    same({path: leaf.read() for path, leaf in flatten_dict(found, sep="/").items()}, recorded)


def test_gumbel_quantizer_as_in_the_parity_tests():
    arrays = under("state", golden("gumbel"))
    recorded = translate(arrays)
    table = names.vq_model(Stage1(quantizer=GumbelQuantizer()))
    entries = names.entries(table, {path: array.shape for path, array in recorded.items()})
    same({entry.path: entry.layout.ours(arrays[name], ()) for name, entry in entries.items()}, recorded)
