"""The parts that every convolutional network here is made of, with PyTorch's arithmetic and initialisation."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what the paper's networks, biases included, were trained from.
uniform_fan_in = variance_scaling(1 / 3, "fan_in", "uniform")


class Conv(nn.Module):
    """A square convolution over NHWC, computed in `dtype` from float32 parameters.

    `padding` is (before, after) on both axes: XLA's "SAME" differs from PyTorch at stride 2 on odd sides.
    """

    channels: int
    kernel_size: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    kernel_init: Callable[..., Array] = uniform_fan_in

    @nn.compact
    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b h w {self.channels}"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.channels)
        kernel = self.param("kernel", self.kernel_init, shape)
        x = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, self.padding)
        if self.use_bias:
            bound = (shape[0] * shape[1] * shape[2]) ** -0.5
            bias = self.param(
                "bias", lambda key: jax.random.uniform(key, (self.channels,), minval=-bound, maxval=bound)
            )
            x = x + bias.astype(self.dtype)[None, None, None]
        return x


def convolve(
    x: Float[Array, "b H W c"], kernel: Float[Array, "s s c d"], stride: int, padding: tuple[int, int]
) -> Float[Array, "b h w d"]:
    """The convolution itself."""
    if stride == 1 and x.shape[1] * x.shape[2] <= 4:
        # VGG's last maps of a 32-pixel crop: XLA's CPU convolution takes 80 times as long as a product of patches.
        size = kernel.shape[0]
        x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))
        h, w = x.shape[1] - size + 1, x.shape[2] - size + 1
        patches = jnp.stack([x[:, i : i + h, j : j + w] for i in range(size) for j in range(size)], axis=3)
        return jnp.einsum("bhwsc,scd->bhwd", patches, kernel.reshape(size * size, *kernel.shape[2:]))
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def conv3x3(channels: int, dtype: DTypeLike, name: str) -> Conv:
    """A 3x3 convolution that keeps the side."""
    return Conv(channels, 3, padding=(1, 1), dtype=dtype, name=name)


def conv1x1(channels: int, dtype: DTypeLike, name: str) -> Conv:
    """A linear map of every position."""
    return Conv(channels, 1, dtype=dtype, name=name)


class GroupNorm(nn.Module):
    """Eps 1e-6, two-pass float32 statistics, result in `dtype`.

    With as many groups as channels the mean of a whole image is lost: a narrow network wants fewer than the paper's 32.

    The mean over space comes first and only then the one over the few channels of a group: one contiguous reduction
    instead of a strided one, three to six times as fast as `flax.linen.GroupNorm` with its gradient on a CPU.
    """

    dtype: DTypeLike = jnp.float32
    groups: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, _, _, c = x.shape
        if c % self.groups:
            raise ValueError(
                f"`channels` must be a multiple of the {self.groups} groups of GroupNorm; got {c}. Lower `norm_groups`."
            )
        scale = self.param("scale", nn.initializers.ones, (c,))[None, None, None]
        bias = self.param("bias", nn.initializers.zeros, (c,))[None, None, None]

        def group_mean(v: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
            means = v.mean((1, 2)).reshape(b, self.groups, -1).mean(-1)
            return jnp.repeat(means, c // self.groups, axis=-1)[:, None, None]

        centred = x.astype(jnp.float32) - group_mean(x.astype(jnp.float32))
        inverse_std = jax.lax.rsqrt(group_mean(jnp.square(centred)) + 1e-6)
        return (centred * (inverse_std * scale) + bias).astype(self.dtype)


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a residual; the shortcut is 1x1, only where the width changes."""

    channels: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    groups: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w _"], *, train: bool = False) -> Float[Array, "b h w {self.channels}"]:
        residual = x
        x = conv3x3(self.channels, self.dtype, "conv_1")(nn.swish(GroupNorm(self.dtype, self.groups, name="norm_1")(x)))
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
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        normed = GroupNorm(self.dtype, self.groups, name="norm")(x)
        q, k, v = (conv1x1(c, self.dtype, name)(normed).reshape(b, h * w, 1, c) for name in ("q", "k", "v"))
        attended = jax.nn.dot_product_attention(q, k, v).reshape(b, h, w, c)
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
        b, h, w, c = x.shape
        # One broadcast, not two repeats: its gradient is one sum, not two; 1.6 times fewer cycles of a TPU.
        doubled = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
        return conv3x3(c, self.dtype, "conv")(doubled)
