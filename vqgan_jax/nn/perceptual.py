"""Distances by frozen networks: LPIPS on VGG16 (a loss and a metric), logits of ResNet50, and codes from features."""

from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from vqgan_jax import losses
from vqgan_jax.nn import forms
from vqgan_jax.nn.dinov2 import DINOv2
from vqgan_jax.nn.layers import Conv, convolve, uniform_fan_in
from vqgan_jax.nn.resnet import ResNet50

# Channels of VGG16's convolutions; between two groups a 2x2 max-pool. LPIPS compares what leaves each group.
VGG16_GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

# Channels of images that these networks can see: one is repeated.
SEEN_CHANNELS = (1, 3)

# The perceptual losses of a config: how much of each distance. "both" has one part of logits to ten of LPIPS
# (Kim et al. 2025, TA-TiTok, whose classifier is ConvNeXt-S).
PERCEPTUAL: dict[str, dict[str, float]] = {
    "lpips": {"lpips": 1.0},
    "resnet50": {"resnet50": 1.0},
    "both": {"lpips": 1.0 / 1.1, "resnet50": 0.1 / 1.1},
}

Layers: TypeAlias = Sequence[tuple[Float[Array, "3 3 _c _d"], Float[Array, "_d"]]]  # kernels and biases


class Kernel(nn.Module):
    """Kernel and bias of a 3x3 convolution, for functions that convolve by themselves."""

    shape: tuple[int, int]

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "3 3 c d"], Float[Array, "d"]]:
        kernel = self.param("kernel", uniform_fan_in, (3, 3, *self.shape))
        return kernel, self.param("bias", nn.initializers.zeros, self.shape[1:])


class VGG16(nn.Module):
    """The five groups of convolutions of VGG16, each one's last activation."""

    dtype: DTypeLike = jnp.float32

    def setup(self):
        widths = [width for group in VGG16_GROUPS for width in group]
        shapes = zip((3, *widths[:-1]), widths, strict=True)
        self.kernels = [Kernel(shape, name=f"conv_{i}") for i, shape in enumerate(shapes)]

    def layers(self, group: int) -> Layers:
        """Returns the parameters of a group's convolutions."""
        first = sum(map(len, VGG16_GROUPS[:group]))
        return [kernel() for kernel in self.kernels[first : first + len(VGG16_GROUPS[group])]]

    def __call__(self, x: Float[Array, "b H W 3"]) -> tuple[Float[Array, "b _h _w _c"], ...]:
        """Returns the features of every group; `x` is normalised by ImageNet's mean and deviation."""
        features = []
        for group in range(len(VGG16_GROUPS)):
            x = group_features(max_pool(x) if group else x, self.layers(group), self.dtype)
            features.append(x)
        return tuple(features)


class LPIPS(nn.Module):
    """Distance of two images as a learned weighting of squared differences of their normalised VGG16 features.

    The paper's perceptual loss (Zhang et al. 2018).

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
        """Returns one distance an image; inputs in [-1, 1], three channels or one (then compared as grey images)."""
        total, x, y = jnp.zeros(x.shape[0]), imagenet(x), imagenet(y)
        for group, head in enumerate(self.heads):
            key = self.make_rng("dropout") if self.dropout else None
            distance, x, y = group_distance(x, y, self.vgg.layers(group), head, key, self.dtype)
            total += distance
        return total

    def features(self, x: Float[Array, "b H W c"]) -> tuple[Float[Array, "b _h _w _c"], ...]:
        """Returns VGG16 features of images in [-1, 1], each position divided by its length; float32."""
        return tuple(normalise(f.astype(jnp.float32)) for f in self.vgg(imagenet(x)))


class LogitDistance(nn.Module):
    """Distance of two images as the mean squared difference of ResNet50's logits (Weber et al. 2024, VQGAN+).

    Attributes:
      dtype: of the convolutions; the logits are float32.
    """

    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.resnet = ResNet50(self.dtype)

    def __call__(self, x: Float[Array, "b H W c"], y: Float[Array, "b H W c"]) -> Float[Array, "b"]:
        """Returns one distance an image; inputs in [-1, 1], three channels or one, as those of LPIPS."""
        return jnp.mean(jnp.square(self.logits(x) - self.logits(y)), axis=-1)

    def logits(self, x: Float[Array, "b H W c"]) -> Float[Array, "b 1000"]:
        """Returns the logits of images in [-1, 1], resized to 224 pixels a side: bilinear, antialiased."""
        shape = (len(x), 224, 224, x.shape[-1])
        return self.resnet(imagenet(jax.image.resize(x.astype(jnp.float32), shape, "bilinear", antialias=True)))


class Relu33(nn.Module):
    """VGG16's relu3_3, averaged onto the grid of codes; its parameters are among those of LPIPS.

    Attributes:
      dtype: of the convolutions; the features are float32.
    """

    dtype: DTypeLike = jnp.float32

    width: ClassVar[int] = VGG16_GROUPS[2][-1]

    def setup(self):
        self.vgg = VGG16(self.dtype)

    def __call__(self, x: Float[Array, "b H W 3"], codes: Float[Array, "b h w _"]) -> Float[Array, "b h w 256"]:
        """Returns features where codes stand; `x` is normalised by ImageNet's mean and deviation.

        Of `codes` only the grid is read.

        Raises:
          ValueError: the features, of a quarter of the image's side, cannot be averaged onto the grid of codes.
        """
        features = self.vgg(x)[2]
        (height, width), (h, w) = features.shape[1:3], codes.shape[1:3]
        if height % h or width % w:
            raise ValueError(
                f"`config.loss.semantic_weight` needs a grid of codes that divides {height} x {width}, that of VGG16's "
                f"relu3_3; got {h} x {w}. Take a model of f4, f8 or f16, or `config.loss.semantic` 'dinov2_vits14', or "
                "set the weight to 0."
            )
        window = (height // h, width // w)
        return nn.avg_pool(features.astype(jnp.float32), window, window)


# The networks of the semantic loss, each with the name that its weights have in `Stage1.frozen_shapes`.
SEMANTIC: dict[str, tuple[type[Relu33 | DINOv2], str]] = {
    "vgg16": (Relu33, "lpips"),
    "dinov2_vits14": (DINOv2, "dinov2_vits14"),
}


class SemanticDistance(nn.Module):
    """Distance of codes, through a learned projection, from the features of a frozen network where they stand.

    As a loss it makes codes semantic (Li et al. 2024, XQ-GAN, whose frozen network is DINOv2). The projection is in
    float32.

    Attributes:
      network: a name of SEMANTIC.
      dtype: of the layers of that network.
    """

    network: str = "vgg16"
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.projection = Conv(SEMANTIC[self.network][0].width, 1)

    @property
    def frozen(self) -> dict[str, nn.Module]:
        """Returns the frozen network, by the name under which its weights lie."""
        network, name = SEMANTIC[self.network]
        return {name: network(self.dtype, parent=None)}

    def project(self, codes: Float[Array, "b h w d"]) -> Float[Array, "b h w m"]:
        """Returns codes in the space of the features."""
        return self.projection(codes)

    def __call__(
        self, codes: Float[Array, "b h w d"], x: Float[Array, "b H W c"], frozen: dict[str, Any]
    ) -> Float[Array, "b h w"]:
        """Returns 1 less the cosine of projected codes and features.

        Args:
          codes: as the quantizer gives them to the decoder.
          x: images in [-1, 1], three channels or one.
          frozen: parameters of the frozen network, among others, by name.

        Raises:
          ValueError: the network has no features on such a grid of codes.
        """
        ((name, network),) = self.frozen.items()
        features: Any = network.apply({"params": frozen[name]}, imagenet(x), codes)
        return optax.losses.cosine_distance(self.project(codes), features, epsilon=1e-12)


def imagenet(x: Float[Array, "b H W c"]) -> Float[Array, "b H W 3"]:
    """Normalises images in [-1, 1], grey or not, by ImageNet's mean and deviation: what frozen networks read."""
    shift, scale = jnp.array([-0.030, -0.088, -0.188]), jnp.array([0.458, 0.448, 0.450])
    return (x - shift[None, None, None]) / scale[None, None, None]


def group_features(x: Float[Array, "b H W _"], layers: Layers, dtype: DTypeLike) -> Float[Array, "b H W _"]:
    """Returns what leaves a group: convolutions that keep the side, each with a ReLU."""
    for kernel, bias in layers:
        x = convolve(x.astype(dtype), kernel.astype(dtype), 1, (1, 1))
        x = nn.relu(x + bias.astype(dtype)[None, None, None])
    return x


@forms.use(forms.group_distance, where=forms.fits_pairs)
def group_distance(
    x: Float[Array, "b H W _"],
    y: Float[Array, "b H W _"],
    layers: Layers,
    head: Float[Array, "d"],
    key: Key[Array, ""] | None,
    dtype: DTypeLike,
) -> tuple[Float[Array, "b"], Float[Array, "b h w d"], Float[Array, "b h w d"]]:
    """Compares what leaves a group (equation 1 of LPIPS), and pools it for the next one.

    Returns:
      The mean over positions of the squared difference of both normalised features, weighted by `head` (with a `key`
      half of the channels of each position are dropped), and the features of x and of y, pooled.
    """
    x, y = group_features(x, layers, dtype), group_features(y, layers, dtype)
    difference = normalise(x.astype(jnp.float32)) - normalise(y.astype(jnp.float32))
    return losses.lpips_loss(difference, head, key), max_pool(x), max_pool(y)


@forms.use(forms.max_pool)
def max_pool(x: Float[Array, "b H W c"]) -> Float[Array, "b h w c"]:
    """Returns the largest of every 2x2 pixels; an odd last row or column is left out."""
    return nn.max_pool(x, (2, 2), (2, 2))


def normalise(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Divides by the length over channels. Where the length is 0, as in flat black regions, the gradient is 0."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    positive = squares > 0
    # One division a position: a TPU would take one a channel, and a third more cycles for all of LPIPS.
    return x * jnp.where(positive, 1.0 / (jnp.sqrt(jnp.where(positive, squares, 1.0)) + 1e-10), 0.0)
