"""DINOv2's ViT-S/14, a frozen network whose features say what is seen where; weights: `convert.dinov2`."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vqgan_jax.nn.block import gelu, norm_in, normal
from vqgan_jax.nn.layers import Conv
from vqgan_jax.nn.precision import attention, dense_in

SIDE, PATCH = 37, 14  # of the published table of positions in patches, of a patch in pixels


class Layer(nn.Module):
    """Pre-norm attention and MLP around a residual; each branch has a learned scale of its channels (LayerScale)."""

    num_heads: int = 6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t m"], _: None) -> tuple[Float[Array, "b t m"], None]:
        width, dense, norm = x.shape[-1], dense_in(self.dtype), norm_in("layer", self.dtype)
        scale = lambda name: self.param(name, nn.initializers.ones, (width,)).astype(self.dtype)[None, None]
        heads = (3, self.num_heads, width // self.num_heads)
        qkv = dense(heads, name="attn.qkv")(norm(epsilon=1e-6, name="norm1")(x))
        attended = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(x.shape)
        x += scale("ls1.gamma") * dense(width, name="attn.proj")(attended)
        hidden = gelu(dense(4 * width, name="mlp.fc1")(norm(epsilon=1e-6, name="norm2")(x)))
        return x + scale("ls2.gamma") * dense(width, name="mlp.fc2")(hidden), None


class DINOv2(nn.Module):
    """Features of an image's patches, one where each code stands (Oquab et al. 2023), without registers.

    The image is resized to patches of 14 pixels, and the table of positions to as many patches: both bicubic and
    antialiased. So timm resamples the table, from which XQ-GAN takes the network; the authors' own code does not
    antialias it. At 37 x 37 patches the two are one.

    Attributes:
      dtype: of the layers; the features are float32.
    """

    dtype: DTypeLike = jnp.float32

    width: ClassVar[int] = 384

    @nn.compact
    def __call__(self, x: Float[Array, "b H W 3"], codes: Float[Array, "b h w _"]) -> Float[Array, "b h w 384"]:
        """Returns the normalised features of patches; `x` is normalised by ImageNet's mean and deviation.

        Of `codes` only the grid is read.
        """
        (b, h, w), m = codes.shape[:3], self.width
        x = resize(x.astype(jnp.float32), h * PATCH, w * PATCH)
        x = Conv(m, PATCH, stride=PATCH, dtype=self.dtype, name="patch_embed.proj")(x)
        token = self.param("cls_token", normal, (1, 1, m))
        table = self.param("pos_embed", normal, (1, 1 + SIDE * SIDE, m))
        x = (x + resize(table[:, 1:].reshape(1, SIDE, SIDE, m), h, w)).reshape(b, h * w, m)
        x = jnp.concatenate([jnp.broadcast_to(token + table[:, :1], (b, 1, m)), x], axis=1)
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=12)
        x, _ = layers(dtype=self.dtype, name="blocks")(x.astype(self.dtype), None)
        return norm_in("layer", jnp.float32)(epsilon=1e-6, name="norm")(x[:, 1:]).reshape(b, h, w, m)


def resize(x: Float[Array, "b H W c"], height: int, width: int) -> Float[Array, "b h w c"]:
    """Resizes as torch does, bicubic and antialiased."""
    return jax.image.resize(x, (len(x), height, width, x.shape[-1]), "bicubic", antialias=True)
