"""Diffusers, LlamaGen, DALL-E mini: upstream by other names. Each must become what upstream's own names become."""

import math
import re

import jax
import numpy as np
import published
import pytest
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict
from published import VQ

from vqgan_jax.convert import dalle_mini, diffusers, llamagen, names, taming
from vqgan_jax.convert.read import open_checkpoint
from vqgan_jax.convert.tensors import ConvertError

TINY = VQ((1, 1, 2, 1), 16, **published.SMALL)  # a level that is another one the other way round
PARTS = {
    "new": {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
    "old": {"norm": "group_norm", "q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"},
}


def to_diffusers(name, levels, age="new"):
    """Theirs for a name of taming's."""
    level = re.match(r"(encoder|decoder)\.(?:down|up)\.(\d+)\.", name)
    if level:
        net, number, rest = level[1], int(level[2]), name[level.end() :]
        block = f"down_blocks.{number}" if net == "encoder" else f"up_blocks.{levels - 1 - number}"
        rest = rest.replace("sample.conv.", "samplers.0.conv.").replace("block.", "resnets.")
        name = f"{net}.{block}.{rest}".replace("attn.", "attentions.")
    for there, here in (("block_1", "resnets.0"), ("attn_1", "attentions.0"), ("block_2", "resnets.1")):
        name = name.replace(f"mid.{there}", f"mid_block.{here}")
    attention = re.search(r"attentions\.\d\.(\w+)\.", name)
    if attention:
        name = name.replace(f".{attention[1]}.", f".{PARTS[age][attention[1]]}.")
    return name.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")


def to_llamagen(name, levels):
    level = re.match(r"(encoder|decoder)\.(?:down|up)\.(\d+)\.", name)
    if level:
        number = int(level[2]) if level[1] == "encoder" else levels - 1 - int(level[2])
        name = f"{level[1]}.conv_blocks.{number}.{name[level.end() :]}".replace(".block.", ".res.")
    for there, here in (("block_1", "0"), ("attn_1", "1"), ("block_2", "2")):
        name = name.replace(f"mid.{there}", f"mid.{here}")
    return name


def to_dalle_mini(name):
    stem, leaf = name.rsplit(".", 1)
    stem = re.sub(r"\b(down|up|block|attn)\.(\d+)", r"\1_\2", stem).replace(".", "/")
    if leaf == "weight":
        leaf = "embedding" if stem.endswith("embedding") else "scale" if "norm" in stem else "kernel"
    return f"{stem}/{leaf}"


def as_flax(array):
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array


def linear(name, array):
    """The projections of attention are linear maps there."""
    return array[:, :, 0, 0] if ".attentions." in name and array.ndim == 4 else array


def same_trees(ours, wanted):
    ours, wanted = (flatten_dict(tree, sep="/") for tree in (ours, wanted))
    assert ours.keys() == wanted.keys()
    for path, array in wanted.items():
        np.testing.assert_array_equal(ours[path], array, err_msg=path)


@pytest.mark.parametrize("age", ["new", "old"])
def test_diffusers_become_what_taming_becomes_and_go_back(age):
    arrays = published.random(TINY)
    theirs = {n: linear(n, a) for n, a in ((to_diffusers(n, 4, age), a) for n, a in arrays.items())}
    converted = published.load(diffusers, published.checkpoint(theirs))
    same_trees(converted.params, published.load(taming, published.checkpoint(arrays)).params)
    leaves = flatten_dict({"generator": converted.params}, sep="/")
    entries = diffusers.entries({path: array.shape for path, array in leaves.items()}, 4, old=age == "old")
    assert entries.keys() == theirs.keys()
    for name, entry in entries.items():
        np.testing.assert_array_equal(names.take(entry, leaves[entry.path]), theirs[name], err_msg=name)


def test_llamagen_becomes_what_taming_becomes_and_goes_back():
    arrays = published.random(TINY)
    theirs = {to_llamagen(name, 4): array for name, array in arrays.items()}
    used = {"quantize.codebook_used": np.zeros(65536, np.int64)}
    converted = published.load(llamagen, published.checkpoint(theirs | used))
    same_trees(converted.params, published.load(taming, published.checkpoint(arrays)).params)
    assert converted.report.dropped == ("quantize.codebook_used",)
    assert converted.config.quantizer.unit_length
    leaves = flatten_dict({"generator": converted.params}, sep="/")
    entries = llamagen.entries({path: array.shape for path, array in leaves.items()}, 4)
    assert entries.keys() == theirs.keys()
    for name, entry in entries.items():
        np.testing.assert_array_equal(names.take(entry, leaves[entry.path]), theirs[name], err_msg=name)


def test_dalle_minis_become_what_taming_becomes_and_go_back(tmp_path):
    """From a folder, as they come."""
    arrays = published.random(TINY)
    theirs = {to_dalle_mini(name): np.ascontiguousarray(as_flax(array)) for name, array in arrays.items()}
    assert "encoder/down_3/attn_0/proj_out/kernel" in theirs
    assert "decoder/mid/block_1/norm1/scale" in theirs
    (tmp_path / "config.json").write_text('{"n_embed": 16}')
    tree = serialization.msgpack_serialize(unflatten_dict(theirs, sep="/"))
    (tmp_path / "flax_model.msgpack").write_bytes(tree)
    converted = published.load(dalle_mini, open_checkpoint(tmp_path))
    same_trees(converted.params, published.load(taming, published.checkpoint(arrays)).params)
    leaves = flatten_dict({"generator": converted.params}, sep="/")
    entries = dalle_mini.entries({path: array.shape for path, array in leaves.items()})
    assert entries.keys() == theirs.keys()
    for name, entry in entries.items():
        np.testing.assert_array_equal(names.take(entry, leaves[entry.path]), theirs[name], err_msg=name)


def hollow(named):
    return published.checkpoint({name: np.broadcast_to(np.float32(0), shape) for name, shape in named.items()})


def counted(planned):
    leaves = flatten_dict(planned.params, sep="/").values()
    return len(planned.report.used), sum(math.prod(leaf.shape) for leaf in leaves)


@pytest.mark.parametrize(
    ("multipliers", "tensors", "parameters"),
    [((1, 1, 2, 2, 4), 343, 71_883_403), ((1, 2, 2, 4), 299, 70_109_835)],
    ids=["ds16", "ds8"],
)
def test_llamagens_published_tokenizers(multipliers, tensors, parameters):
    model = VQ(multipliers, codes=16384, embed=8)
    named = {to_llamagen(name, len(multipliers)): shape for name, shape in model.names()}
    planned = llamagen.plan(hollow(named))
    assert counted(planned) == (tensors, parameters)
    config = planned.config
    assert (config.quantizer.codebook_size, config.quantizer.embed_dim) == (16384, 8)
    assert (config.quantizer.codebook_weight, config.quantizer.commitment_weight) == (1.0, 0.25)


def test_dalle_minis_f16():
    shapes = {name: as_flax(np.broadcast_to(np.int8(0), shape)).shape for name, shape in VQ(codes=16384).names()}
    planned = dalle_mini.plan(hollow({to_dalle_mini(name): shape for name, shape in shapes.items()}))
    assert counted(planned) == (343, 76_073_859)
    assert planned.config.model.attn_resolutions == (16,)


def test_diffusers_f16_differs_in_28_shapes():
    model = VQ()
    named = {to_diffusers(name, 5): shape for name, shape in model.names()}
    flat = {name: linear(name, np.broadcast_to(np.int8(0), shape)).shape for name, shape in named.items()}
    assert sum(flat[name] != shape for name, shape in named.items()) == 28
    planned = diffusers.plan(hollow(flat))
    assert counted(planned) == (343, 72_141_699)
    assert planned.config.model.attn_resolutions == (16,)


def test_diffusers_may_have_attention_in_the_middle_only():
    named = {to_diffusers(n, 5): s for n, s in VQ().names() if not re.match(r"(en|de)coder\.(down|up)\.\d\.attn", n)}
    flat = {name: linear(name, np.broadcast_to(np.int8(0), shape)).shape for name, shape in named.items()}
    planned = diffusers.plan(hollow(flat))
    assert counted(planned)[0] == 293
    assert planned.config.model.attn_resolutions == ()


def test_diffusers_settings_count():
    theirs = {to_diffusers(name, 4): array for name, array in published.random(TINY).items()}
    theirs = {name: linear(name, array) for name, array in theirs.items()}
    load = lambda **settings: published.load(diffusers, published.checkpoint(theirs, config=settings))
    assert load(norm_num_groups=16).config.model.norm_groups == 16
    assert load(_class_name="VQModel").config.model.norm_groups == 32
    for settings in ({"norm_type": "spatial"}, {"_class_name": "AutoencoderKL"}):
        with pytest.raises(ConvertError, match=f"got {next(iter(settings.values()))!r}"):
            load(**settings)


def test_what_is_left_over_is_told():
    arrays = {to_llamagen(name, 4): array for name, array in published.random(TINY).items()}
    with pytest.raises(ConvertError, match=r"unexpected \(1\): extra"):
        published.load(llamagen, published.checkpoint(arrays | {"extra": np.zeros(1, np.float32)}))
    allowed = published.load(
        llamagen, published.checkpoint(arrays | {"extra": np.zeros(1, np.float32)}), allow=["extra"]
    )
    assert jax.tree.leaves(allowed.params)
