"""Every published list of names and shapes finds its place, and makes the config and the trees of a run."""

import functools
import math

import jax
import published
import pytest
from published import MODELS, VQ, Net2Net

from vqgan_jax import config as configs
from vqgan_jax.convert import taming
from vqgan_jax.convert.tensors import ConvertError
from vqgan_jax.nn import fields
from vqgan_jax.nn.quantizer import GumbelQuantizer, VectorQuantizer

# Tensors, their elements, and md5 of the lines "name, tab, shape" of the lists that upstream's own modules gave.
LISTS = {
    "vqgan_imagenet_f16_1024": (398, 89_625_293, "c62de14ec33b"),
    "vqgan_imagenet_f16_16384": (392, 91_454_156, "f7ddd6030998"),
    "vqgan_actnorm_variant": (395, 89_624_397, "bfeee513ae51"),
    "vqgan_gumbel_f8_8192": (301, 68_995_971, "5106d04ac2ce"),
    "vq_f8_openimages_16384_ldm": (299, 67_717_295, "71f27ea82369"),
    "vq_f8_openimages_256_ldm": (299, 67_652_783, "b888c8106d1d"),
    "vqseg_coco_183": (344, 72_557_148, "322538c70fa6"),
    "vqgan_8192": (343, 73_976_707, "44a8056a87d9"),
    "cin_transformer_1p4B": (1164, 1_489_860_483, "6a7d7e437f6c"),
    "drin_transformer": (1099, 455_503_108, "b96919299194"),
    "faceshq_transformer": (756, 383_366_019, "4bd1efa765a7"),
    "sflckr_transformer": (1100, 455_920_859, "03b623e8870b"),
    "uncond_24x1664": (756, 875_512_963, "9bc285f3cdba"),
    "coco_scene": (1028, 1_054_697_219, "11ae99278e85"),
    "oi_scene": (960, 1_123_974_595, "c789bd484953"),
    "is_first_stage_permuter": (727, 145_072_134, "8d32570f774b"),
}
PRIORS = [name for name, model in MODELS.items() if isinstance(model, Net2Net)]


@functools.cache
def planned(name):
    """The plan of a published model; its heads are known except for the toy's."""
    return taming.plan(published.hollow(MODELS[name]), num_heads=4 if "permuter" in name else None)


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_of_a_published_list_has_its_place(name):
    """The list is upstream's to the letter, and what it makes is the config of a run."""
    listed, report, config = dict(MODELS[name].names()), planned(name).report, planned(name).config
    assert (len(listed), sum(map(math.prod, listed.values())), published.checksum(MODELS[name])) == LISTS[name]
    assert (report.missing, report.unexpected, report.misshaped) == ((), (), ())
    assert sorted(report.used + report.dropped) == sorted(listed)
    dropped = ("colorize", "mask", "num_batches_tracked", "initialized")
    unneeded = ("loss.perceptual_loss.", *(["cond_stage_model."] if name == "is_first_stage_permuter" else []))
    assert all(n.endswith(dropped) or n.startswith(unneeded) for n in report.dropped)
    assert configs.read(fields.write(config)) == config


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vqgan_imagenet_f16_1024", 72_141_699),
        ("vqgan_imagenet_f16_16384", 76_073_859),
        ("vqgan_gumbel_f8_8192", 68_995_971),
        ("vq_f8_openimages_16384_ldm", 67_717_295),
        ("vqseg_coco_183", 72_556_599),
        ("cin_transformer_1p4B", 1_410_640_896),
        ("drin_transformer", 304_932_864),
        ("uncond_24x1664", 801_798_400),
        ("coco_scene", 975_876_352),
        ("oi_scene", 1_045_638_144),
    ],
)
def test_published_sizes(name, parameters):
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(planned(name).params)) == parameters


@pytest.mark.parametrize(
    ("name", "multipliers", "attention", "latent", "codebook", "field"),
    [
        ("vqgan_imagenet_f16_1024", (1, 1, 2, 2, 4), (16,), 256, (VectorQuantizer, 1024, 256), "image"),
        ("vqgan_gumbel_f8_8192", (1, 1, 2, 4), (32,), 256, (GumbelQuantizer, 8192, 256), "image"),
        ("vq_f8_openimages_256_ldm", (1, 2, 2, 4), (32,), 4, (VectorQuantizer, 256, 4), "image"),
        ("vqseg_coco_183", (1, 1, 2, 2, 4), (16,), 256, (VectorQuantizer, 1024, 256), "segmentation"),
    ],
)
def test_a_tokenizer_is_inferred(name, multipliers, attention, latent, codebook, field):
    config = planned(name).config
    m, q = config.model, config.quantizer
    assert (m.channels, m.channel_multipliers, m.num_res_blocks, m.latent_channels) == (128, multipliers, 2, latent)
    assert (m.attn_resolutions, m.resolution) == (attention, 256)
    assert (type(q), q.codebook_size, q.embed_dim) == codebook
    assert config.data.field == field


@pytest.mark.parametrize(
    ("name", "layers", "norm"),
    [
        ("vqgan_imagenet_f16_1024", 3, "batch"),
        ("vqgan_imagenet_f16_16384", 2, "batch"),
        ("vqgan_actnorm_variant", 3, "act"),
    ],
)
def test_a_discriminator_is_inferred(name, layers, norm):
    d = planned(name).config.discriminator
    assert (d.channels, d.num_layers, d.norm) == (64, layers, norm)


@pytest.mark.parametrize(
    ("name", "kind", "classes", "length", "codes"),
    [
        ("cin_transformer_1p4B", "class", 1000, 1, 16384),
        ("uncond_24x1664", "none", None, 1, 1024),
        ("faceshq_transformer", "coordinates", None, 256, 1024),
        ("drin_transformer", "depth", None, 256, 1024),
        ("sflckr_transformer", "segmentation", 182, 256, 1024),
        ("coco_scene", "boxes", 171, 92, 8192),
        ("oi_scene", "boxes", 340, 92, 8192),
        ("is_first_stage_permuter", "low_resolution", None, 256, 1024),
    ],
)
def test_a_condition_is_inferred(name, kind, classes, length, codes):
    converted = planned(name)
    config = converted.config
    condition = config.prefix()
    assert (config.condition.kind, condition.length) == (kind, length)
    assert getattr(condition, "num_classes", None) == classes
    assert config.grid == (16, 16)
    assert config.condition.shared_vocab
    assert config.tokenizer.codebook_size == codes
    assert config.transformer.num_heads == (4 if "permuter" in name else 16)
    assert (config.condition.own_tokenizer is not None) == (converted.condition is not None)
    assert (converted.condition is not None) == (name in ("drin_transformer", "sflckr_transformer"))


def test_only_the_scenes_of_coco_have_upstreams_quirks():
    assert {name for name in PRIORS if getattr(planned(name).config.condition, "paper", False)} == {"coco_scene"}


@pytest.mark.parametrize(
    ("block", "second", "options", "codes", "kind"),
    [
        (64, None, {}, 64, "class"),
        (1024, None, {}, 1024, "class"),
        (512, None, {}, 256, "coordinates"),
        (511, None, {}, 256, "coordinates"),
        (128, None, {}, 64, "coordinates"),
        (347, None, {"condition": {"kind": "boxes", "num_classes": 5}}, 256, "boxes"),
        (128, VQ((1, 2), 16, channels=1, **published.SMALL), {}, 64, "depth"),
        (127, VQ((1, 2), 16, channels=5, **published.SMALL), {}, 64, "segmentation"),
        (320, VQ((1, 2), 16, channels=1, **published.SMALL), {}, 256, "depth"),
        (100, None, {"num_codes": 36, "condition": "class"}, 36, "class"),
        (100, None, {"num_codes": 81, "condition": "none"}, 81, "none"),
    ],
)
def test_codes_of_an_image_are_inferred(block, second, options, codes, kind):
    model = Net2Net(1, 16, 1024, block, VQ((1, 2), 1024, **published.SMALL), second)
    config = taming.plan(published.hollow(model), num_heads=4, **options).config
    assert config.grid == (math.isqrt(codes),) * 2
    assert config.condition.kind == kind
    assert config.prefix().length + codes - 1 in (block, block - 1) or "num_codes" in options


@pytest.mark.parametrize("block", [300, 700])
def test_an_unknown_number_of_codes_is_asked_for(block):
    model = Net2Net(1, 16, 1024, block, VQ((1, 2), 1024, **published.SMALL))
    with pytest.raises(ConvertError, match="or give num_codes"):
        taming.plan(published.hollow(model), num_heads=4)
    with pytest.raises(ConvertError, match=r"need 256\. Name another condition, or give num_codes"):
        taming.plan(published.hollow(model), num_heads=4, condition="none")
