"""The causal transformer over codes (section 3.2 of the paper): upstream's GPT, and its successors as switches."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vqgan_jax.nn.fields import check_known, derived
from vqgan_jax.nn.precision import attention, dense_in, precision_of, product

Turns = Float[Array, "_ 2 _"] | Float[Array, "b _ 2 _"]  # of every position or, in a cached step, of the first

NORMS = ("layer", "rms")
MLPS = ("gelu", "swiglu")
POSITIONS = ("learned", "rope2d", "rope2d_blank", "rope2d_line")
REMAT = {
    "none": None,
    # Products of a kernel with their biases, and the statistics of norms: what is given to `kept`.
    "dots": jax.checkpoint_policies.save_only_these_names("kept"),
    "full": jax.checkpoint_policies.nothing_saveable,
}

normal = nn.initializers.normal(0.02)
kept = functools.partial(checkpoint_name, name="kept")  # for the backward pass, under remat "dots"


class Norm(nn.Module):
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over channels, eps 1e-5, float32 statistics.

    The statistics are kept for the backward pass, which would compute those of `flax.linen` again. Of bfloat16 they are
    taken in one pass: what cancels there in float32 is less than what rounding took from x.
    """

    kind: str = "layer"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        channels = (1,) * (x.ndim - 1) + (-1,)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:]).reshape(channels)
        wide, centred = x.astype(jnp.float32), self.kind == "layer"
        mean = wide.mean(-1, keepdims=True) if centred else jnp.zeros((*x.shape[:-1], 1))
        if x.dtype == jnp.bfloat16:
            variance = jnp.maximum(jnp.square(wide).mean(-1, keepdims=True) - jnp.square(mean), 0.0)
        else:
            variance = jnp.square(wide - mean).mean(-1, keepdims=True)
        mean, variance = kept((mean, variance))
        y = (wide - mean) * (jax.lax.rsqrt(variance + 1e-5) * scale)
        if centred:
            y = y + self.param("bias", nn.initializers.zeros, x.shape[-1:]).reshape(channels)
        return y.astype(self.dtype)


class Projection(nn.Module):
    """Queries, keys and values out of one kernel (m, 3, n, p).

    Of a sequence in three products, so that each is written as attention reads it: no copy, and on a TPU the bias is
    added on the way. Of a cached step in one, which reads the kernel as it lies, and then only of its first position.
    """

    num_heads: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t m"], *, step: bool = False) -> tuple[Float[Array, "b _ n p"], ...]:
        shape = (3, self.num_heads, x.shape[-1] // self.num_heads)
        kernel = self.param("kernel", normal, (x.shape[-1], *shape)).astype(self.dtype)
        bias = jnp.zeros(shape, self.dtype)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, shape).astype(self.dtype)
        if step:
            flat = lambda w: w.reshape(*w.shape[:-2], -1)  # heads side by side, which `tensor` cuts alike
            together = product("btm,mkc->btkc", x, flat(kernel)) + flat(bias)[None, None]
            # Without the barrier the compiler would cut the input, and not compute the second position at all.
            first = jax.lax.optimization_barrier(together)[:, :1]
            return tuple(first[:, :, i].reshape(x.shape[0], 1, *shape[1:]) for i in range(3))
        return tuple(product("btm,mnp->btnp", x, kernel[:, i]) + bias[i][None, None] for i in range(3))


class Block(nn.Module):
    """Pre-norm attention and MLP around a residual, in two halves so that a cache may stand between them."""

    width: int
    num_heads: int
    norm: str = "layer"
    mlp: str = "gelu"
    qk_norm: bool = False
    bias: bool = True
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32

    def setup(self):
        dense = dense_in(self.dtype, use_bias=self.bias, kernel_init=normal)
        norm = functools.partial(Norm, self.norm, self.dtype)
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

    def project(
        self, x: Float[Array, "b t m"], turns: Turns | None, *, step: bool = False
    ) -> tuple[Array, Array, Array]:
        """Queries, keys and values, each b t n p, of a step b 1 n p; the first two turned by `turns`, see `rotate`."""
        q, k, v = kept(self.qkv(self.norm1(x), step=step))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if turns is None else (rotate(q, turns), rotate(k, turns), v)

    def finish(
        self, x: Float[Array, "b t m"], attended: Float[Array, "b t n p"], *, train: bool = False
    ) -> Float[Array, "b t m"]:
        """The rest of the block, after attention."""
        x = kept(x + self.drop(self.proj(attended), deterministic=not train))
        hidden = self.norm2(x)
        if self.mlp == "swiglu":
            hidden = nn.silu(kept(self.gate(hidden))) * kept(self.up(hidden))
        else:
            hidden = gelu(kept(self.up(hidden)))
        return x + self.drop(self.down(hidden), deterministic=not train)

    def __call__(
        self, x: Float[Array, "b t m"], mask: Bool[Array, "t t"], turns: Turns | None, train: bool
    ) -> tuple[Float[Array, "b t m"], None]:
        q, k, v = self.project(x, turns)
        if train and self.dropout:
            weights = nn.dot_product_attention_weights(
                q,
                k,
                mask=mask[None, None],
                dropout_rng=self.make_rng("dropout"),
                dropout_rate=self.dropout,
                broadcast_dropout=False,
                deterministic=False,
                dtype=jnp.float32,
                precision=precision_of(q.dtype),
            )
            attended = product("bnts,bsnp->btnp", weights.astype(v.dtype), v)
        else:
            attended = attention(q, k, v, mask[None, None])
        return self.finish(x, attended, train=train), None


class Transformer(nn.Module):
    """Tokens to logits of the next one. In training the layers are one scan: any depth compiles once.

    Its fields down to dtype are the keys of the config's section `transformer`; `Stage2.make_transformer`
    fills in the rest.

    Attributes:
      depth, width, num_heads: layers, channels and heads.
      max_len: longest input: prefix and tokens, without the last one; in a config 0 is as long as needed.
      bidirectional_prefix: so many first positions see each other both ways.
      order: in which codes are tokens, a name of `ordering.ORDERS`; the network itself does not read it.
      norm, mlp: names of NORMS and MLPS.
      positions: "learned", one vector a position, or "rope2d", "rope2d_blank" and "rope2d_line", which turn queries and
        keys by `coordinates`. Only under "rope2d" do the tokens of a layout stand where they say instead: `places`.
      qk_norm: normalises queries and keys, head by head.
      bias: of the kernels; the head has none.
      dropout: of embeddings, attention weights and both residual branches.
      remat: what the backward pass computes again, a name of REMAT.
      dtype: of products and activations; softmax, statistics of norms and logits are float32.
      vocab_size: tokens that can be predicted.
      extra_vocab: rows of the embedding behind the vocabulary, for a prefix that shares no row with the codes.
      coordinates: row and column in the grid of each position of the input, for 2-D rotary positions only. None, which
        "rope2d_blank" gives to a prefix, makes queries and keys there zero, as LlamaGen's models were trained.
      rows: how a whole forward pass lies on the devices: cut like the batch. Left to itself XLA's partitioner follows
        the embedding, which FSDP cuts along its width, and every layer sums activations over the devices.
    """

    depth: int = 24
    width: int = 1024
    num_heads: int = 16
    max_len: int = 0
    bidirectional_prefix: int = 0
    order: str = "raster"
    norm: str = "rms"
    mlp: str = "swiglu"
    positions: str = "rope2d"
    qk_norm: bool = True
    bias: bool = False
    dropout: float = 0.1
    remat: str = "dots"
    dtype: DTypeLike = "bfloat16"
    vocab_size: int = derived(0)
    extra_vocab: int = derived(0)
    coordinates: tuple[tuple[int, int] | None, ...] = derived(())
    rows: jax.sharding.NamedSharding | None = derived(None)

    def check(self) -> None:
        """Raises ValueError for an unknown choice, or a width that its heads do not divide."""
        check_known("transformer.norm", self.norm, NORMS)
        check_known("transformer.mlp", self.mlp, MLPS)
        check_known("transformer.positions", self.positions, POSITIONS)
        check_known("transformer.remat", self.remat, REMAT)
        heads = self.num_heads if self.positions == "learned" else 4 * self.num_heads
        if self.width % heads:
            raise ValueError(
                f"`config.transformer.width` must be a multiple of {heads}, which num_heads and positions ask for; got "
                f"{self.width}. Set it to {-(-self.width // heads) * heads}."
            )

    def setup(self):
        self.embedding = self.param("embedding", normal, (self.vocab_size + self.extra_vocab, self.width))
        if self.positions == "learned":
            self.position_embedding = self.param("positions", nn.initializers.zeros, (self.max_len, self.width))
        self.drop = nn.Dropout(self.dropout)
        block = Block
        if self.remat != "none":
            # Argument 4, counted from `self`, is `train`. In a scan no barrier against common subexpressions is needed.
            block = nn.remat(Block, prevent_cse=False, policy=REMAT[self.remat], static_argnums=(4,))
        stack = nn.scan(
            block,
            length=self.depth,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast),  # type: ignore[arg-type]
        )
        self.layers = stack(**self.block_fields)
        self.norm_out = Norm(self.norm, self.dtype, name="norm")
        self.head = dense_in(self.dtype, use_bias=False, kernel_init=normal)(self.vocab_size)

    @property
    def block_fields(self) -> dict:
        """The fields of each of its blocks."""
        names = ("width", "num_heads", "norm", "mlp", "qk_norm", "bias", "dropout", "dtype")
        return {name: getattr(self, name) for name in names}

    @property
    def turns(self) -> Float[np.ndarray, "t 2 _"] | None:
        """Cosine and sine of each position's rotations, zero where it has no place; None with learned positions."""
        if self.positions == "learned":
            return None
        angles = self.angles(np.array([place or (0, 0) for place in self.coordinates]))
        known = np.array([place is not None for place in self.coordinates])[:, None, None]
        return (np.stack([np.cos(angles), np.sin(angles)], axis=-2) * known).astype(np.float32)

    def angles(self, places: Any) -> Any:
        """By which the pairs of a head's channels turn at places (... 2), half of them by row and half by column."""
        pairs = self.width // self.num_heads // 4
        rates = 10_000.0 ** (-np.arange(pairs) / pairs)
        return (places.reshape(-1, 1) * rates[None]).reshape(*places.shape[:-1], 2 * pairs)

    def turns_at(
        self, start: int | Int[Array, ""], length: int, places: Float[Array, "b s 2"] | None = None
    ) -> Turns | None:
        """Those of `length` positions from `start` on; `places`: see `__call__`, only with a start of 0."""
        if self.turns is None:
            return None
        turns = jax.lax.dynamic_slice_in_dim(jnp.asarray(self.turns), start, length)
        if places is None:
            return turns
        angles = self.angles(places)
        own = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-2)
        rest = turns[places.shape[1] :]
        return jnp.concatenate([own, jnp.broadcast_to(rest[None], (len(own), *rest.shape))], axis=1)

    def embed(
        self, tokens: Int[Array, "b t"], start: int | Int[Array, ""] = 0, *, train: bool = False
    ) -> Float[Array, "b t m"]:
        """Embeds tokens that stand at `start` and after."""
        x = self.embedding[tokens]
        if self.positions == "learned":
            x = x + jax.lax.dynamic_slice_in_dim(self.position_embedding, start, tokens.shape[1])[None]
        return self.drop(x.astype(self.dtype), deterministic=not train)

    def readout(self, x: Float[Array, "b t m"]) -> Float[Array, "b t v"]:
        """Float32 logits."""
        return self.head(self.norm_out(x)).astype(jnp.float32)

    def __call__(
        self, tokens: Int[Array, "b t"], *, places: Float[Array, "b s 2"] | None = None, train: bool = False
    ) -> Float[Array, "b t v"]:
        """Logits of the token after each.

        Args:
          tokens: prefix and tokens.
          places: row and column where the first positions of each example stand, instead of `coordinates`; they need
            2-D rotary positions.
          train: with dropout.

        Raises:
          ValueError: the input is too long.
        """
        length = tokens.shape[1]
        if length > self.max_len:
            raise ValueError(f"the input must have at most max_len {self.max_len} tokens; got {length}. Cut it.")
        x = self.embed(tokens, train=train)
        x = x if self.rows is None else jax.lax.with_sharding_constraint(x, self.rows)
        x, _ = self.layers(x, causal_mask(length, self.bidirectional_prefix), self.turns_at(0, length, places), train)
        return self.readout(x)


def gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Exact, by erf in float32, as PyTorch computes it; `jax.nn.gelu` takes erfc, which costs a TPU twice as much."""
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1.0 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def causal_mask(length: int, bidirectional_prefix: int = 0) -> Bool[Array, "t t"]:
    """True where position t may see position s: s <= t, or both within the prefix."""
    position = np.arange(length)
    prefix = position < bidirectional_prefix
    return jnp.asarray((position[:, None] >= position[None]) | (prefix[:, None] & prefix[None]))


def rotate(x: Float[Array, "b t n p"], turns: Turns) -> Float[Array, "b t n p"]:
    """Turns the pairs of neighbouring channels (even, odd) of each head, in float32; `turns` are cosines and sines."""
    even, odd = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    cos, sin = jnp.moveaxis(turns.reshape(-1, *turns.shape[-3:]), 2, 0)[:, :, :, None]
    return jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape).astype(x.dtype)
