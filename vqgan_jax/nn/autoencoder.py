"""The convolutional encoder and decoder (section 3.1 and table 7 of the paper)."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqgan_jax.nn.blocks import AttnBlock, Downsample, GroupNorm, ResBlock, Upsample, conv3x3


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
    """

    channels: int
    channel_multipliers: Sequence[int]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    resolution: int
    out_channels: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    norm_groups: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "b H W _"], *, train: bool = False) -> Float[Array, "b h w {self.out_channels}"]:
        conv_in = conv3x3(self.channels, self.dtype, "conv_in")
        x, bias = conv_in.apart(x) if self.num_res_blocks else (conv_in(x), None)
        for level, multiplier in enumerate(self.channel_multipliers):
            width, side = self.channels * multiplier, self.resolution >> level
            for block in range(self.num_res_blocks):
                x = ResBlock(width, self.dropout, self.dtype, self.norm_groups, name=f"level_{level}_block_{block}")(
                    x, bias, train=train
                )
                bias = None
                if side in self.attn_resolutions:
                    x = AttnBlock(self.dtype, self.norm_groups, name=f"level_{level}_attn_{block}")(x)
            if level < len(self.channel_multipliers) - 1:
                x = Downsample(self.dtype, name=f"level_{level}_downsample")(x)
        x = middle(x, self.dropout, self.dtype, self.norm_groups, train=train)
        x = nn.swish(GroupNorm(self.dtype, self.norm_groups, name="norm_out")(x))
        return conv3x3(self.out_channels, self.dtype, "conv_out")(x)


class Decoder(nn.Module):
    """Features to images, the mirror of `Encoder` with one more residual block a level; no final nonlinearity.

    The attributes are those of `Encoder`; `out_channels` are the image's. The result is float32.
    """

    channels: int
    channel_multipliers: Sequence[int]
    num_res_blocks: int
    attn_resolutions: Sequence[int]
    resolution: int
    out_channels: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    norm_groups: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w _"], *, train: bool = False) -> Float[Array, "b H W {self.out_channels}"]:
        x = conv3x3(self.channels * self.channel_multipliers[-1], self.dtype, "conv_in")(x)
        x = middle(x, self.dropout, self.dtype, self.norm_groups, train=train)
        for level, multiplier in reversed(list(enumerate(self.channel_multipliers))):
            width, side = self.channels * multiplier, self.resolution >> level
            for block in range(self.num_res_blocks + 1):
                x = ResBlock(width, self.dropout, self.dtype, self.norm_groups, name=f"level_{level}_block_{block}")(
                    x, train=train
                )
                if side in self.attn_resolutions:
                    x = AttnBlock(self.dtype, self.norm_groups, name=f"level_{level}_attn_{block}")(x)
            if level > 0:
                x = Upsample(self.dtype, name=f"level_{level}_upsample")(x)
        x = nn.swish(GroupNorm(self.dtype, self.norm_groups, name="norm_out")(x))
        return conv3x3(self.out_channels, self.dtype, "conv_out")(x).astype(jnp.float32)


def middle(
    x: Float[Array, "b h w c"], dropout: float, dtype: DTypeLike, groups: int, *, train: bool
) -> Float[Array, "b h w c"]:
    """Residual, attention, residual at the lowest resolution; to be called inside a compact module."""
    width = x.shape[-1]
    x = ResBlock(width, dropout, dtype, groups, name="middle_block_0")(x, train=train)
    x = AttnBlock(dtype, groups, name="middle_attn")(x)
    return ResBlock(width, dropout, dtype, groups, name="middle_block_1")(x, train=train)
