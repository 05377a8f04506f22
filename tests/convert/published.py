"""Names and shapes of the published checkpoints, in the order of their files, written down from upstream's modules."""

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch_files import Call, Global, Ordered, tensor

from vqgan_jax import convert, ordering
from vqgan_jax.convert import trees
from vqgan_jax.convert.tensors import Checkpoint, Tensor

Named = Iterator[tuple[str, tuple[int, ...]]]
INTEGERS = ("num_batches_tracked", "_shuffle_idx", "initialized")


def layer(name: str, *weight: int, bias: bool = True) -> Named:
    """A convolution, a linear map or a norm."""
    yield f"{name}.weight", weight
    if bias:
        yield f"{name}.bias", weight[:1]


def resnet(name: str, before: int, after: int) -> Named:
    yield from layer(f"{name}.norm1", before)
    yield from layer(f"{name}.conv1", after, before, 3, 3)
    yield from layer(f"{name}.norm2", after)
    yield from layer(f"{name}.conv2", after, after, 3, 3)
    if before != after:
        yield from layer(f"{name}.nin_shortcut", after, before, 1, 1)


def attention(name: str, width: int) -> Named:
    yield from layer(f"{name}.norm", width)
    for part in ("q", "k", "v", "proj_out"):
        yield from layer(f"{name}.{part}", width, width, 1, 1)


def middle(name: str, width: int) -> Named:
    yield from resnet(f"{name}.block_1", width, width)
    yield from attention(f"{name}.attn_1", width)
    yield from resnet(f"{name}.block_2", width, width)


@dataclasses.dataclass(frozen=True)
class VQ:
    """A VQ model; by default the one of f16 with 1024 codes."""

    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    codes: int = 1024
    channels: int = 3
    latent: int = 256
    embed: int = 256
    quantizer: str = "vq"
    colorize: int = 0
    disc_layers: int = 0
    actnorm: bool = False
    width: int = 128
    blocks: int = 2
    disc_width: int = 64

    def names(self) -> Named:
        if self.colorize:
            yield "colorize", (3, self.colorize, 1, 1)
        yield from self.encoder()
        yield from self.decoder()
        if self.disc_layers:
            yield from lpips()
            yield from self.discriminator()
        if self.quantizer == "gumbel":
            yield from layer("quantize.proj", self.codes, self.embed, 1, 1)
            yield "quantize.embed.weight", (self.codes, self.embed)
        else:
            yield "quantize.embedding.weight", (self.codes, self.embed)
        if self.quantizer == "ema":
            yield "quantize.embedding.cluster_size", (self.codes,)
            yield "quantize.embedding.embed_avg", (self.codes, self.embed)
        yield from layer("quant_conv", self.embed, self.latent, 1, 1)
        yield from layer("post_quant_conv", self.latent, self.embed, 1, 1)

    def encoder(self) -> Named:
        yield from layer("encoder.conv_in", self.width, self.channels, 3, 3)
        before, last = self.width, len(self.multipliers) - 1
        for i, multiplier in enumerate(self.multipliers):
            after = self.width * multiplier
            for j in range(self.blocks):
                yield from resnet(f"encoder.down.{i}.block.{j}", before, after)
                before = after
            for j in range(self.blocks if i == last else 0):
                yield from attention(f"encoder.down.{i}.attn.{j}", after)
            if i < last:
                yield from layer(f"encoder.down.{i}.downsample.conv", after, after, 3, 3)
        yield from middle("encoder.mid", before)
        yield from layer("encoder.norm_out", before)
        yield from layer("encoder.conv_out", self.latent, before, 3, 3)

    def decoder(self) -> Named:
        last = len(self.multipliers) - 1
        before = self.width * self.multipliers[-1]
        yield from layer("decoder.conv_in", before, self.latent, 3, 3)
        yield from middle("decoder.mid", before)
        for i, multiplier in enumerate(self.multipliers):  # run from the last to the first, stored the other way round
            after = self.width * multiplier
            before = self.width * self.multipliers[min(i + 1, last)]
            for j in range(self.blocks + 1):
                yield from resnet(f"decoder.up.{i}.block.{j}", before if j == 0 else after, after)
            for j in range(self.blocks + 1 if i == last else 0):
                yield from attention(f"decoder.up.{i}.attn.{j}", after)
            if i > 0:
                yield from layer(f"decoder.up.{i}.upsample.conv", after, after, 3, 3)
        yield from layer("decoder.norm_out", self.width)
        yield from layer("decoder.conv_out", self.channels, self.width, 3, 3)

    def discriminator(self) -> Named:
        main, width = "loss.discriminator.main", self.disc_width
        yield from layer(f"{main}.0", width, self.channels, 4, 4)
        for i in range(1, self.disc_layers + 1):
            before, width = width, self.disc_width * min(2**i, 8)
            yield from layer(f"{main}.{3 * i - 1}", width, before, 4, 4, bias=self.actnorm)
            if self.actnorm:
                yield from ((f"{main}.{3 * i}.{leaf}", (1, width, 1, 1)) for leaf in ("loc", "scale"))
                yield f"{main}.{3 * i}.initialized", ()
            else:
                yield from layer(f"{main}.{3 * i}", width)
                yield from ((f"{main}.{3 * i}.running_{leaf}", (width,)) for leaf in ("mean", "var"))
                yield f"{main}.{3 * i}.num_batches_tracked", ()
        yield from layer(f"{main}.{3 * self.disc_layers + 2}", 1, width, 4, 4)


def lpips() -> Named:
    loss = "loss.perceptual_loss"
    yield f"{loss}.scaling_layer.shift", (1, 3, 1, 1)
    yield f"{loss}.scaling_layer.scale", (1, 3, 1, 1)
    before, number = 3, 0
    for piece, (width, convolutions) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)), start=1):
        number += piece > 1  # a max-pool
        for _ in range(convolutions):
            yield from layer(f"{loss}.net.slice{piece}.{number}", width, before, 3, 3)
            before, number = width, number + 2  # a ReLU
    for i, width in enumerate((64, 128, 256, 512, 512)):
        yield f"{loss}.lin{i}.model.1.weight", (1, width, 1, 1)


@dataclasses.dataclass(frozen=True)
class Net2Net:
    """A transformer, with its tokenizers and the order of its codes."""

    depth: int
    width: int
    vocab: int
    block: int
    first: VQ = dataclasses.field(default_factory=VQ)
    second: VQ | None = None
    permuted: int = 0

    def names(self) -> Named:
        yield from ((f"first_stage_model.{name}", shape) for name, shape in self.first.names())
        if self.second:
            yield from ((f"cond_stage_model.{name}", shape) for name, shape in self.second.names())
        if self.permuted:
            yield "permuter.forward_shuffle_idx", (self.permuted,)
            yield "permuter.backward_shuffle_idx", (self.permuted,)
        yield "transformer.pos_emb", (1, self.block, self.width)
        yield "transformer.tok_emb.weight", (self.vocab, self.width)
        for i in range(self.depth):
            name = f"transformer.blocks.{i}"
            yield from layer(f"{name}.ln1", self.width)
            yield from layer(f"{name}.ln2", self.width)
            yield f"{name}.attn.mask", (1, 1, self.block, self.block)
            for part in ("key", "query", "value", "proj"):
                yield from layer(f"{name}.attn.{part}", self.width, self.width)
            yield from layer(f"{name}.mlp.0", 4 * self.width, self.width)
            yield from layer(f"{name}.mlp.2", self.width, 4 * self.width)
        yield from layer("transformer.ln_f", self.width)
        yield "transformer.head.weight", (self.vocab, self.width)


# Small ones of every kind: their tensors are all different and not square, where that can be.
SMALL = {"width": 32, "blocks": 1, "latent": 24, "embed": 8, "disc_width": 4}
TINY: dict[str, VQ | Net2Net] = {
    "f2": VQ((1, 2), 16, **SMALL),
    "f8_batchnorm": VQ((1, 1, 2, 1), 16, disc_layers=3, **SMALL),
    "actnorm": VQ((1, 2), 16, disc_layers=2, actnorm=True, **SMALL),
    "gumbel": VQ((1, 2), 16, quantizer="gumbel", **SMALL),
    "ema": VQ((1, 2), 16, quantizer="ema", disc_layers=1, **SMALL),
    "labels": VQ((1, 2), 16, channels=5, colorize=5, **SMALL),
    "plain": Net2Net(3, 24, 32, 64, VQ((1, 2), 32, **SMALL)),
    "map": Net2Net(11, 16, 32, 128, VQ((1, 2), 32, **SMALL), VQ((1, 2), 16, channels=1, **SMALL), permuted=64),
}

LDM = VQ(multipliers=(1, 2, 2, 4), codes=16384, latent=4, embed=4)
SCENES = VQ(codes=8192)

MODELS: dict[str, VQ | Net2Net] = {
    "vqgan_imagenet_f16_1024": VQ(disc_layers=3),
    "vqgan_imagenet_f16_16384": VQ(codes=16384, disc_layers=2),
    "vqgan_actnorm_variant": VQ(disc_layers=3, actnorm=True),
    "vqgan_gumbel_f8_8192": VQ(multipliers=(1, 1, 2, 4), codes=8192, quantizer="gumbel"),
    "vq_f8_openimages_16384_ldm": LDM,
    "vq_f8_openimages_256_ldm": dataclasses.replace(LDM, codes=256),
    "vqseg_coco_183": VQ(channels=183, colorize=183),
    "vqgan_8192": SCENES,
    "cin_transformer_1p4B": Net2Net(48, 1536, 16384, 256, VQ(codes=16384)),
    "drin_transformer": Net2Net(24, 1024, 1024, 512, second=VQ(channels=1)),
    "faceshq_transformer": Net2Net(24, 1024, 1024, 512),
    "sflckr_transformer": Net2Net(24, 1024, 1024, 512, second=VQ(channels=182, colorize=182)),
    "uncond_24x1664": Net2Net(24, 1664, 1024, 256),
    "coco_scene": Net2Net(40, 1408, 8192, 348, SCENES),
    "oi_scene": Net2Net(36, 1536, 8192, 348, SCENES),
    "is_first_stage_permuter": Net2Net(2, 64, 1024, 512, second=VQ(), permuted=256),
}


def listing(model: VQ | Net2Net) -> str:
    """One line a tensor: name, tab, shape."""
    return "".join(f"{name}\t{shape}\n" for name, shape in model.names())


def checksum(model: VQ | Net2Net) -> str:
    return hashlib.md5(listing(model).encode()).hexdigest()[:12]


def as_tensor(array: np.ndarray) -> Tensor:
    return Tensor(array.shape, array.dtype, lambda: array)


def hollow(model: VQ | Net2Net) -> Checkpoint:
    """A checkpoint of zeros that takes no memory, whatever its size."""
    arrays = {name: np.broadcast_to(np.array(0, dtype(name)), shape) for name, shape in model.names()}
    return checkpoint(arrays | permutation(model))


def random(model: VQ | Net2Net, seed: int = 0) -> dict[str, np.ndarray]:
    """Its tensors, of random bits; the mask is causal, the order the spiral inwards, VGG16, which is not read, zero."""
    rng = np.random.default_rng(seed)
    draw = lambda name, shape: np.zeros(shape) if "perceptual_loss.net" in name else rng.standard_normal(shape)
    arrays = {n: draw(n, shape).astype(dtype(n)) for n, shape in model.names()}
    for name, array in arrays.items():
        if name.endswith("attn.mask"):
            array[...] = np.tri(array.shape[-1])
    return arrays | permutation(model)


def codes_near(latents: np.ndarray, count: int) -> np.ndarray:
    """A codebook about given latents (n d), so that many of its codes are the nearest of some."""
    rng = np.random.default_rng(0)
    codes = latents[rng.permutation(np.resize(np.arange(len(latents)), count))]
    return (codes + 0.3 * latents.std() * rng.standard_normal(codes.shape)).astype(np.float32)


def permutation(model: VQ | Net2Net) -> dict[str, np.ndarray]:
    """The buffers of an order that is not its own inverse."""
    if isinstance(model, VQ) or not model.permuted:
        return {}
    side = math.isqrt(model.permuted)
    forward = ordering.spiral_in(side, side)
    return {"permuter.forward_shuffle_idx": forward, "permuter.backward_shuffle_idx": ordering.inverse(forward)}


def checkpoint(arrays: dict[str, np.ndarray], **other: object) -> Checkpoint:
    return Checkpoint({name: as_tensor(array) for name, array in arrays.items()}, other)


def lightning(arrays: dict[str, np.ndarray], rng: np.random.Generator) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A file of upstream's trainer, with Adam's moments and an object of a class that is not here; and the moments."""
    numbers = iter(range(10**6))
    store = lambda array: tensor(str(next(numbers)), array)
    parts = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
    groups = [
        [name for part in parts for name in arrays if name.startswith(part)],
        [n for n in arrays if n.startswith("loss.discriminator.") and n.endswith((".weight", ".bias"))],
    ]
    moments = [[rng.standard_normal(arrays[n].shape).astype(np.float32) for n in group] for group in groups]
    states = [
        {
            "state": {i: {"step": 5, "exp_avg": store(m), "exp_avg_sq": store(m * m)} for i, m in enumerate(group)},
            "param_groups": [{"lr": 5.4e-5, "betas": (0.5, 0.9), "params": list(range(len(group)))}],
        }
        for group in moments
    ]
    file = {
        "epoch": 3,
        "global_step": 40,
        "pytorch-lightning_version": "1.0.8",
        "callbacks": {Global("pytorch_lightning.callbacks", "ModelCheckpoint"): {"best_model_score": 0.5}},
        "optimizer_states": states,
        "lr_schedulers": [],
        "state_dict": Ordered((name, store(array)) for name, array in arrays.items()),
        "hyper_parameters": Call(Global("omegaconf.dictconfig", "DictConfig"), ({},), {"_content": {}}),
    }
    return file, [dict(zip(group, each, strict=True)) for group, each in zip(groups, moments, strict=True)]


def load(format: Any, opened: Checkpoint, **options: Any) -> trees.Converted:
    """A model of a format, with all its arrays read."""
    return trees.read(convert.plan(opened, format.__name__.rpartition(".")[2], **options))


def dtype(name: str) -> type:
    return np.int64 if name.endswith(INTEGERS) else np.float32
