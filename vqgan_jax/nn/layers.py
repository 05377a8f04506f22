"""The layers that every convolutional network here is made of, with PyTorch's arithmetic and initialisation."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqgan_jax.nn import forms
from vqgan_jax.nn.precision import precision_of

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default, from which the paper's networks were trained.
uniform_fan_in = variance_scaling(1 / 3, "fan_in", "uniform")


@forms.use(forms.convolve)
def convolve(
    x: Float[Array, "b H W c"], kernel: Float[Array, "s s c d"], stride: int, padding: tuple[int, int]
) -> Float[Array, "b h w d"]:
    """Convolves over NHWC, float32 in float32; `padding` is (before, after) on both axes."""
    window, precision = ((stride, stride), (padding, padding)), precision_of(x.dtype)
    return jax.lax.conv_general_dilated(
        x, kernel, *window, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=precision
    )


@forms.use(forms.upsample_convolve)
def upsample_convolve(x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "b H W d"]:
    """Repeats every pixel in both directions, then convolves with padding 1."""
    return convolve(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2), kernel, 1, (1, 1))


@forms.use(forms.group_norm)
def group_norm(
    x: Float[Array, "b h w c"], scale: Float[Array, "c"], bias: Float[Array, "c"], groups: int, dtype: DTypeLike
) -> Float[Array, "b h w c"]:
    """Normalises every group of channels of every image (Wu and He 2018), eps 1e-6, statistics in float32."""
    grouped = x.astype(jnp.float32).reshape(*x.shape[:3], groups, -1)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    variance = jnp.square(grouped - mean).mean((1, 2, 4), keepdims=True)
    normed = ((grouped - mean) * jax.lax.rsqrt(variance + 1e-6)).reshape(x.shape)
    return (normed * scale[None, None, None] + bias[None, None, None]).astype(dtype)


class Conv(nn.Module):
    """A square convolution, computed in `dtype` from float32 parameters.

    Attributes:
      channels: width of the result.
      kernel_size: side of the kernel.
      stride, padding: of `convolve`; XLA's "SAME" differs from PyTorch at stride 2 on odd sides.
      use_bias: adds one number a channel.
      dtype: of the computation and of the result; float32 means float32 on TPUs too.
      kernel_init: initialiser of the kernel; the bias is PyTorch's, uniform within 1 / sqrt(fan_in).
      upsample: repeats every pixel first, as `upsample_convolve`; then stride is 1 and padding 1.
    """

    channels: int
    kernel_size: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    kernel_init: Callable[..., Array] = uniform_fan_in
    upsample: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b h w {self.channels}"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.channels)
        x, kernel = x.astype(self.dtype), self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        x = upsample_convolve(x, kernel) if self.upsample else convolve(x, kernel, self.stride, self.padding)
        if not self.use_bias:
            return x
        bound = (shape[0] * shape[1] * shape[2]) ** -0.5
        bias = self.param("bias", lambda key: jax.random.uniform(key, (self.channels,), minval=-bound, maxval=bound))
        return x + bias.astype(self.dtype)[None, None, None]


def conv3x3(channels: int, dtype: DTypeLike, name: str) -> Conv:
    """A 3x3 convolution that keeps the side."""
    return Conv(channels, 3, padding=(1, 1), dtype=dtype, name=name)


def conv1x1(channels: int, dtype: DTypeLike, name: str) -> Conv:
    """A linear map of every position."""
    return Conv(channels, 1, dtype=dtype, name=name)


class GroupNorm(nn.Module):
    """`group_norm` with a learned scale and bias; the result is in `dtype`.

    With as many groups as channels the mean of a whole image is lost: a narrow network wants fewer than the paper's 32.
    """

    dtype: DTypeLike = jnp.float32
    groups: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        if channels % self.groups:
            raise ValueError(
                f"`channels` must be a multiple of the {self.groups} groups of GroupNorm; got {channels}. "
                "Lower `norm_groups`."
            )
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        return group_norm(x, scale, bias, self.groups, jnp.dtype(self.dtype))
