"""MaskGIT's encoder and decoder: no attention, means for strided convolutions, and a shortcut that is none.

They stand between the same 1x1 in front of the codes and a 3x3 behind them.

References:
  Chang et al. 2022, MaskGIT: Masked Generative Image Transformer; the arithmetic of its published tokenizers.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqgan_jax.nn.autoencoder import VQGAN, Upsample
from vqgan_jax.nn.layers import Conv, GroupNorm, conv1x1, conv3x3


class ResBlock(nn.Module):
    """A residual block without biases that forgets its input where the width changes, as published."""

    channels: int
    dtype: DTypeLike = jnp.float32
    groups: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w _"]) -> Float[Array, "b h w {self.channels}"]:
        conv = functools.partial(Conv, self.channels, use_bias=False, dtype=self.dtype)
        norm = functools.partial(GroupNorm, self.dtype, self.groups)
        branch = conv(3, padding=(1, 1), name="conv_1")(nn.swish(norm(name="norm_1")(x)))
        branch = conv(3, padding=(1, 1), name="conv_2")(nn.swish(norm(name="norm_2")(branch)))
        if x.shape[-1] == self.channels:
            return x + branch
        # What is added is made of the branch, not of the block's input.
        return branch + conv(1, name="shortcut")(branch)


class Encoder(nn.Module):
    """Images in [-1, 1] to features of the last level's width, `2 ** (levels - 1)` times smaller.

    Attributes:
      channels: width at full resolution.
      channel_multipliers: width of each level in units of `channels`; means of 2x2 pixels between two levels.
      num_res_blocks: residual blocks a level, and after the last one.
      dtype: of the computation; parameters are float32.
      norm_groups: of every GroupNorm.
    """

    channels: int
    channel_multipliers: Sequence[int]
    num_res_blocks: int
    dtype: DTypeLike = jnp.float32
    norm_groups: int = 32

    @property
    def out_channels(self) -> int:
        """Width of the features."""
        return self.channels * self.channel_multipliers[-1]

    @nn.compact
    def __call__(self, x: Float[Array, "b H W _"], *, train: bool = False) -> Float[Array, "b h w {self.out_channels}"]:
        del train  # there is no dropout
        x = (x + 1) / 2  # it reads [0, 1]; a convolution's padding is black, not grey
        x = Conv(self.channels, 3, padding=(1, 1), use_bias=False, dtype=self.dtype, name="conv_in")(x)
        for level, multiplier in enumerate(self.channel_multipliers):
            x = blocks(
                x, f"level_{level}", self.channels * multiplier, self.num_res_blocks, self.dtype, self.norm_groups
            )
            if level < len(self.channel_multipliers) - 1:
                x = nn.avg_pool(x, (2, 2), (2, 2))
        x = blocks(x, "middle", self.out_channels, self.num_res_blocks, self.dtype, self.norm_groups)
        return nn.swish(GroupNorm(self.dtype, self.norm_groups, name="norm_out")(x))


class Decoder(nn.Module):
    """Features to images in about [-1, 1], float32: the mirror of `Encoder`, whose attributes it has.

    `out_channels` are the image's.
    """

    channels: int
    channel_multipliers: Sequence[int]
    num_res_blocks: int
    out_channels: int
    dtype: DTypeLike = jnp.float32
    norm_groups: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w _"], *, train: bool = False) -> Float[Array, "b H W {self.out_channels}"]:
        del train
        x = blocks(x, "middle", x.shape[-1], self.num_res_blocks, self.dtype, self.norm_groups)
        for level, multiplier in reversed(list(enumerate(self.channel_multipliers))):
            x = blocks(
                x, f"level_{level}", self.channels * multiplier, self.num_res_blocks, self.dtype, self.norm_groups
            )
            if level > 0:
                x = Upsample(self.dtype, name=f"level_{level}_upsample")(x)
        x = nn.swish(GroupNorm(self.dtype, self.norm_groups, name="norm_out")(x))
        return 2 * conv3x3(self.out_channels, self.dtype, "conv_out")(x).astype(jnp.float32) - 1


def blocks(
    x: Float[Array, "b h w _"], name: str, channels: int, count: int, dtype: DTypeLike, groups: int
) -> Float[Array, "b h w {channels}"]:
    """Residual blocks one after the other; to be called inside a compact module."""
    for block in range(count):
        x = ResBlock(channels, dtype, groups, name=f"{name}_block_{block}")(x)
    return x


class MaskGIT(VQGAN):
    """MaskGIT's tokenizer as a `VQGAN`: without attention and dropout, latents as wide as the last level."""

    attn_resolutions: tuple[int, ...] = ()
    latent_channels: int = 512

    def check(self) -> None:
        """Raises ValueError where fields say what this network does not have."""
        width = self.channels * self.channel_multipliers[-1]
        if self.attn_resolutions or self.dropout or self.remat != "none" or self.latent_channels != width:
            raise ValueError(
                "`config.model.kind` 'maskgit' has no attention, no dropout, no remat, and latent channels like its "
                f"last level: set attn_resolutions to (), dropout to 0, remat to none and latent_channels to {width}."
            )

    def setup(self):
        shape = (self.channels, self.channel_multipliers, self.num_res_blocks)
        self.encoder = Encoder(*shape, dtype=self.dtype, norm_groups=self.norm_groups)
        self.decoder = Decoder(*shape, self.image_channels, dtype=self.dtype, norm_groups=self.norm_groups)
        self.pre_quantizer = conv1x1(self.quantizer.embed_dim, jnp.float32, "pre_quantizer")
        self.post_quantizer = conv3x3(self.latent_channels, self.dtype, "post_quantizer")
