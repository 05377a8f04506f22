"""Taming's checkpoints: what is stored twice, what does not fit, the optimisers' state, and how much is in memory."""

import math
import re
import tracemalloc

import jax
import numpy as np
import published
import pytest
from flax.traverse_util import flatten_dict
from published import MODELS, TINY, VQ, Net2Net
from torch_files import write_legacy

from vqgan_jax import ordering
from vqgan_jax.convert import taming, trees
from vqgan_jax.convert.read import open_checkpoint
from vqgan_jax.convert.tensors import Checkpoint, ConvertError, Tensor

FIRST = "first_stage_model."


def shapes(tree):
    return {path: tuple(leaf.shape) for path, leaf in flatten_dict(tree, sep="/").items()}


# What is not stored, or twice


def tiny(name="plain"):
    return published.random(TINY[name])


def load(arrays, **options):
    return published.load(taming, published.checkpoint(arrays), **{"num_heads": 4} | options)


def test_heads_are_asked_for_where_the_size_is_not_known():
    with pytest.raises(ConvertError, match=r"this one is 24\. Give num_heads"):
        load(tiny(), num_heads=None)


def test_heads_and_condition_can_be_named():
    config = load(tiny(), num_heads=2, condition={"kind": "class", "num_classes": 7}).config
    assert (config.transformer.num_heads, config.condition.kind, config.condition.num_classes) == (2, "class", 7)
    assert load(tiny(), condition="none").config.condition.kind == "none"


def test_a_condition_that_is_too_long_is_told():
    with pytest.raises(ConvertError, match="'coordinates' and 64 codes need 127"):
        load(tiny(), condition="coordinates")


def test_the_order_of_the_codes_is_found_by_its_buffer():
    assert load(tiny("map")).config.transformer.order == "spiral_in"
    alternate = tiny("map") | {"permuter.forward_shuffle_idx": ordering.alternate(8, 8)}
    assert load(alternate).config.transformer.order == "alternate"
    with pytest.raises(ConvertError, match="it begins \\[63, 62"):
        load(tiny("map") | {"permuter.forward_shuffle_idx": np.arange(64)[::-1]})


def test_a_bidirectional_prefix_is_seen_in_the_mask():
    arrays = tiny("map")
    arrays["transformer.blocks.0.attn.mask"][0, 0, :64, :64] = 1
    assert load(arrays).config.transformer.bidirectional_prefix == 64
    assert load(tiny("map")).config.transformer.bidirectional_prefix == 0


def test_a_tokenizer_that_is_stored_twice_is_loaded_once():
    model = Net2Net(1, 16, 32, 128, TINY["plain"].first, TINY["plain"].first, permuted=64)
    arrays = published.random(model)
    own = load(arrays)
    assert own.condition is not None
    assert own.config.condition.tokenizer.workdir
    twice = arrays | {n.replace(FIRST, "cond_stage_model."): a for n, a in arrays.items() if n.startswith(FIRST)}
    shared = load(twice)
    assert shared.condition is None
    assert not shared.config.condition.tokenizer.workdir
    assert sum(name.startswith("cond_stage_model.") for name in shared.report.dropped) == sum(
        name.startswith(FIRST) for name in shared.report.used
    )


def test_of_latent_diffusion_the_vq_model_is_taken():
    arrays = tiny("f2")
    inside = {FIRST + name: array for name, array in arrays.items()} | {
        "model.diffusion_model.out.weight": arrays["quant_conv.weight"]
    }
    converted, plain = load(inside), load(arrays)
    assert converted.report.dropped == ("model.diffusion_model.out.weight",)
    jax.tree.map(np.testing.assert_array_equal, converted.params, plain.params)


def test_a_moving_codebook_keeps_its_averages():
    arrays = tiny("ema")
    converted = load(arrays)
    assert converted.config.quantizer.ema
    assert converted.config.quantizer.codebook_weight == 0
    np.testing.assert_array_equal(converted.networks["codebook"]["hits"], arrays["quantize.embedding.cluster_size"])
    np.testing.assert_array_equal(converted.networks["codebook"]["sums"], arrays["quantize.embedding.embed_avg"])


# What does not fit


def test_what_is_missing_unexpected_or_misshaped_is_listed():
    arrays = tiny("f2")
    del arrays["decoder.mid.block_1.conv1.bias"]
    arrays["encoder.extra"] = np.zeros(3, np.float32)
    arrays["encoder.norm_out.bias"] = np.zeros(3, np.float32)
    with pytest.raises(ConvertError) as error:
        load(arrays)
    for line in (
        "missing (1): decoder.mid.block_1.conv1.bias",
        "unexpected (1): encoder.extra",
        "misshaped (1): encoder.norm_out.bias",
    ):
        assert line in str(error.value)
    allowed = load(arrays, allow=["*.conv1.bias", "encoder.*"])
    assert allowed.report.missing == ("decoder.mid.block_1.conv1.bias",)
    assert allowed.report.unexpected == ("encoder.extra",)
    assert allowed.report.misshaped == ("encoder.norm_out.bias",)
    assert not allowed.params["decoder"]["middle_block_0"]["conv_1"]["bias"].any()
    assert allowed.params["decoder"]["middle_block_0"]["conv_1"]["kernel"].any()


def test_what_belongs_to_nothing_in_a_prior_is_listed():
    arrays = tiny() | {"cond_stage_model.embedding.weight": np.zeros((3, 4), np.float32)}
    with pytest.raises(ConvertError, match=r"unexpected \(1\): cond_stage_model.embedding.weight"):
        load(arrays)


def test_integers_are_no_weights():
    arrays = tiny("f2")
    arrays["encoder.norm_out.bias"] = arrays["encoder.norm_out.bias"].astype(np.int8)
    with pytest.raises(ConvertError, match="misshaped"):
        load(arrays)


def test_an_autoencoder_without_codes_is_told():
    arrays = {name: array for name, array in tiny("f2").items() if not name.startswith("quantize.")}
    arrays |= {
        name: np.repeat(arrays[name], 2, axis=0) for name in ("encoder.conv_out.weight", "encoder.conv_out.bias")
    }
    with pytest.raises(ConvertError, match="a KL autoencoder"):
        load(arrays)


def test_another_kind_of_file_is_told():
    with pytest.raises(ConvertError, match=r"must have a tensor `encoder.conv_in.weight`"):
        load({"layers.0.attention.wqkv.weight": np.zeros((3, 1), np.float32)})


@pytest.mark.parametrize(
    ("model", "name", "shape"),
    [
        ("f2", "encoder.conv_in.weight", ()),
        ("f2", "encoder.conv_in.weight", (0, 3, 3, 3)),
        ("f2", "encoder.conv_in.weight", (31, 3, 3, 3)),
        ("f2", "encoder.conv_in.weight", (1, 3, 3, 3)),
        ("f2", "decoder.conv_out.weight", (10**9, 1, 1, 1)),
        ("f2", "decoder.conv_in.weight", (1, 10**9, 3, 3)),
        ("f2", "encoder.down.1.block.0.conv1.weight", (3, 3)),
        ("f2", "encoder.down.0.block.999999999999.conv1.weight", (1,)),
        ("f2", "encoder.down.999999999999.block.0.conv1.weight", (1,)),
        ("f2", "encoder.down." + "9" * 5000 + ".attn", (1,)),
        ("f2", "quantize.embedding.weight", (10**12, 1)),
        ("f2", "quantize.embed.weight", (3, 8)),
        ("f2", "quantize.embedding.cluster_size", (3,)),
        ("f2", "loss.discriminator.main.0.weight", (4, 3, 4, 4)),
        ("f2", "loss.discriminator.main.999.weight", (4, 3, 4, 4)),
        ("f2", "loss.perceptual_loss.lin9.model.1.weight", (1,)),
        ("plain", "transformer.pos_emb", (1, 10**9, 24)),
        ("plain", "transformer.pos_emb", (64, 24)),
        ("plain", "transformer.pos_emb", (1, 3, 24)),
        ("plain", "transformer.head.weight", (10**9, 24)),
        ("plain", "transformer.head.weight", (32, 23)),
        ("plain", "transformer.blocks.999999999.ln1.weight", (24,)),
        ("plain", "permuter.forward_shuffle_idx", (0,)),
        ("plain", "permuter.forward_shuffle_idx", (7,)),
        ("plain", "cond_stage_model.encoder.conv_in.weight", (1,)),
    ],
)
def test_shapes_without_sense_are_told_at_once(model, name, shape):
    """Nothing of such a size is built or allocated on the way."""
    arrays = tiny(model) | {name: np.broadcast_to(np.float32(0), shape)}
    with pytest.raises(ConvertError):
        load(arrays)


def test_half_precision_becomes_float32():
    arrays = {name: array.astype(jax.numpy.bfloat16) for name, array in tiny("f2").items()}
    params = load(arrays).params
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    codes = arrays["quantize.embedding.weight"].astype(np.float32)
    np.testing.assert_array_equal(params["quantizer"]["codebook"], codes)


# The optimisers' state


def adam(arrays, groups, seed):
    """As torch saves it: numbers run on from group to group."""
    rng, numbers = np.random.default_rng(seed), iter(range(10**6))
    draw = lambda name: published.as_tensor(rng.standard_normal(arrays[name].shape).astype(np.float32))
    numbered = [[(next(numbers), name) for name in group] for group in groups]
    state = {i: {"step": 17, "exp_avg": draw(n), "exp_avg_sq": draw(n)} for group in numbered for i, n in group}
    saved = {"state": state, "param_groups": [{"lr": 1e-5, "params": [i for i, _ in group]} for group in numbered]}
    return saved, {name: state[i] for group in numbered for i, name in group}


def test_moments_of_a_prior_are_sorted_as_strings():
    arrays = tiny("map")
    mine = sorted(n for n in arrays if n.startswith("transformer.") and not n.endswith("mask"))
    kernel = re.compile(r".*\.(key|query|value|proj|mlp\.0|mlp\.2|head)\.weight")
    decayed = [name for name in mine if kernel.fullmatch(name)]
    saved, averages = adam(arrays, [decayed, [name for name in mine if name not in decayed]], 1)
    assert decayed.index("transformer.blocks.10.mlp.0.weight") < decayed.index("transformer.blocks.2.mlp.0.weight")
    converted = published.load(taming, published.checkpoint(arrays, optimizer_states=[saved]), num_heads=4)
    as_weights = {name: average["exp_avg"].read() for name, average in averages.items()}
    expected = published.load(taming, published.checkpoint(arrays | as_weights), num_heads=4).params
    jax.tree.map(np.testing.assert_array_equal, converted.moments["transformer"]["mu"], expected)


def test_a_training_checkpoint_from_bytes_to_trees(tmp_path):
    arrays = published.random(TINY["f8_batchnorm"])
    file, (generator, discriminator) = published.lightning(arrays, np.random.default_rng(1))
    converted = published.load(taming, open_checkpoint(write_legacy(tmp_path / "last.ckpt", file)))
    wanted = published.load(taming, published.checkpoint(arrays))
    assert converted.report == wanted.report
    assert converted.step == 40
    jax.tree.map(np.testing.assert_array_equal, converted.networks, wanted.networks)
    as_weights = published.load(taming, published.checkpoint(arrays | generator | discriminator))
    for network, moments in converted.moments.items():
        expected = as_weights.networks[network]
        assert moments["count"] == 5
        jax.tree.map(np.testing.assert_array_equal, moments["mu"], expected)
        jax.tree.map(np.testing.assert_array_equal, moments["nu"], jax.tree.map(np.square, expected))


def test_a_state_that_does_not_fit_is_left_out():
    arrays = tiny("f2")
    saved, _ = adam(arrays, [["encoder.conv_in.weight"]], 1)
    for states in ([saved], [{"state": {}}], "none", [3]):
        assert published.load(taming, published.checkpoint(arrays, optimizer_states=states)).moments == {}


# When and how much is read


def test_a_plan_reads_nothing():
    def fail():
        raise AssertionError("read")

    hollow = published.hollow(MODELS["vqgan_imagenet_f16_1024"])
    tensors = {name: Tensor(tensor.shape, tensor.dtype, fail) for name, tensor in hollow.tensors.items()}
    taming.plan(Checkpoint(tensors, {}))


def test_one_tensor_is_in_memory_at_a_time():
    """At most 1.3 times the weights: they, and the largest tensor."""
    model = VQ((1, 2), 16, width=64, blocks=4, latent=24, embed=8)
    fresh = lambda shape: Tensor(shape, np.dtype(np.float32), lambda: np.ones(shape, np.float32))
    tensors = {name: fresh(shape) for name, shape in model.names()}
    plan = taming.plan(Checkpoint(tensors, {}))
    weights = 4 * sum(map(math.prod, shapes(plan.params).values()))
    tracemalloc.start()
    try:
        loaded = trees.read(plan)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params)) == weights > 10e6
    assert peak <= 1.3 * weights
