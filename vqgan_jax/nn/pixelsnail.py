"""PixelSNAIL, the prior that the paper compares its transformer with: gated causal convolutions and attention.

The network of Chen et al. 2018 over a grid of codes, as the priors of VQ-VAE-2 (Razavi et al. 2019) use it: codes come
in through an embedding, and attention has heads. A class is added in every residual block (Salimans et al. 2017).

References:
  Chen et al. 2018, PixelSNAIL: An Improved Autoregressive Generative Model, figures 2 and 3, and its published code.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vqgan_jax.nn.fields import derived
from vqgan_jax.nn.network import Place, PriorNetwork
from vqgan_jax.nn.precision import precision_of, product

Padding = tuple[tuple[int, int], tuple[int, int]]

SMALL = 0.1  # of a gate's kernels and of the last one: a residual block starts near the identity, codes near uniform


class Conv(nn.Module):
    """A convolution with normalised weights (Salimans and Kingma 2016), computed in `dtype`.

    Attributes:
      channels: width of the result.
      window: rows and columns of the kernel.
      padding: rows above and below, columns left and right; -1 drops the last one, which shifts the image.
      gain: of the kernel at the start.
    """

    channels: int
    window: tuple[int, int] = (1, 1)
    padding: Padding = ((0, 0), (0, 0))
    gain: float = 1.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w _"]) -> Float[Array, "b h w {self.channels}"]:
        shape = (*self.window, x.shape[-1], self.channels)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        length = jnp.sqrt(jnp.sum(jnp.square(kernel), axis=(0, 1, 2)))
        scale = self.param("scale", lambda _: self.gain * length)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        kernel = (kernel * (scale / length)[None, None, None]).astype(self.dtype)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel,
            (1, 1),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision_of(self.dtype),
        )
        return y + bias.astype(self.dtype)[None, None, None]


# What a position sees of its input. ABOVE and LEFT, of the first layer, leave out the position itself; CORNER has it.
ABOVE = functools.partial(Conv, window=(1, 3), padding=((1, -1), (1, 1)))  # the three neighbours in the row above
LEFT = functools.partial(Conv, window=(2, 1), padding=((1, 0), (1, -1)))  # the left neighbour and the one above it
CORNER = functools.partial(Conv, window=(2, 2), padding=((1, 0), (1, 0)))  # itself, left, above, and above left


class GatedBlock(nn.Module):
    """Two convolutions around a residual, the second one gated (Salimans et al. 2017).

    Attributes:
      hidden: channels between the convolutions.
      causal: convolves the 2x2 pixels whose last one is the position; else the position alone.
      dropout: between the convolutions.
    """

    hidden: int
    causal: bool = False
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        *,
        beside: Float[Array, "b h w _"] | None = None,
        condition: Float[Array, "b _"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b h w c"]:
        """Computes the block; `beside` enters before the gate at each position, `condition` inside of it at all."""
        channels, conv = x.shape[-1], CORNER if self.causal else Conv
        hidden = conv(self.hidden, dtype=self.dtype, name="conv_1")(concat_elu(x))
        if beside is not None:
            hidden = hidden + Conv(self.hidden, dtype=self.dtype, name="beside")(concat_elu(beside))
        hidden = nn.Dropout(self.dropout, deterministic=not train)(concat_elu(hidden))
        out = conv(2 * channels, gain=SMALL, dtype=self.dtype, name="conv_2")(hidden)
        if condition is not None:
            one = condition[:, None, None]
            out = out + Conv(2 * channels, gain=SMALL, dtype=self.dtype, name="condition")(one)
        value, gate = jnp.split(out, 2, axis=-1)
        return x + value * nn.sigmoid(gate)


class Block(nn.Module):
    """Residual blocks, then attention over all codes before the position, whose contents it sees themselves."""

    num_res_blocks: int
    num_heads: int
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w m"],
        codes: Float[Array, "b h w m"],
        background: Float[Array, "b h w 2"],
        condition: Float[Array, "b m"],
        train: bool,
    ) -> tuple[Float[Array, "b h w m"], None]:
        gated = functools.partial(GatedBlock, x.shape[-1], dropout=self.dropout, dtype=self.dtype)
        for i in range(self.num_res_blocks):
            x = gated(causal=True, name=f"res_{i}")(x, condition=condition, train=train)
        content = gated(name="content")(jnp.concatenate([codes, x, background], axis=-1), train=train)
        asking = gated(name="asking")(jnp.concatenate([x, background], axis=-1), train=train)
        width = x.shape[-1] // 2
        q, k, v = (
            Conv(width, dtype=self.dtype, name=name)(y).reshape(len(x), -1, self.num_heads, width // self.num_heads)
            for name, y in (("query", asking), ("key", content), ("value", content))
        )
        mixed = strictly_causal_attention(q, k, v).reshape(*x.shape[:3], width)
        return gated(name="mix")(x, beside=mixed, train=train), None


class PixelSNAIL(PriorNetwork):
    """The network of kind "pixelsnail". The first token is the condition, the others are codes in raster order.

    Its fields are keys of the config's section `transformer`. A sample costs a whole forward pass for every code, that
    is as many times a transformer's as there are codes: `PriorNetwork.step`.

    Attributes:
      depth: blocks, each with one layer of attention.
      num_res_blocks: causal residual blocks in front of each attention.
      width: channels; a multiple of twice the heads.
      num_heads: of attention, which has half the channels.
      dropout: inside of the residual blocks.
      grid: rows and columns of codes.
    """

    depth: int = 4
    num_res_blocks: int = 5
    width: int = 256
    num_heads: int = 8
    dropout: float = 0.1
    grid: tuple[int, int] = derived((0, 0))

    def check(self) -> None:
        """Raises ValueError for another order than raster, or a width that its heads do not divide."""
        if self.order != "raster":
            raise ValueError(
                "`config.transformer.order` must be 'raster' for kind 'pixelsnail', whose convolutions see the rows "
                f"above and the codes to the left; got {self.order!r}. Set it to 'raster', or use kind 'transformer'."
            )
        if self.width % (2 * self.num_heads):
            times = 2 * self.num_heads
            raise ValueError(
                f"`config.transformer.width` must be a multiple of {times}, twice num_heads; got {self.width}. Set it "
                f"to {-(-self.width // times) * times}."
            )

    @property
    def summary(self) -> str:
        """Returns its size in a few words."""
        return f"PixelSNAIL, {self.depth} blocks of {self.width}, {self.num_res_blocks} residual blocks in each"

    def bind(self, *, vocab_size: int, extra_vocab: int, prefix: list[Place], codes: list[Place]) -> "PixelSNAIL":
        """Returns the network of a run; see `PriorNetwork.bind`."""
        if len(prefix) != 1:
            raise ValueError(
                "`config.condition.kind` must be 'class' or 'none' for transformer.kind 'pixelsnail', which takes a "
                f"condition of 1 token; this one has {len(prefix)}. Use transformer.kind 'transformer'."
            )
        if self.max_len not in (0, len(codes)):
            raise ValueError(
                f"`config.transformer.max_len` must be 0 for kind 'pixelsnail', or {len(codes)}, its whole grid; got "
                f"{self.max_len}. Set it to 0."
            )
        bound: Any = super().bind(vocab_size=vocab_size, extra_vocab=extra_vocab, prefix=prefix, codes=codes)
        return bound.clone(grid=(codes[-1][0] + 1, codes[-1][1] + 1))

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "b t"],
        *,
        places: Float[Array, "b s 2"] | None = None,
        at: Int[Array, "b _"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b t v"]:
        """Computes the logits of the code after each token.

        Args:
          tokens: the condition's token, and codes in raster order.
          places, at: None; see `takes_places` and `takes_order`.
          train: with dropout, from the key `dropout`.

        Raises:
          ValueError: the input is too long.
        """
        del places, at
        (batch, length), (height, width) = tokens.shape, self.grid
        if length > height * width:
            raise ValueError(f"the input must have at most {height * width} tokens; got {length}. Cut it.")
        shape = (self.vocab_size + self.extra_vocab, self.width)
        table = self.param("embedding", nn.initializers.normal(1.0), shape)
        codes = jnp.pad(tokens[:, 1:], ((0, 0), (0, height * width + 1 - length)))
        codes = table[codes].astype(self.dtype).reshape(batch, height, width, self.width)
        condition = table[tokens[:, 0]].astype(self.dtype)
        above = ABOVE(self.width, dtype=self.dtype, name="above")(codes)
        x = above + LEFT(self.width, dtype=self.dtype, name="left")(codes)
        x = x if self.rows is None else jax.lax.with_sharding_constraint(x, self.rows)
        background = jnp.asarray(positions(height, width), self.dtype)[None]
        background = jnp.broadcast_to(background, (batch, height, width, 2))
        stack = nn.scan(
            Block,
            length=self.depth,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast,) * 4,  # type: ignore[arg-type]
            unroll=self.depth,  # in a loop a CPU takes 40 times as long for a kernel's gradient
        )
        blocks = stack(self.num_res_blocks, self.num_heads, self.dropout, self.dtype, name="blocks")
        x, _ = blocks(x, codes, background, condition, train)
        logits = Conv(self.vocab_size, gain=SMALL, dtype=self.dtype, name="logits")(nn.elu(x))
        return logits.astype(jnp.float32).reshape(batch, height * width, self.vocab_size)[:, :length]


def concat_elu(x: Float[Array, "*b c"]) -> Float[Array, "*b _"]:
    """ELU of x and of -x side by side (Salimans et al. 2017): twice the channels."""
    return nn.elu(jnp.concatenate([x, -x], axis=-1))


def positions(height: int, width: int) -> Float[np.ndarray, "{height} {width} 2"]:
    """Row and column of each position as shares of the image, from -1/2 on: the background of Chen et al."""
    axes = [np.arange(size) / size - 0.5 for size in (height, width)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).astype(np.float32)


def strictly_causal_attention(
    q: Float[Array, "b t n p"], k: Float[Array, "b t n p"], v: Float[Array, "b t n p"]
) -> Float[Array, "b t n p"]:
    """Softmax attention of each position over those before it, without itself; zeros at the first position."""
    t = np.arange(q.shape[1])
    visible = jnp.asarray(t[:, None] > t[None])[None, None]
    logits = product("btnp,bsnp->bnts", q, k, jnp.float32) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(jnp.where(visible, logits, -1e9), axis=-1)
    weights = jnp.where(visible, weights, 0.0)  # the first position sees none, and softmax has given it equal shares
    return product("bnts,bsnp->btnp", weights.astype(v.dtype), v)
