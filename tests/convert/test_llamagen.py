"""LlamaGen has no package: its arithmetic is stated here in plain NumPy and float64, by its own names."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from flax.traverse_util import flatten_dict
from published import VQ
from test_other_names import hollow, to_llamagen

from vqgan_jax import api, convert, models, prior
from vqgan_jax.convert import llamagen, names, trees
from vqgan_jax.convert.tensors import ConvertError

SIZES = {  # layers, width, heads, codes that must be named, millions of parameters as published
    "B": (12, 768, 12, 256, 111),
    "L": (24, 1024, 16, 576, 343),
    "XL": (36, 1280, 20, None, 775),
    "XXL": (48, 1536, 24, None, 1411),
    "3B": (24, 3200, 32, None, 3100),
}
DEPTH, WIDTH, HEADS, VOCAB, CLASSES, SIDE = 3, 24, 3, 40, 5, 3


def gpt_names(depth, width, vocab, classes):
    """Names and shapes of a published transformer."""
    hidden = math.ceil(8 * width // 3 / 256) * 256
    yield "cls_embedding.embedding_table.weight", (classes + 1, width)
    yield "tok_embeddings.weight", (vocab, width)
    for i in range(depth):
        yield f"layers.{i}.attention.wqkv.weight", (3 * width, width)
        yield f"layers.{i}.attention.wo.weight", (width, width)
        yield f"layers.{i}.feed_forward.w1.weight", (hidden, width)
        yield f"layers.{i}.feed_forward.w3.weight", (hidden, width)
        yield f"layers.{i}.feed_forward.w2.weight", (width, hidden)
        yield f"layers.{i}.attention_norm.weight", (width,)
        yield f"layers.{i}.ffn_norm.weight", (width,)
    yield "norm.weight", (width,)
    yield "output.weight", (vocab, width)


def random(named, seed=0):
    """Weights under which activations neither vanish nor explode."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:])) + (len(shape) == 1)
    return {name: draw(shape).astype(np.float32) for name, shape in named}


TINY = random(gpt_names(DEPTH, WIDTH, VOCAB, CLASSES))
OPTIONS = {"num_heads": HEADS, "num_codes": SIDE * SIDE}


def rms_norm(x, weight):
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-5) * weight


def silu(x):
    return x / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rotated(x, blank=True):
    """Neighbours as real and imaginary part; the first position is the class's and has no place: times zero."""
    *_, length, size = x.shape
    rates = 10_000.0 ** (-2 * np.arange(size // 4) / (size // 2))
    turns = np.full((length, size // 2), 0.0 if blank else 1.0, complex)
    for position in range(1, length):
        row, column = divmod(position - 1, SIDE)
        turns[position] = np.exp(1j * np.concatenate([row * rates, column * rates]))
    pairs = (x[..., 0::2] + 1j * x[..., 1::2]) * turns
    return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)


def gpt_logits(weights, label, tokens, blank=True):
    """Of every token of one image: the class is fed first, the last token not at all."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    x = np.concatenate([w["cls_embedding.embedding_table.weight"][[label]], w["tok_embeddings.weight"][tokens[:-1]]])
    causal = np.tri(len(x), dtype=bool)
    for i in range(DEPTH):
        layer = f"layers.{i}"
        qkv = rms_norm(x, w[f"{layer}.attention_norm.weight"]) @ w[f"{layer}.attention.wqkv.weight"].T
        q, k, v = (each.reshape(len(x), HEADS, -1).swapaxes(0, 1) for each in np.split(qkv, 3, axis=-1))
        scores = rotated(q, blank) @ rotated(k, blank).swapaxes(1, 2) / math.sqrt(WIDTH / HEADS)
        attended = softmax(np.where(causal, scores, -np.inf)) @ v
        x = x + attended.swapaxes(0, 1).reshape(len(x), -1) @ w[f"{layer}.attention.wo.weight"].T
        u = rms_norm(x, w[f"{layer}.ffn_norm.weight"])
        gate, up = (u @ w[f"{layer}.feed_forward.{name}.weight"].T for name in ("w1", "w3"))
        x = x + (silu(gate) * up) @ w[f"{layer}.feed_forward.w2.weight"].T
    return rms_norm(x, w["norm.weight"]) @ w["output.weight"].T


@pytest.fixture(scope="module")
def converted():
    return trees.read(llamagen.plan_gpt(published.checkpoint(TINY), **OPTIONS))


def test_the_transformer_computes_what_theirs_does(converted):
    module = prior.from_config(converted.config)
    rng = np.random.default_rng(1)
    tokens, labels = rng.integers(0, VOCAB, (2, SIDE * SIDE)), np.array([3, CLASSES])  # the last is the null class
    logits = jax.jit(lambda params, c, t: prior.logits(module, params, c, t))
    ours = np.asarray(logits(converted.params, labels[:, None], tokens))
    wanted = np.stack([gpt_logits(TINY, *each) for each in zip(labels, tokens, strict=True)])
    assert np.abs(ours - wanted).max() < 1e-5 * np.abs(wanted).max()
    turned = np.stack([gpt_logits(TINY, *each, blank=False) for each in zip(labels, tokens, strict=True)])
    assert np.abs(turned - wanted).max() > 0.05 * np.abs(wanted).max()  # so that the class's zeros are tested


def test_the_null_class_is_the_last_row(converted):
    module = prior.from_config(converted.config)
    assert int(module.prefix(module.null(jnp.zeros((1, 1), jnp.int32)))[0, 0]) == VOCAB + CLASSES
    np.testing.assert_array_equal(converted.params["embedding"][VOCAB:], TINY["cls_embedding.embedding_table.weight"])


def test_the_transformer_goes_back_bit_by_bit(converted):
    leaves = flatten_dict({"transformer": converted.params}, sep="/")
    entries = llamagen.gpt_entries({path: array.shape for path, array in leaves.items()}, VOCAB)
    assert entries.keys() == TINY.keys()
    for name, entry in entries.items():
        np.testing.assert_array_equal(names.take(entry, leaves[entry.path]), TINY[name], err_msg=name)


@pytest.mark.parametrize("size", SIZES)
def test_the_published_transformers(size):
    depth, width, heads, codes, millions = SIZES[size]
    named = dict(gpt_names(depth, width, 16384, 1000))
    planned = llamagen.plan_gpt(hollow(named), num_codes=codes)
    assert sorted(planned.report.used) == sorted(named)
    total = sum(math.prod(leaf.shape) for leaf in flatten_dict(planned.params).values())
    assert total == sum(map(math.prod, named.values()))
    assert round(total / 1e6, -2 if millions > 2000 else None) == millions
    t = planned.config.transformer
    assert (t.depth, t.width, t.num_heads) == (depth, width, heads)
    assert planned.config.grid == (math.isqrt(codes or 576),) * 2
    assert planned.config.condition.num_classes == 1000
    assert {path: leaf.shape for path, leaf in flatten_dict(planned.params).items()} == {
        path: leaf.shape
        for path, leaf in flatten_dict(models.state_shapes(planned.config).params["transformer"]).items()
    }


def test_stored_rotations_tell_the_grid_and_are_dropped():
    extra = {"freqs_cis": np.zeros((1 + 16, 4, 2), np.float32)}
    planned = llamagen.plan_gpt(published.checkpoint(TINY | extra), num_heads=HEADS)
    assert planned.config.grid == (4, 4)
    assert planned.report.dropped == ("freqs_cis",)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({}, {"num_heads": None}, "known for widths 768, 1024, 1280, 1536, 3200, this one is 24"),
        ({}, {"num_codes": None}, "must be a square grid; got none"),
        ({}, {"num_codes": 8}, "must be a square grid; got 8"),
        ({"extra": np.zeros(1, np.float32)}, {}, r"unexpected \(1\): extra"),
        ({"norm.weight": np.zeros(3, np.float32)}, {}, r"misshaped \(1\): norm\.weight"),
    ],
)
def test_what_must_be_named_or_does_not_fit(arrays, options, message):
    with pytest.raises(ConvertError, match=message):
        convert.plan(published.checkpoint(TINY | arrays), "llamagen_gpt", **(OPTIONS | options))


# The tokenizer.

LEVELS = (1, 1, 2, 1)
SMALL = VQ(LEVELS, VOCAB, **published.SMALL)
TOKENIZER = random((to_llamagen(name, len(LEVELS)), shape) for name, shape in SMALL.names())


class Network:
    """A tokenizer of one block a level; arrays are channels first, without a batch."""

    def __init__(self, weights):
        self.weights = {name: array.astype(np.float64) for name, array in weights.items()}

    def conv(self, name, x, stride=1, padding=None):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        size = weight.shape[-1]
        before, after = (size // 2, size // 2) if padding is None else padding
        x = np.pad(x, ((0, 0), (before, after), (before, after)))
        patches = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]
        return np.einsum("chwij,ocij->ohw", patches, weight, optimize=True) + bias[:, None, None]

    def norm(self, name, x):
        groups = x.reshape(32, -1)
        normed = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-6)
        weight, bias = (self.weights[f"{name}.{leaf}"][:, None, None] for leaf in ("weight", "bias"))
        return normed.reshape(x.shape) * weight + bias

    def res(self, name, x):
        h = self.conv(f"{name}.conv1", silu(self.norm(f"{name}.norm1", x)))
        h = self.conv(f"{name}.conv2", silu(self.norm(f"{name}.norm2", h)))
        return h + (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.weights else x)

    def attn(self, name, x):
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).reshape(len(x), -1) for part in "qkv")
        attended = v @ softmax(q.T @ k / math.sqrt(len(x))).T
        return x + self.conv(f"{name}.proj_out", attended.reshape(x.shape))

    def middle(self, name, x):
        return self.res(f"{name}.2", self.attn(f"{name}.1", self.res(f"{name}.0", x)))

    def end(self, name, x):
        return self.conv(f"{name}.conv_out", silu(self.norm(f"{name}.norm_out", x)))

    def latents(self, image):
        x = self.conv("encoder.conv_in", image)
        for i in range(len(LEVELS)):
            level = f"encoder.conv_blocks.{i}"
            x = self.res(f"{level}.res.0", x)
            if i == len(LEVELS) - 1:
                x = self.attn(f"{level}.attn.0", x)
            else:
                x = self.conv(f"{level}.downsample.conv", x, stride=2, padding=(0, 1))
        return self.conv("quant_conv", self.end("encoder", self.middle("encoder.mid", x)))

    def encode(self, image):
        z = self.latents(image)
        z = z / np.linalg.norm(z, axis=0)
        distances = np.sum((z[None] - self.codes[:, :, None, None]) ** 2, axis=1)
        return distances.argmin(0), np.diff(np.sort(distances, 0)[:2], axis=0).min()

    @property
    def codes(self):
        table = self.weights["quantize.embedding.weight"]
        return table / np.linalg.norm(table, axis=1, keepdims=True)

    def decode(self, indices):
        x = self.conv("post_quant_conv", self.codes[indices].transpose(2, 0, 1))
        x = self.middle("decoder.mid", self.conv("decoder.conv_in", x))
        for i in range(len(LEVELS)):
            level = f"decoder.conv_blocks.{i}"
            for j in range(2):
                x = self.res(f"{level}.res.{j}", x)
                if i == 0:
                    x = self.attn(f"{level}.attn.{j}", x)
            if i < len(LEVELS) - 1:
                x = self.conv(f"{level}.upsample.conv", x.repeat(2, 1).repeat(2, 2))
        return self.end("decoder", x)


def test_the_tokenizer_computes_what_theirs_does():
    images = np.random.default_rng(2).uniform(-1, 1, (2, 24, 32, 3)).astype(np.float32)
    latents = np.concatenate([Network(TOKENIZER).latents(image.transpose(2, 0, 1)) for image in images], axis=1)
    weights = TOKENIZER | {"quantize.embedding.weight": published.codes_near(latents.reshape(8, -1).T, VOCAB)}
    network, converted = Network(weights), published.load(llamagen, published.checkpoint(weights))
    tokenizer = models.Tokenizer(converted.params, converted.config.make_vqgan())
    wanted, margins = zip(*(network.encode(image.transpose(2, 0, 1)) for image in images), strict=True)
    assert min(margins) > 1e-4  # of squared distances of unit vectors: no rounding decides a code
    assert len(np.unique(wanted)) > 12
    np.testing.assert_array_equal(api.encode(tokenizer, images), wanted)
    recon = np.stack([network.decode(indices).transpose(1, 2, 0) for indices in wanted])
    ours = np.asarray(api.decode(tokenizer, np.stack(wanted)))
    assert np.abs(ours - recon).max() < 1e-5 * np.abs(recon).max()


def test_a_transformer_takes_the_tokenizer_of_its_codes():
    tokenizer = llamagen.plan(published.checkpoint(TOKENIZER))
    planned = llamagen.plan_gpt(published.checkpoint(TINY), tokenizer=tokenizer, **OPTIONS)
    assert planned.tokenizer is tokenizer
    assert planned.config.tokenizer.downsample_factor == 8
    other = llamagen.plan(published.checkpoint(TOKENIZER | {"quantize.embedding.weight": np.zeros((7, 8), np.float32)}))
    with pytest.raises(ConvertError, match="must have the transformer's 40 codes; it has 7"):
        llamagen.plan_gpt(published.checkpoint(TINY), tokenizer=other, **OPTIONS)
