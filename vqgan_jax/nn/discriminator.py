"""PatchGAN: a map of logits, each of which judges one patch of the image (Isola et al. 2017)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqgan_jax.nn.fields import check_known, derived
from vqgan_jax.nn.layers import Conv


class BatchNorm(nn.Module):
    """PyTorch's: biased variance of the batch in training, a running average (0.1 new) of the unbiased one for later.

    Under `jax.jit` the batch is the global one. Statistics are float32.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        c = x.shape[-1]
        scale = self.param("scale", lambda key: 1.0 + 0.02 * jax.random.normal(key, (c,)))[None, None, None]
        bias = self.param("bias", nn.initializers.zeros, (c,))[None, None, None]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (c,))
        wide = x.astype(jnp.float32)
        if train:
            mean = wide.mean((0, 1, 2))
            var = jnp.square(wide - mean[None, None, None]).mean((0, 1, 2))
            if not self.is_initializing():
                n = wide.size // c
                running_mean.value = 0.9 * running_mean.value + 0.1 * mean
                running_var.value = 0.9 * running_var.value + 0.1 * var * (n / (n - 1))
        else:
            mean, var = running_mean.value, running_var.value
        wide = (wide - mean[None, None, None]) * (jax.lax.rsqrt(var + 1e-5)[None, None, None] * scale) + bias
        return wide.astype(x.dtype)


class ActNorm(nn.Module):
    """A learned scale and shift a channel, born such that the batch given to `init` comes out normalised.

    Kingma and Dhariwal 2018, section 3.1. The data start belongs to `init`, which makes it part of a pure function.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        del train
        loc = self.param("loc", lambda _: -x.astype(jnp.float32).mean((0, 1, 2)))
        scale = self.param("scale", lambda _: 1.0 / (x.astype(jnp.float32).std((0, 1, 2), ddof=1) + 1e-6))
        return (scale[None, None, None] * (x + loc[None, None, None])).astype(x.dtype)


NORMS = {"batch": BatchNorm, "act": ActNorm}


class Discriminator(nn.Module):
    """The interface of all discriminators: images (b H W c) and `train` to logits (b h w), float32, positive for real.

    A class adds its fields, which are keys of the config, the field `dtype`, and one line of `DISCRIMINATORS`. Running
    statistics are in the collection `batch_stats`.
    """

    def check(self) -> None:
        """Raises ValueError where fields contradict each other."""


class PatchDiscriminator(Discriminator):
    """4x4 convolutions: `num_layers` at stride 2, then two at stride 1 (receptive field 70 pixels for 3, 34 for 2).

    Its fields, but dtype, are the keys of the config's section `discriminator`.

    Attributes:
      channels: width after the first convolution; it doubles up to eightfold.
      num_layers: convolutions at stride 2.
      norm: "batch" or "act".
      dtype: of the convolutions.
    """

    channels: int = 64
    num_layers: int = 3
    norm: str = "batch"
    dtype: DTypeLike = derived(jnp.float32)

    def check(self) -> None:
        """Raises ValueError for an unknown norm."""
        check_known("discriminator.norm", self.norm, NORMS)

    @nn.compact
    def __call__(self, x: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b h w"]:
        """Logits, float32, positive for real."""

        def conv(channels: int, stride: int, use_bias: bool, name: str) -> Conv:
            init = nn.initializers.normal(0.02)
            return Conv(channels, 4, stride, (1, 1), use_bias, self.dtype, kernel_init=init, name=name)

        x = nn.leaky_relu(conv(self.channels, 2, True, "conv_0")(x), 0.2)
        for layer in range(1, self.num_layers + 1):
            stride = 2 if layer < self.num_layers else 1
            x = conv(self.channels * min(2**layer, 8), stride, self.norm == "act", f"conv_{layer}")(x)
            x = NORMS[self.norm](name=f"norm_{layer}")(x, train=train)
            x = nn.leaky_relu(x, 0.2)
        return conv(1, 1, True, "conv_out")(x)[..., 0].astype(jnp.float32)


class PatchDiscriminatorV2(Discriminator):
    """3x3 convolutions with blurred downsampling and GroupNorm (VQGAN+, Weber et al. 2024).

    Its fields, but dtype, are the keys of the config's section `discriminator` of kind "patch_v2".

    Attributes:
      channels: width after the first convolution and the first stage; it doubles at every further stage.
      num_stages: each halves the side.
      dtype: of the convolutions.
    """

    channels: int = 128
    num_stages: int = 4
    dtype: DTypeLike = derived(jnp.float32)

    def check(self) -> None:
        """Raises ValueError for a width that GroupNorm's 32 groups do not divide."""
        if self.channels % 32:
            raise ValueError(
                "`config.discriminator.channels` must be a multiple of the 32 groups of its norm; got "
                f"{self.channels}. Set it to {-(-self.channels // 32) * 32}."
            )

    @nn.compact
    def __call__(self, x: Float[Array, "b H W c"], *, train: bool = False) -> Float[Array, "b h w"]:
        """Logits, float32, positive for real; of a last map whose side is a multiple of 16, 16 rows and columns."""
        del train
        conv = lambda channels, size, name: Conv(channels, size, padding=(size // 2,) * 2, dtype=self.dtype, name=name)
        activate = lambda x: nn.leaky_relu(x, 0.1)
        x = activate(conv(self.channels, 5, "conv_in")(x))
        for stage in range(self.num_stages):
            x = blur(conv(self.channels * 2**stage, 3, f"conv_{stage}")(x))
            x = activate(nn.GroupNorm(32, epsilon=1e-5, dtype=self.dtype, name=f"norm_{stage}")(x))
        pool = tuple(max(side // 16, 1) for side in x.shape[1:3])
        x = nn.max_pool(x, pool, pool)
        x = activate(conv(x.shape[-1], 1, "conv_pooled")(x))
        return conv(1, 5, "conv_out")(x)[..., 0].astype(jnp.float32)


DISCRIMINATORS = {"patch": PatchDiscriminator, "patch_v2": PatchDiscriminatorV2}


def blur(x: Float[Array, "b H W c"]) -> Float[Array, "b h w c"]:
    """Halves the sides by the filter 1 3 3 1 along each, with zeros outside, against aliasing (Zhang 2019)."""
    for axis in (1, 2):
        padding = [(0, 0)] * 4
        padding[axis] = (1, 1)
        padded, half = jnp.pad(x, padding), x.shape[axis] // 2
        a, b, c, d = (jax.lax.slice_in_dim(padded, i, i + 2 * half - 1, 2, axis) for i in range(4))
        x = (a + 3 * b + 3 * c + d) / 8
    return x
