"""ResNet50, the classifier of ImageNet whose logits compare images; weights: `convert.resnet`."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqgan_jax.nn.layers import convolve
from vqgan_jax.nn.precision import dense_in

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # width inside of the blocks, and how many there are


class ConvNorm(nn.Module):
    """A convolution without bias and BatchNorm by its stored statistics, eps 1e-5: one convolution with a bias."""

    channels: int
    kernel_size: int
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b h w {self.channels}"]:
        size, channels = self.kernel_size, (self.channels,)
        kernel = self.param("kernel", nn.initializers.he_normal(), (size, size, x.shape[-1], *channels))
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale, bias = self.param("scale", ones, channels), self.param("bias", zeros, channels)
        mean, var = self.param("mean", zeros, channels), self.param("var", ones, channels)
        factor = scale / jnp.sqrt(var + 1e-5)
        kernel = (kernel * factor[None, None, None]).astype(self.dtype)
        x = convolve(x.astype(self.dtype), kernel, self.stride, (size // 2, size // 2))
        return x + (bias - mean * factor).astype(self.dtype)[None, None, None]


class Bottleneck(nn.Module):
    """Three convolutions around a residual, of which the 3x3 has the stride: torchvision's, also called v1.5."""

    width: int
    stride: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b H W c"]) -> Float[Array, "b h w {4*self.width}"]:
        conv = functools.partial(ConvNorm, dtype=self.dtype)
        residual = x
        x = nn.relu(conv(self.width, 1, name="conv1")(x))
        x = nn.relu(conv(self.width, 3, self.stride, name="conv2")(x))
        x = conv(4 * self.width, 1, name="conv3")(x)
        if residual.shape != x.shape:
            residual = conv(4 * self.width, 1, self.stride, name="downsample")(residual)
        return nn.relu(residual + x)


class ResNet50(nn.Module):
    """Logits of ImageNet's 1000 classes (He et al. 2016), of images normalised by ImageNet's mean and deviation.

    Attributes:
      dtype: of the convolutions; the last, linear layer is float32.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b 1000"]:
        x = nn.relu(ConvNorm(64, 7, 2, self.dtype, name="conv1")(x))
        rim: Any = ((1, 1), (1, 1))
        x = nn.max_pool(x, (3, 3), (2, 2), rim)
        for stage, (width, count) in enumerate(STAGES, start=1):
            for i in range(count):
                stride = 2 if i == 0 and stage > 1 else 1
                x = Bottleneck(width, stride, self.dtype, name=f"layer{stage}.{i}")(x)
        return dense_in(jnp.float32, name="fc")(1000)(x.astype(jnp.float32).mean((1, 2)))
