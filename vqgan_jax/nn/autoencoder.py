"""The VQGAN: convolutional encoder, quantizer and convolutional decoder (section 3.1, equations 2 to 4, table 7)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vqgan_jax.nn.fields import check_known, derived
from vqgan_jax.nn.layers import Conv, GroupNorm, conv1x1, conv3x3
from vqgan_jax.nn.precision import attention
from vqgan_jax.nn.quantizer import Quantized, Quantizer, VectorQuantizer
from vqgan_jax.nn.remat import REMAT, kept, remat

AFTER_CODES = ("post_quantizer", "decoder")  # parts of a VQGAN that no code depends on


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a residual; the shortcut is 1x1, only where the width changes."""

    channels: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    groups: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w _"], train: bool = False) -> Float[Array, "b h w {self.channels}"]:
        residual = x
        x = nn.swish(GroupNorm(self.dtype, self.groups, name="norm_1")(x))
        x = kept(conv3x3(self.channels, self.dtype, "conv_1")(x))
        x = nn.swish(GroupNorm(self.dtype, self.groups, name="norm_2")(x))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = conv3x3(self.channels, self.dtype, "conv_2")(x)
        if residual.shape[-1] != self.channels:
            residual = conv1x1(self.channels, self.dtype, "shortcut")(residual)
        return residual + x


class AttnBlock(nn.Module):
    """Self-attention with one head over all positions, around a residual; softmax in float32."""

    dtype: DTypeLike = jnp.float32
    groups: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b h w c"]:
        del train
        b, h, w, c = x.shape
        normed = GroupNorm(self.dtype, self.groups, name="norm")(x)
        q, k, v = (kept(conv1x1(c, self.dtype, name)(normed)).reshape(b, h * w, 1, c) for name in ("q", "k", "v"))
        attended = attention(q, k, v).reshape(b, h, w, c)
        return x + conv1x1(c, self.dtype, "out")(attended)


class Downsample(nn.Module):
    """Halves the side (rounding down): one zero row below and one column to the right, then a 3x3 at stride 2."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b h w c"]:
        return Conv(x.shape[-1], 3, stride=2, padding=(0, 1), dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Doubles the side: every pixel four times, then a 3x3."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b H W c"]:
        return Conv(x.shape[-1], 3, dtype=self.dtype, upsample=True, name="conv")(x)


class Encoder(nn.Module):
    """Images to a grid of features, `2 ** (levels - 1)` times smaller.

    Attributes:
      channels: width at full resolution.
      channel_multipliers: width of each level in units of `channels`; one halving of the side between two levels.
      num_res_blocks: residual blocks a level.
      attn_resolutions: sides at which every residual block is followed by attention, at the nominal `resolution`.
      resolution: the side of the training images, which only decides which levels have attention; any side works.
      out_channels: width of the result.
      dropout: inside the residual blocks, in training.
      dtype: of the computation; parameters are float32.
      norm_groups: of every GroupNorm.
      remat: what the backward pass computes again of each block, a name of REMAT.
    """

    channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: int
    out_channels: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    norm_groups: int = 32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Float[Array, "b H W _"], *, train: bool = False) -> Float[Array, "b h w {self.out_channels}"]:
        res_block, attn_block = blocks(self, train)
        x = conv3x3(self.channels, self.dtype, "conv_in")(x)
        for level, multiplier in enumerate(self.channel_multipliers):
            for block in range(self.num_res_blocks):
                x = res_block(self.channels * multiplier, f"level_{level}_block_{block}")(x)
                if self.resolution >> level in self.attn_resolutions:
                    x = attn_block(f"level_{level}_attn_{block}")(x)
            if level < len(self.channel_multipliers) - 1:
                x = Downsample(self.dtype, name=f"level_{level}_downsample")(x)
        x = res_block(x.shape[-1], "middle_block_0")(x)
        x = attn_block("middle_attn")(x)
        x = res_block(x.shape[-1], "middle_block_1")(x)
        x = nn.swish(GroupNorm(self.dtype, self.norm_groups, name="norm_out")(x))
        return conv3x3(self.out_channels, self.dtype, "conv_out")(x)


class Decoder(nn.Module):
    """Features to images, the mirror of `Encoder` with one more residual block a level; no final nonlinearity.

    The attributes are those of `Encoder`; `out_channels` are the image's. The result is float32.
    """

    channels: int
    channel_multipliers: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    resolution: int
    out_channels: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    norm_groups: int = 32
    remat: str = "none"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w _"], *, train: bool = False) -> Float[Array, "b H W {self.out_channels}"]:
        res_block, attn_block = blocks(self, train)
        x = conv3x3(self.channels * self.channel_multipliers[-1], self.dtype, "conv_in")(x)
        x = res_block(x.shape[-1], "middle_block_0")(x)
        x = attn_block("middle_attn")(x)
        x = res_block(x.shape[-1], "middle_block_1")(x)
        for level, multiplier in reversed(list(enumerate(self.channel_multipliers))):
            for block in range(self.num_res_blocks + 1):
                x = res_block(self.channels * multiplier, f"level_{level}_block_{block}")(x)
                if self.resolution >> level in self.attn_resolutions:
                    x = attn_block(f"level_{level}_attn_{block}")(x)
            if level > 0:
                x = Upsample(self.dtype, name=f"level_{level}_upsample")(x)
        x = nn.swish(GroupNorm(self.dtype, self.norm_groups, name="norm_out")(x))
        return conv3x3(self.out_channels, self.dtype, "conv_out")(x).astype(jnp.float32)


def blocks(module: Encoder | Decoder, train: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns functions that make a residual block of (channels, name) and an attention block of (name)."""
    fields = {"dtype": module.dtype, "groups": module.norm_groups}
    res, attn = (remat(block, module.remat, static=2) for block in (ResBlock, AttnBlock))  # argument 2 is `train`

    def res_block(channels: int, name: str) -> Callable[[Array], Array]:
        return lambda x: res(channels=channels, dropout=module.dropout, **fields, name=name)(x, train)

    return res_block, lambda name: lambda x: attn(**fields, name=name)(x, train)


class VQGAN(nn.Module):
    """Images in [-1, 1] to indices and back: encoder, 1x1, quantizer, 1x1, decoder.

    Its fields, but the quantizer, are the keys of the config's section `model`. Sides of images must be multiples of
    `downsample_factor`: `encode` of any other would not decode to the same size.

    Attributes:
      quantizer: from latents to codes.
      channels, channel_multipliers, num_res_blocks, attn_resolutions, resolution: see `Encoder`.
      image_channels: channels of the images; of label maps the number of classes.
      latent_channels: width of the encoder's result and of the decoder's input.
      norm_groups, dropout, remat: see `Encoder`.
      dtype: of the convolutions of encoder and decoder; parameters, norms and codes are float32.
    """

    has_decoder = True  # whether anything learns behind the codes

    quantizer: Quantizer = derived(VectorQuantizer())
    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (16,)
    resolution: int = 256
    image_channels: int = 3
    latent_channels: int = 256
    norm_groups: int = 32
    dropout: float = 0.0
    dtype: DTypeLike = "bfloat16"
    remat: str = "none"

    def check(self) -> None:
        """Raises ValueError for an unknown choice."""
        check_known("model.remat", self.remat, REMAT)

    def setup(self):
        names = ("channels", "channel_multipliers", "num_res_blocks", "attn_resolutions", "resolution", "norm_groups")
        shape: dict[str, Any] = {name: getattr(self, name) for name in (*names, "dropout", "dtype", "remat")}
        self.encoder = Encoder(out_channels=self.latent_channels, **shape)
        self.decoder = Decoder(out_channels=self.image_channels, **shape)
        self.pre_quantizer = conv1x1(self.quantizer.embed_dim, jnp.float32, "pre_quantizer")
        self.post_quantizer = conv1x1(self.latent_channels, self.dtype, "post_quantizer")

    @property
    def downsample_factor(self) -> int:
        """Side of an image over the side of its grid of indices."""
        return 2 ** (len(self.channel_multipliers) - 1)

    def __call__(
        self, images: Float[Array, "b H W c"], *, train: bool = False, step: int | Int[Array, ""] = 0
    ) -> tuple[Float[Array, "b H W _"], Quantized]:
        """Reconstructs; also returns what the quantizer returned."""
        quantized = self.encode(images, train=train, step=step)
        return self.decode(quantized.quantized, train=train), quantized

    def encode(
        self, images: Float[Array, "b H W c"], *, train: bool = False, step: int | Int[Array, ""] = 0
    ) -> Quantized:
        """Encodes and quantizes; `step` is that of training, for quantizers with a schedule."""
        latents = self.pre_quantizer(self.encoder(images, train=train))
        return self.quantizer(latents, train=train, step=step)

    def decode(self, quantized: Float[Array, "b h w d"], *, train: bool = False) -> Float[Array, "b H W c"]:
        """Decodes quantized latents to float32 images, about in [-1, 1], not clipped."""
        return self.decoder(self.post_quantizer(quantized), train=train)

    def decode_indices(self, indices: Int[Array, "b h w"]) -> Float[Array, "b H W c"]:
        """Decodes codebook rows."""
        return self.decode(self.quantizer.lookup(indices))
