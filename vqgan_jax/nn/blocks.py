"""The parts that every convolutional network here is made of, with PyTorch's arithmetic and initialisation."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import variance_scaling
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqgan_jax.nn.convolutions import convolve, convolve_doubled
from vqgan_jax.nn.precision import attention

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what the paper's networks, biases included, were trained from.
uniform_fan_in = variance_scaling(1 / 3, "fan_in", "uniform")
PerChannel = Float[Array, "c"]


class Conv(nn.Module):
    """A square convolution over NHWC, computed in `dtype` from float32 parameters.

    `padding` is (before, after) on both axes: XLA's "SAME" differs from PyTorch at stride 2 on odd sides. `function` of
    input and kernel takes the place of stride and padding.
    """

    channels: int
    kernel_size: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    kernel_init: Callable[..., Array] = uniform_fan_in
    function: Callable[[Array, Array], Array] | None = None

    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b h w {self.channels}"]:
        x, bias = self.apart(x)
        return x if bias is None else added(x, bias)

    @nn.compact
    def apart(self, x: Float[Array, "b H W c"]) -> tuple[Float[Array, "b h w {self.channels}"], Any]:
        """The result without its bias, and the bias (float32, channels), or None, for who adds it later."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.channels)
        kernel = self.param("kernel", self.kernel_init, shape)
        function = self.function or functools.partial(convolve, stride=self.stride, padding=self.padding)
        x = function(x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return x, None
        bound = (shape[0] * shape[1] * shape[2]) ** -0.5
        init = lambda key: jax.random.uniform(key, (self.channels,), minval=-bound, maxval=bound)
        return x, self.param("bias", init)


def added(x: Float[Array, "b h w c"], bias: PerChannel) -> Float[Array, "b h w c"]:
    """With the bias, in the dtype of x."""
    return x + bias.astype(x.dtype)[None, None, None]


def conv3x3(channels: int, dtype: DTypeLike, name: str) -> Conv:
    """A 3x3 convolution that keeps the side."""
    return Conv(channels, 3, padding=(1, 1), dtype=dtype, name=name)


def conv1x1(channels: int, dtype: DTypeLike, name: str) -> Conv:
    """A linear map of every position."""
    return Conv(channels, 1, dtype=dtype, name=name)


class GroupNorm(nn.Module):
    """Eps 1e-6, float32 statistics, result in `dtype`; see `group_norm`.

    With as many groups as channels the mean of a whole image is lost: a narrow network wants fewer than the paper's 32.
    """

    dtype: DTypeLike = jnp.float32
    groups: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], shift: PerChannel | None = None) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        if channels % self.groups:
            raise ValueError(
                f"`channels` must be a multiple of the {self.groups} groups of GroupNorm; got {channels}. "
                "Lower `norm_groups`."
            )
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        shift = jnp.zeros(channels) if shift is None else shift
        return group_norm(x, shift, scale, bias, self.groups, jnp.dtype(self.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def group_norm(
    x: Float[Array, "b h w c"], shift: PerChannel, scale: PerChannel, bias: PerChannel, groups: int, dtype: np.dtype
) -> Float[Array, "b h w c"]:
    """Normalises every group of channels of every image of x + shift (Wu and He 2018).

    The gradient is written out: what JAX derives needs three sums over the image, one after the other, and this two at
    once, which TPUs take in the same pass as the convolution before. Sums over space come first and only then those
    over the few channels of a group: contiguous, three to six times as fast as `flax.linen.GroupNorm` on a CPU.

    `shift` is the bias of the convolution before. Its gradient follows from these sums, so that nothing but that
    convolution reads the gradient of x, which a TPU then computes while it convolves.
    """
    return group_norm_forward(x, shift, scale, bias, groups, dtype)[0]


def group_norm_forward(x: Array, shift: Array, scale: Array, bias: Array, groups: int, dtype: np.dtype) -> tuple:
    """The value, and what the gradient needs."""
    wide = x.astype(jnp.float32) + shift[None, None, None]
    channel_mean, mean, variance = moments(x, shift, groups)
    inverse_std = jax.lax.rsqrt(variance + 1e-6)
    y = (wide - mean) * (inverse_std * scale[None, None, None]) + bias[None, None, None]
    return y.astype(dtype), (x, shift, scale, channel_mean, mean, inverse_std)


def moments(
    x: Float[Array, "b h w c"], shift: PerChannel, groups: int
) -> tuple[Float[Array, "b c"], Float[Array, "b 1 1 c"], Float[Array, "b 1 1 c"]]:
    """Returns the means of the channels of x + shift, and means and variances of their groups, in float32.

    Of bfloat16 in one pass over x: what cancels in E[x^2] - E[x]^2 is less than what rounding to bfloat16 took from x.
    The shift was not rounded and must not cancel: it joins the means of the channels, of which a second pass is cheap.
    """
    wide = x.astype(jnp.float32)
    if x.dtype != jnp.bfloat16:
        wide = wide + shift[None, None, None]
        channel_mean = wide.mean((1, 2))
        mean = group_mean(channel_mean, groups)
        return channel_mean, mean, group_mean(jnp.square(wide - mean).mean((1, 2)), groups)
    unshifted = wide.mean((1, 2))
    within = jnp.maximum(jnp.square(wide).mean((1, 2)) - jnp.square(unshifted), 0.0)
    channel_mean = unshifted + shift[None]
    mean = group_mean(channel_mean, groups)
    return channel_mean, mean, group_mean(within + jnp.square(channel_mean - mean[:, 0, 0]), groups)


def group_norm_backward(groups: int, dtype: np.dtype, saved: tuple, g: Array) -> tuple[Array, Array, Array, Array]:
    """Gradients of x, shift, scale and bias."""
    x, shift, scale, channel_mean, mean, inverse_std = saved
    wide = x.astype(jnp.float32) + shift[None, None, None]
    g, normed = g.astype(jnp.float32), (wide - mean) * inverse_std
    slope, offset = (g * normed).mean((1, 2)), g.mean((1, 2))
    along, level = group_mean(slope * scale[None], groups), group_mean(offset * scale[None], groups)
    of_x = lambda g, normed: inverse_std * (g * scale[None, None, None] - level - normed * along)
    # That of the shift sums `of_x` over the pixels: it is linear, so their means go through it instead.
    of_means = of_x(offset[:, None, None], (channel_mean[:, None, None] - mean) * inverse_std)
    over_images = lambda means: x.shape[1] * x.shape[2] * means.sum(0)
    return of_x(g, normed).astype(x.dtype), over_images(of_means[:, 0, 0]), over_images(slope), over_images(offset)


group_norm.defvjp(group_norm_forward, group_norm_backward)


def group_mean(v: Float[Array, "b c"], groups: int) -> Float[Array, "b 1 1 c"]:
    """The mean over each group of channels, at each of its channels."""
    means = v.reshape(v.shape[0], groups, -1).mean(-1)
    return jnp.repeat(means, v.shape[1] // groups, axis=-1)[:, None, None]


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a residual; the shortcut is 1x1, only where the width changes.

    `shift` is a bias that x still lacks, of the convolution before: see `group_norm`.
    """

    channels: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    groups: int = 32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w _c"], shift: Float[Array, "_c"] | None = None, *, train: bool = False
    ) -> Float[Array, "b h w {self.channels}"]:
        residual = x
        x = nn.swish(GroupNorm(self.dtype, self.groups, name="norm_1")(x, shift))
        x, bias = conv3x3(self.channels, self.dtype, "conv_1").apart(x)
        x = nn.swish(GroupNorm(self.dtype, self.groups, name="norm_2")(x, bias))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x, bias = conv3x3(self.channels, self.dtype, "conv_2").apart(x)
        if residual.shape[-1] != self.channels:
            residual = residual if shift is None else added(residual, shift)
            residual = conv1x1(self.channels, self.dtype, "shortcut")(residual)
        elif shift is not None:
            bias = bias + shift
        return residual + added(x, bias)


class AttnBlock(nn.Module):
    """Self-attention with one head over all positions, around a residual; softmax in float32."""

    dtype: DTypeLike = jnp.float32
    groups: int = 32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = x.shape
        normed = GroupNorm(self.dtype, self.groups, name="norm")(x)
        q, k, v = (conv1x1(c, self.dtype, name)(normed).reshape(b, h * w, 1, c) for name in ("q", "k", "v"))
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
        return Conv(x.shape[-1], 3, padding=(1, 1), dtype=self.dtype, function=convolve_doubled, name="conv")(x)
