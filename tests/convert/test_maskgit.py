"""MaskGIT's tokenizers: every name of the published file, and its arithmetic stated in plain NumPy and float64."""

import math

import numpy as np
import published
import pytest
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict
from test_other_names import hollow

from vqgan_jax import api, models
from vqgan_jax import config as configs
from vqgan_jax.convert import maskgit
from vqgan_jax.convert.read import open_checkpoint
from vqgan_jax.convert.tensors import ConvertError
from vqgan_jax.nn import fields
from vqgan_jax.nn.maskgit import MaskGIT

BLOCKS = 2


def tensor_names(width, multipliers, codes, embed):
    """Names and shapes as Flax numbers the modules of the published code."""
    widths = [width * multiplier for multiplier in multipliers]

    def block(name, before, after):
        yield from norm(f"{name}/GroupNorm_0", before)
        yield f"{name}/Conv_0/kernel", (3, 3, before, after)
        yield from norm(f"{name}/GroupNorm_1", after)
        yield f"{name}/Conv_1/kernel", (3, 3, after, after)
        if before != after:
            yield f"{name}/Conv_2/kernel", (1, 1, after, after)

    def norm(name, channels):
        yield f"{name}/scale", (channels,)
        yield f"{name}/bias", (channels,)

    def conv(name, *shape):
        yield f"{name}/kernel", shape
        yield f"{name}/bias", shape[-1:]

    def blocks(name, before, run):
        for i, after in enumerate(each for each in run for _ in range(BLOCKS)):
            yield from block(f"{name}/ResBlock_{i}", before, after)
            before = after

    yield "params/encoder/Conv_0/kernel", (3, 3, 3, width)
    yield from blocks("params/encoder", width, [*widths, widths[-1]])
    yield from norm("params/encoder/GroupNorm_0", widths[-1])
    yield from conv("params/encoder/Conv_1", 1, 1, widths[-1], embed)
    yield from conv("params/decoder/Conv_0", 3, 3, embed, widths[-1])
    yield from blocks("params/decoder", widths[-1], [widths[-1], *reversed(widths)])
    for i, each in enumerate(reversed(widths[1:])):
        yield from conv(f"params/decoder/Conv_{i + 1}", 3, 3, each, each)
    yield from norm("params/decoder/GroupNorm_0", width)
    yield from conv(f"params/decoder/Conv_{len(widths)}", 3, 3, width, 3)
    yield "params/quantizer/codebook", (codes, embed)


LEVELS = (1, 2, 1)


def random(seed=0):
    """Weights under which activations neither vanish nor explode."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: rng.standard_normal(shape) / math.sqrt(math.prod(shape[:-1])) + (len(shape) == 1)
    return {name: draw(shape).astype(np.float32) for name, shape in tensor_names(32, LEVELS, 40, 8)}


ARRAYS = random()


class Network:
    """The published network of one image (H W c) in [0, 1]."""

    def __init__(self, arrays):
        self.arrays = {name.removeprefix("params/"): array.astype(np.float64) for name, array in arrays.items()}

    def conv(self, name, x):
        kernel = self.arrays[f"{name}/kernel"]
        reach = kernel.shape[0] // 2
        x = np.pad(x, ((reach, reach), (reach, reach), (0, 0)))
        patches = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(0, 1))
        return np.einsum("hwcij,ijco->hwo", patches, kernel, optimize=True) + self.arrays.get(f"{name}/bias", 0.0)

    def norm_swish(self, name, x):
        groups = x.reshape(-1, 32, x.shape[-1] // 32)
        mean, var = groups.mean((0, 2), keepdims=True), groups.var((0, 2), keepdims=True)
        normed = ((groups - mean) / np.sqrt(var + 1e-6)).reshape(x.shape)
        y = normed * self.arrays[f"{name}/scale"] + self.arrays[f"{name}/bias"]
        return y / (1 + np.exp(-y))

    def block(self, name, x):
        branch = self.conv(f"{name}/Conv_0", self.norm_swish(f"{name}/GroupNorm_0", x))
        branch = self.conv(f"{name}/Conv_1", self.norm_swish(f"{name}/GroupNorm_1", branch))
        if f"{name}/Conv_2/kernel" in self.arrays:
            return branch + self.conv(f"{name}/Conv_2", branch)
        return branch + x

    def blocks(self, net, first, x):
        for i in range(first, first + BLOCKS):
            x = self.block(f"{net}/ResBlock_{i}", x)
        return x

    def latents(self, image):
        x = self.conv("encoder/Conv_0", image)
        for i in range(len(LEVELS)):
            x = self.blocks("encoder", BLOCKS * i, x)
            if i < len(LEVELS) - 1:
                x = x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2, -1).mean((1, 3))
        x = self.blocks("encoder", BLOCKS * len(LEVELS), x)
        return self.conv("encoder/Conv_1", self.norm_swish("encoder/GroupNorm_0", x))

    def encode(self, image):
        distances = np.sum((self.latents(image)[:, :, None] - self.arrays["quantizer/codebook"]) ** 2, axis=-1)
        return distances.argmin(-1), np.diff(np.sort(distances)[..., :2]).min()

    def decode(self, indices):
        x = self.conv("decoder/Conv_0", self.arrays["quantizer/codebook"][indices])
        x = self.blocks("decoder", 0, x)
        for i in range(len(LEVELS)):
            x = self.blocks("decoder", BLOCKS * (i + 1), x)
            if i < len(LEVELS) - 1:
                x = self.conv(f"decoder/Conv_{i + 1}", x.repeat(2, 0).repeat(2, 1))
        return self.conv(f"decoder/Conv_{len(LEVELS)}", self.norm_swish("decoder/GroupNorm_0", x))


def test_it_computes_what_theirs_does():
    """Ours has images in [-1, 1], theirs in [0, 1]."""
    images = np.random.default_rng(1).random((2, 16, 24, 3)).astype(np.float32)
    latents = np.concatenate([Network(ARRAYS).latents(image) for image in images])
    arrays = ARRAYS | {"params/quantizer/codebook": published.codes_near(latents.reshape(-1, 8), 40)}
    network, converted = Network(arrays), published.load(maskgit, published.checkpoint(arrays))
    tokenizer = models.Tokenizer(converted.params, converted.config.make_vqgan())
    wanted, margins = zip(*map(network.encode, images), strict=True)
    assert min(margins) > 1e-4
    assert len(np.unique(wanted)) > 12
    np.testing.assert_array_equal(api.encode(tokenizer, 2 * images - 1), wanted)
    recon = np.stack([network.decode(indices) for indices in wanted])
    ours = (np.asarray(api.decode(tokenizer, np.stack(wanted))) + 1) / 2
    assert np.abs(ours - recon).max() < 1e-5 * np.abs(recon).max()


def test_the_published_tokenizer():
    named = dict(tensor_names(128, (1, 1, 2, 2, 4), 1024, 256))
    assert (len(named), sum(map(math.prod, named.values()))) == (168, 54_515_587)
    planned = maskgit.plan(hollow(named))
    assert sorted(planned.report.used) == sorted(named)
    leaves = flatten_dict(planned.params)
    assert sum(math.prod(leaf.shape) for leaf in leaves.values()) == 54_515_587
    m, q = planned.config.model, planned.config.quantizer
    assert (type(m), m.channel_multipliers, m.num_res_blocks) == (MaskGIT, (1, 1, 2, 2, 4), BLOCKS)
    assert (q.codebook_size, q.embed_dim) == (1024, 256)
    state = models.state_shapes(planned.config).params["generator"]
    assert {path: leaf.shape for path, leaf in flatten_dict(state).items()} == {
        path: leaf.shape for path, leaf in leaves.items()
    }


def test_a_file_of_flaxs_goes_in_bit_by_bit(tmp_path):
    path = tmp_path / "tokenizer"
    path.write_bytes(serialization.msgpack_serialize(unflatten_dict(ARRAYS, sep="/")))
    converted = published.load(maskgit, open_checkpoint(path))
    for path, leaf in flatten_dict({"generator": converted.params}, sep="/").items():
        name = maskgit.renamed(path, len(LEVELS), BLOCKS)
        np.testing.assert_array_equal(leaf, ARRAYS[name], err_msg=name)


def test_what_does_not_fit_is_told():
    with pytest.raises(ConvertError, match=r"unexpected \(1\): params/extra"):
        published.load(maskgit, published.checkpoint(ARRAYS | {"params/extra": np.zeros(1, np.float32)}))
    with pytest.raises(ConvertError, match="`params/encoder/Conv_0/kernel`; it has none"):
        published.load(maskgit, published.checkpoint({"params/extra": np.zeros(1, np.float32)}))


def test_its_config_can_be_written_and_read_and_must_be_consistent():
    config = maskgit.plan(published.checkpoint(ARRAYS)).config
    mapping = fields.write(config)
    assert configs.read(mapping) == config
    mapping["model"]["latent_channels"] = 16
    with pytest.raises(ValueError, match="dropout to 0, remat to none and latent_channels to 32"):
        configs.read(mapping)
