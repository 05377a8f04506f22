"""LPIPS on VGG16 (Zhang et al. 2018): the perceptual loss of the paper, and a metric."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqgan_jax.nn.blocks import conv3x3, uniform_fan_in
from vqgan_jax.nn.convolutions import convolve_paired, paired

# Channels of VGG16's convolutions; between two groups a 2x2 max-pool. LPIPS compares what leaves each group.
VGG16_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class PairedConv(nn.Module):
    """`conv3x3` of `paired` maps, with its parameters."""

    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b h v _"]) -> Float[Array, "b h v _"]:
        kernel = self.param("kernel", uniform_fan_in, (3, 3, x.shape[-1] // 2, self.channels)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,)).astype(self.dtype)
        return convolve_paired(x.astype(self.dtype), kernel) + jnp.tile(bias, 2)[None, None, None]


class VGG16(nn.Module):
    """The five groups of convolutions of VGG16, each one's last activation.

    In bfloat16 the first group, of 64 channels, works on `paired` columns, and so are the first activations.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b H W 3"]) -> tuple[Float[Array, "b _h _w _c"], ...]:
        """`x` is normalised by ImageNet's mean and deviation."""
        features, index = [], 0
        pair = jnp.dtype(self.dtype) == jnp.bfloat16 and x.shape[2] % 2 == 0
        x = paired(x) if pair else x
        for group, widths in enumerate(VGG16_GROUPS):
            if group > 0:
                x = max_pool(x, paired=pair and group == 1)
            for width in widths:
                conv = PairedConv if pair and group == 0 else conv3x3
                x = nn.relu(conv(width, self.dtype, name=f"conv_{index}")(x))
                index += 1
            features.append(x)
        return tuple(features)


class LPIPS(nn.Module):
    """Distance of two images as a learned weighting of squared differences of their normalised VGG16 features.

    Attributes:
      dropout: drops half of the weighted channels at random (PRNG collection "dropout"): what the published training
        does, by accident. Off for any measurement.
      dtype: of the convolutions; the comparison is float32.
    """

    dropout: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.vgg = VGG16(self.dtype)
        self.heads = [self.param(f"head_{i}", nn.initializers.uniform(), (g[-1],)) for i, g in enumerate(VGG16_GROUPS)]

    def __call__(self, x: Float[Array, "b H W c"], y: Float[Array, "b H W c"]) -> Float[Array, "b"]:
        """One distance an image; inputs in [-1, 1], three channels or one (then compared as grey images)."""
        layers = zip(self.features(x), self.features(y), self.heads, strict=True)
        return sum((self.compare(f, g, head) for f, g, head in layers), start=jnp.zeros(x.shape[0]))

    def features(self, x: Float[Array, "b H W c"]) -> tuple[Float[Array, "b _h _w _c"], ...]:
        """VGG16 features of images in [-1, 1], each position divided by its length; float32."""
        features = zip(self.vgg(imagenet(x)), VGG16_GROUPS, strict=True)
        return tuple(normalise(f.astype(jnp.float32), f.shape[-1] // group[-1]) for f, group in features)

    def compare(
        self, f: Float[Array, "b h w c"], g: Float[Array, "b h w c"], head: Float[Array, "_"]
    ) -> Float[Array, "b"]:
        """The mean over positions of the weighted squared difference."""
        columns = f.shape[-1] // len(head)
        head, difference = jnp.tile(head, columns), jnp.square(f - g)
        if self.dropout:
            kept = jax.random.bernoulli(self.make_rng("dropout"), 0.5, difference.shape)
            difference = jnp.where(kept, 2.0 * difference, 0.0)
        # One contraction over space and channels: the weights are linear.
        return jnp.einsum("bhwc,c->b", difference, head, precision=jax.lax.Precision.HIGHEST) / (
            f.shape[1] * f.shape[2] * columns
        )


def imagenet(x: Float[Array, "b H W c"]) -> Float[Array, "b H W 3"]:
    """Images in [-1, 1], grey or not, by ImageNet's mean and deviation: what VGG16 reads."""
    shift, scale = jnp.array([-0.030, -0.088, -0.188]), jnp.array([0.458, 0.448, 0.450])
    return (x - shift[None, None, None]) / scale[None, None, None]


def max_pool(x: Float[Array, "b H W _"], *, paired: bool = False) -> Float[Array, "b h w _"]:
    """The largest of every 2x2 pixels; an odd last row or column is left out. `paired` columns come out as single ones.

    Maxima of slices: a select-and-scatter, the gradient of a window, takes a CPU twenty times as long, and the largest
    along two axes of length 2 a TPU 1.4 times as many cycles.
    """
    x = x[:, : x.shape[1] // 2 * 2]
    x = larger(x[:, ::2], x[:, 1::2])
    if paired:
        return larger(*jnp.split(x, 2, axis=-1))
    x = x[:, :, : x.shape[2] // 2 * 2]
    return larger(x[:, :, ::2], x[:, :, 1::2])


@jax.custom_vjp
def larger(x: Float[Array, "*b"], y: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """The maximum; of equals the first has the gradient, where that of `jnp.maximum` divides to halve it."""
    return jnp.maximum(x, y)


def larger_backward(first: Array, g: Array) -> tuple[Array, Array]:
    """All of the gradient to one of the two."""
    return jnp.where(first, g, 0), jnp.where(first, 0, g)


larger.defvjp(lambda x, y: (larger(x, y), x >= y), larger_backward)


def normalise(x: Float[Array, "b h w c"], parts: int = 1) -> Float[Array, "b h w c"]:
    """Divides by the length over channels, or over each of equal parts of them.

    Where the length is 0, as in flat black regions, value and gradient are 0.
    """
    squares = jnp.square(x)
    squares = part_sums(squares, parts) if parts > 1 else jnp.sum(squares, axis=-1, keepdims=True)
    positive = squares > 0
    # One division a position: a TPU would take one a channel, and a third more cycles for all of LPIPS.
    return x * jnp.where(positive, 1.0 / (jnp.sqrt(jnp.where(positive, squares, 1.0)) + 1e-10), 0.0)


@functools.partial(jax.jit, static_argnums=1)
def part_sums(x: Float[Array, "b h w c"], parts: int) -> Float[Array, "b h w c"]:
    """The sum of each of equal parts of the channels, at each of its channels.

    As a product: a sum over a part of a TPU's lanes costs more. HIGH is three products of bfloat16, which hold the 16
    bits of a squared bfloat16.
    """
    width = x.shape[-1] // parts
    same = jnp.kron(jnp.eye(parts), jnp.ones((width, width)))
    return jnp.einsum("bhwc,cd->bhwd", x, same, precision=jax.lax.Precision.HIGH)
