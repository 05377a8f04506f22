"""LPIPS on VGG16 (Zhang et al. 2018): the perceptual loss of the paper, and a metric."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqgan_jax.nn.blocks import conv3x3

# Channels of VGG16's convolutions; between two groups a 2x2 max-pool. LPIPS compares what leaves each group.
VGG16_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """The five groups of convolutions of VGG16, each one's last activation."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b H W 3"]) -> tuple[Float[Array, "b _h _w _c"], ...]:
        """`x` is normalised by ImageNet's mean and deviation."""
        features, index = [], 0
        for group, widths in enumerate(VGG16_GROUPS):
            if group > 0:
                x = max_pool(x)
            for width in widths:
                x = nn.relu(conv3x3(width, self.dtype, f"conv_{index}")(x))
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
        return tuple(normalise(f.astype(jnp.float32)) for f in self.vgg(imagenet(x)))

    def compare(
        self, f: Float[Array, "b h w c"], g: Float[Array, "b h w c"], head: Float[Array, "c"]
    ) -> Float[Array, "b"]:
        """The mean over positions of the weighted squared difference."""
        difference = jnp.square(f - g)
        if self.dropout:
            kept = jax.random.bernoulli(self.make_rng("dropout"), 0.5, difference.shape)
            difference = jnp.where(kept, 2.0 * difference, 0.0)
        # One contraction over space and channels: the weights are linear.
        return jnp.einsum("bhwc,c->b", difference, head, precision=jax.lax.Precision.HIGHEST) / (
            f.shape[1] * f.shape[2]
        )


def imagenet(x: Float[Array, "b H W c"]) -> Float[Array, "b H W 3"]:
    """Images in [-1, 1], grey or not, by ImageNet's mean and deviation: what VGG16 reads."""
    shift, scale = jnp.array([-0.030, -0.088, -0.188]), jnp.array([0.458, 0.448, 0.450])
    return (x - shift[None, None, None]) / scale[None, None, None]


def max_pool(x: Float[Array, "b H W c"]) -> Float[Array, "b h w c"]:
    """The largest of every 2x2 pixels; an odd last row or column is left out.

    Maxima of strided slices: a select-and-scatter, the gradient of a window, takes a CPU twenty times as long, and the
    largest along two axes of length 2 a TPU 1.4 times as many cycles.
    """
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    x = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


def normalise(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Divides by the length over channels; where that is 0, as in flat black regions, value and gradient are 0."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    positive = squares > 0
    # One division a position: a TPU would take one a channel, and a third more cycles for all of LPIPS.
    return x * jnp.where(positive, 1.0 / (jnp.sqrt(jnp.where(positive, squares, 1.0)) + 1e-10), 0.0)
