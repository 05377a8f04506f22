"""One layer of the transformer: pre-norm attention and MLP around a residual."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vqgan_jax.nn import forms
from vqgan_jax.nn.precision import attention, dense_in, precision_of, product
from vqgan_jax.nn.remat import kept

Rotations = Float[Array, "_ _ 2 _"]  # cosines and sines of each position, of all examples or of each
Modulation = Float[Array, "b 6 m"] | None  # shift, scale and gate of attention, then those of the MLP; or none

NORMS = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
MLPS = ("gelu", "swiglu")

normal = nn.initializers.normal(0.02)


def norm_in(kind: str, dtype: DTypeLike) -> Callable[..., nn.Module]:
    """Returns one of NORMS, eps 1e-5, with statistics in float32 and its result in `dtype`.

    Of bfloat16 the variance is taken in one pass: what cancels in float32 is less than what rounding took before.
    """
    return functools.partial(NORMS[kind], epsilon=1e-5, dtype=dtype, use_fast_variance=jnp.dtype(dtype) == jnp.bfloat16)


class Projection(nn.Module):
    """Queries, keys and values out of one kernel (m, 3, n, p)."""

    num_heads: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t m"], step: bool) -> tuple[Float[Array, "b _ n p"], ...]:
        shape = (3, self.num_heads, x.shape[-1] // self.num_heads)
        kernel = self.param("kernel", normal, (x.shape[-1], *shape)).astype(self.dtype)
        bias = jnp.zeros(shape, self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape).astype(self.dtype)
        return project(x, kernel, bias, step)


class Block(nn.Module):
    """Pre-norm attention and MLP around a residual, in two halves so that a cache may stand between them.

    With `adaln` a condition shifts, scales and gates both branches: adaLN-zero (Peebles and Xie 2023). Its kernel is
    zero at the start, so that the block is the identity. Norms keep their own scales, as in RAR (Yu et al. 2024).
    `causal` promises that the mask is the causal one.
    """

    width: int
    num_heads: int
    norm: str = "layer"
    mlp: str = "gelu"
    qk_norm: bool = False
    bias: bool = True
    dropout: float = 0.0
    attn_dropout: float = 0.0
    adaln: bool = False
    causal: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self):
        dense = dense_in(self.dtype, use_bias=self.bias, kernel_init=normal)
        norm = norm_in(self.norm, self.dtype)
        self.norm1, self.norm2 = norm(), norm()
        self.qkv = Projection(self.num_heads, self.bias, self.dtype)
        self.proj = dense(self.width, axis=(-2, -1))
        if self.qk_norm:
            self.q_norm, self.k_norm = norm(), norm()
        if self.mlp == "swiglu":
            # Two thirds of 4 widths, because it has three kernels for two, rounded up to a multiple of 256.
            hidden = -(-8 * self.width // 3 // 256) * 256
            self.gate, self.up = dense(hidden), dense(hidden)
        else:
            self.up = dense(4 * self.width)
        self.down = dense(self.width)
        self.drop = nn.Dropout(self.dropout)
        if self.adaln:
            self.modulation = dense_in(self.dtype, kernel_init=nn.initializers.zeros)((6, self.width))

    def modulate(self, condition: Float[Array, "b m"] | None) -> Modulation:
        """Returns what the condition does to the block; None without one, as without `adaln`."""
        return None if condition is None else kept(self.modulation(nn.silu(condition)))

    def project(
        self, x: Float[Array, "b t m"], rotations: Rotations | None, modulation: Modulation, *, step: bool = False
    ) -> tuple[Array, Array, Array]:
        """Returns queries, keys and values, each b t n p, of a `step` b 1 n p; the first two rotated, see `rotate`."""
        q, k, v = kept(self.qkv(shift_and_scale(self.norm1(x), modulation, 0), step))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if rotations is None else (rotate(q, rotations), rotate(k, rotations), v)

    def finish(
        self,
        x: Float[Array, "b t m"],
        attended: Float[Array, "b t n p"],
        modulation: Modulation,
        *,
        train: bool = False,
    ) -> Float[Array, "b t m"]:
        """Returns the rest of the block, after attention."""
        x = kept(x + apply_gate(self.drop(self.proj(attended), deterministic=not train), modulation, 2))
        hidden = shift_and_scale(self.norm2(x), modulation, 3)
        if self.mlp == "swiglu":
            hidden = nn.silu(kept(self.gate(hidden))) * kept(self.up(hidden))
        else:
            hidden = gelu(kept(self.up(hidden)))
        return x + apply_gate(self.drop(self.down(hidden), deterministic=not train), modulation, 5)

    def __call__(
        self,
        x: Float[Array, "b t m"],
        mask: Bool[Array, "t t"],
        rotations: Rotations | None,
        train: bool,
        condition: Float[Array, "b m"] | None = None,
    ) -> tuple[Float[Array, "b t m"], None]:
        modulation = self.modulate(condition)
        q, k, v = self.project(x, rotations, modulation)
        if train and self.attn_dropout:
            weights = nn.dot_product_attention_weights(
                q,
                k,
                mask=mask[None, None],
                dropout_rng=self.make_rng("dropout"),
                dropout_rate=self.attn_dropout,
                broadcast_dropout=False,
                deterministic=False,
                dtype=jnp.float32,
                precision=precision_of(q.dtype),
            )
            attended = product("bnts,bsnp->btnp", weights.astype(v.dtype), v)
        else:
            attended = attend(q, k, v, mask[None, None], self.causal)
        return self.finish(x, attended, modulation, train=train), None


@forms.use(forms.project, where=lambda x, kernel, bias, step: not step)
def project(
    x: Float[Array, "b t m"], kernel: Float[Array, "m 3 n p"], bias: Float[Array, "3 n p"], step: bool
) -> tuple[Float[Array, "b _ n p"], ...]:
    """Returns queries, keys and values; of a `step` those of the first position."""
    flat = lambda w: w.reshape(*w.shape[:-2], -1)  # heads side by side
    together = product("btm,mkc->btkc", x, flat(kernel)) + flat(bias)[None, None]
    if step:
        # Without the barrier the compiler would cut the input, and not compute other copies of the position at all.
        together = jax.lax.optimization_barrier(together)[:, :1]
    return tuple(together[:, :, i].reshape(*together.shape[:2], *bias.shape[1:]) for i in range(3))


@forms.use(forms.fused_attention, where=forms.fits_cudnn)
def attend(
    q: Float[Array, "b t n p"],
    k: Float[Array, "b t n p"],
    v: Float[Array, "b t n p"],
    mask: Bool[Array, "_ _ t t"],
    causal: bool,
) -> Float[Array, "b t n p"]:
    """Computes the attention of all positions; `causal` says whether the mask lets each see those before and itself."""
    del causal
    return attention(q, k, v, mask)


@forms.use(forms.gelu)
def gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Computes GELU exactly, as PyTorch does."""
    return jax.nn.gelu(x, approximate=False)


def shift_and_scale(x: Float[Array, "b t m"], modulation: Modulation, row: int) -> Float[Array, "b t m"]:
    """Returns x under the shift in `row` of a modulation and the scale in the next; x itself without a modulation."""
    if modulation is None:
        return x
    return x * (1 + modulation[:, row + 1, None]) + modulation[:, row, None]


def apply_gate(x: Float[Array, "b t m"], modulation: Modulation, row: int) -> Float[Array, "b t m"]:
    """Returns x times the gate in `row` of a modulation; x itself without a modulation."""
    return x if modulation is None else kept(x) * modulation[:, row, None]


def rotate(x: Float[Array, "b t n p"], rotations: Rotations) -> Float[Array, "b t n p"]:
    """Rotates the pairs of neighbouring channels (even, odd) of each head, in float32."""
    even, odd = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    cos, sin = rotations[:, :, 0, None], rotations[:, :, 1, None]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape).astype(x.dtype)
