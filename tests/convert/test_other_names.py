"""Diffusers, LlamaGen, DALL-E mini: upstream by other names. Each must become what upstream's own names become."""

import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import published
import pytest
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict
from published import VQ

from vqgan_jax import convert
from vqgan_jax.convert import dalle_mini, diffusers, taming, trees, write
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


class Family(NamedTuple):
    """A format, theirs for a name of taming's in a model of so many levels, and how their array lies."""

    format: str
    name: Callable[..., str]
    array: Callable[[str, np.ndarray], np.ndarray] = lambda name, array: array


FAMILIES = {
    "diffusers": Family("diffusers", to_diffusers, linear),
    "diffusers before 2023": Family("diffusers", functools.partial(to_diffusers, age="old"), linear),
    "llamagen": Family("llamagen", to_llamagen),
    "dalle_mini": Family("dalle_mini", lambda name, _: to_dalle_mini(name), lambda _, array: as_flax(array)),
}


def theirs(family, arrays, levels):
    named = {family.name(name, levels): array for name, array in arrays.items()}
    return {name: family.array(name, array) for name, array in named.items()}


def same(ours, wanted):
    assert ours.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_model_becomes_what_taming_becomes_and_goes_back(family):
    arrays = published.random(TINY)
    given = theirs(family, arrays, 4)
    used = {"quantize.codebook_used": np.zeros(65536, np.int64)} if family.format == "llamagen" else {}
    converted = trees.read(convert.plan(published.checkpoint(given | used), family.format))
    assert converted.report.dropped == tuple(used)
    assert converted.config.quantizer.unit_length == (family.format == "llamagen")
    wanted = published.load(taming, published.checkpoint(arrays))
    same(flatten_dict(converted.params, sep="/"), flatten_dict(wanted.params, sep="/"))
    if family.format in write.NEEDS:
        same(write.tensors(converted, family.format), theirs(FAMILIES[family.format], arrays, 4))
    extra = published.checkpoint(given | {"extra": np.zeros(1, np.float32)})
    with pytest.raises(ConvertError, match=r"unexpected \(1\): extra"):
        convert.plan(extra, family.format)
    assert jax.tree.leaves(convert.plan(extra, family.format, allow=["extra"]).params)


def test_a_folder_of_dalle_minis_is_read(tmp_path):
    arrays = theirs(FAMILIES["dalle_mini"], published.random(TINY), 4)
    assert "encoder/down_3/attn_0/proj_out/kernel" in arrays
    assert "decoder/mid/block_1/norm1/scale" in arrays
    (tmp_path / "config.json").write_text('{"n_embed": 16}')
    tree = unflatten_dict({name: np.ascontiguousarray(array) for name, array in arrays.items()}, sep="/")
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    converted, wanted = (
        published.load(dalle_mini, opened) for opened in (open_checkpoint(tmp_path), published.checkpoint(arrays))
    )
    jax.tree.map(np.testing.assert_array_equal, converted.params, wanted.params)


def hollow(named):
    return published.checkpoint({name: np.broadcast_to(np.float32(0), shape) for name, shape in named.items()})


@pytest.mark.parametrize(
    ("family", "model", "tensors", "parameters", "attention"),
    [
        ("llamagen", VQ((1, 1, 2, 2, 4), codes=16384, embed=8), 343, 71_883_403, (16,)),
        ("llamagen", VQ((1, 2, 2, 4), codes=16384, embed=8), 299, 70_109_835, (32,)),
        ("dalle_mini", VQ(codes=16384), 343, 76_073_859, (16,)),
        ("diffusers", VQ(), 343, 72_141_699, (16,)),
        ("diffusers before 2023", VQ(), 343, 72_141_699, (16,)),
    ],
)
def test_the_published_models(family, model, tensors, parameters, attention):
    flat = {name: np.broadcast_to(np.int8(0), shape) for name, shape in model.names()}
    flat = theirs(FAMILIES[family], flat, len(model.multipliers))
    planned = convert.plan(hollow({name: array.shape for name, array in flat.items()}), FAMILIES[family].format)
    leaves = jax.tree.leaves(planned.params)
    assert (len(planned.report.used), sum(math.prod(leaf.shape) for leaf in leaves)) == (tensors, parameters)
    assert planned.config.model.attn_resolutions == attention
    q = planned.config.quantizer
    assert (q.codebook_size, q.embed_dim) == (model.codes, model.embed)
    # LlamaGen's beta is on the commitment.
    assert (q.codebook_weight, q.commitment_weight) == ((1.0, 0.25) if family == "llamagen" else (0.25, 1.0))


def test_diffusers_may_have_attention_in_the_middle_only():
    flat = {name: np.broadcast_to(np.int8(0), shape) for name, shape in VQ().names()}
    middle = {n: a for n, a in flat.items() if not re.match(r"(en|de)coder\.(down|up)\.\d\.attn", n)}
    given = theirs(FAMILIES["diffusers"], middle, 5)
    planned = diffusers.plan(hollow({name: array.shape for name, array in given.items()}))
    assert (len(planned.report.used), planned.config.model.attn_resolutions) == (293, ())


def test_diffusers_settings_count():
    arrays = theirs(FAMILIES["diffusers"], published.random(TINY), 4)
    load = lambda **settings: diffusers.plan(published.checkpoint(arrays, config=settings))
    assert load(norm_num_groups=16).config.model.norm_groups == 16
    assert load(_class_name="VQModel").config.model.norm_groups == 32
    for settings in ({"norm_type": "spatial"}, {"_class_name": "AutoencoderKL"}):
        with pytest.raises(ConvertError, match=f"got {next(iter(settings.values()))!r}"):
            load(**settings)
