"""The causal transformer over codes (section 3.2 of the paper): upstream's GPT, and its successors as switches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vqgan_jax.nn import forms
from vqgan_jax.nn.block import MLPS, NORMS, Block, Rotations, attend, norm_in, normal
from vqgan_jax.nn.fields import check_known, derived
from vqgan_jax.nn.network import Place, PriorNetwork
from vqgan_jax.nn.precision import attention, dense_in
from vqgan_jax.nn.remat import REMAT, remat

LEARNED = ("learned", "learned_target")
POSITIONS = (*LEARNED, "rope2d", "rope2d_blank", "rope2d_line")

FEW = 32  # rows of a step, of all devices together: one device may have a single one


class Weights(NamedTuple):
    """A transformer's parameters with the stack of layers taken apart."""

    outer: dict[str, Any]
    layers: tuple[dict[str, Any], ...]


class Cache(NamedTuple):
    """Keys and values of one layer, in the positions that are filled; zeros behind them."""

    keys: Float[Array, "b n t p"]
    values: Float[Array, "b n t p"]

    copies = 1  # of a position that a step of few rows computes, of which it uses the first

    @classmethod
    def start(cls, k: Float[Array, "b s n p"], v: Float[Array, "b s n p"], length: int) -> "Cache":
        """Returns the cache of the first positions, with room for `length`."""
        fill = lambda x: jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, length - x.shape[1]), (0, 0)))
        return cls(fill(k), fill(v))

    def put(self, k: Float[Array, "b 1 n p"], v: Float[Array, "b 1 n p"], position: Int[Array, ""]) -> "Cache":
        """Returns the cache with one position written."""
        write = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, jnp.swapaxes(new, 1, 2), position, axis=2)
        return Cache(write(self.keys, k), write(self.values, v))

    def attend(self, q: Float[Array, "b 1 n p"], position: Int[Array, ""]) -> Float[Array, "b 1 n p"]:
        """Computes the attention of one position over positions 0 to `position`."""
        visible = (jnp.arange(self.keys.shape[2]) <= position)[None, None, None]
        return attention(q, jnp.swapaxes(self.keys, 1, 2), jnp.swapaxes(self.values, 1, 2), visible)


class Transformer(PriorNetwork):
    """Tokens to logits of the next one. In training the layers are one scan: any depth compiles once.

    In the cached step each layer has a cache of its own, allocated once and updated in place. A scan over the layers
    would copy the whole cache and slice all weights at every token.

    Attributes:
      depth, width, num_heads: layers, channels and heads.
      bidirectional_prefix: so many first positions see each other both ways.
      norm, mlp: names of NORMS and MLPS.
      positions: "learned", one vector a position; "learned_target", another one for the position of the token to be
        predicted, too, so that tokens may come in any order (Yu et al. 2024); or "rope2d", "rope2d_blank" and
        "rope2d_line", which rotate queries and keys by `coordinates`. Only under "rope2d" do the tokens of a layout
        stand where they say: priors of "rope2d_line" were trained before that, with these tokens in a line to the left
        of the image.
      qk_norm: normalises queries and keys, head by head.
      bias: of the kernels; the head has none.
      dropout: of embeddings and both residual branches.
      attn_dropout: of attention weights; above 0, training leaves the fused form of `attend`.
      adaln: the embedding of the class, the only token of the prefix, shifts, scales and gates each block; see `Block`.
      remat: what the backward pass computes again, a name of REMAT.
      coordinates: row and column in the grid of each position of the input, for 2-D rotary positions only. None, which
        "rope2d_blank" gives to a prefix, makes queries and keys there zero, as LlamaGen's models were trained.
      cache: class of each layer's cache, `Cache` or a form of it.
    """

    takes_muon = True

    depth: int = 24
    width: int = 1024
    num_heads: int = 16
    bidirectional_prefix: int = 0
    norm: str = "rms"
    mlp: str = "swiglu"
    positions: str = "rope2d"
    qk_norm: bool = True
    bias: bool = False
    dropout: float = 0.1
    attn_dropout: float = 0.0
    adaln: bool = False
    remat: str = "dots"
    coordinates: tuple[Place | None, ...] = derived(())
    cache: type = derived(Cache)

    def check(self) -> None:
        """Raises ValueError for an unknown choice, or a width that its heads do not divide."""
        check_known("transformer.norm", self.norm, NORMS)
        check_known("transformer.mlp", self.mlp, MLPS)
        check_known("transformer.positions", self.positions, POSITIONS)
        check_known("transformer.remat", self.remat, REMAT)
        heads = self.num_heads if self.positions in LEARNED else 4 * self.num_heads
        if self.width % heads:
            raise ValueError(
                f"`config.transformer.width` must be a multiple of {heads}, which num_heads and positions ask for; got "
                f"{self.width}. Set it to {-(-self.width // heads) * heads}."
            )

    @property
    def summary(self) -> str:
        """Returns its size in a few words."""
        return f"{self.depth} layers of {self.width}, {self.num_heads} heads"

    @property
    def takes_places(self) -> bool:
        """Returns whether the tokens of a layout stand where they say."""
        return self.positions == "rope2d"

    @property
    def takes_order(self) -> bool:
        """Returns whether each token knows which one it predicts, so that they may come in any order."""
        return self.positions == "learned_target"

    def bind(self, *, vocab_size: int, extra_vocab: int, prefix: list[Place], codes: list[Place]) -> "Transformer":
        """Returns the network of a run; see `PriorNetwork.bind`."""
        if self.bidirectional_prefix > len(prefix):
            raise ValueError(
                f"`config.transformer.bidirectional_prefix` must end with the condition, which has {len(prefix)} "
                f"tokens: codes that see each other have nothing to predict; got {self.bidirectional_prefix}. Lower it."
            )
        if self.adaln and len(prefix) != 1:
            raise ValueError(
                "`config.condition.kind` must be 'class' or 'none' for transformer.adaln, which takes a condition of 1 "
                f"token; this one has {len(prefix)}. Set adaln to False."
            )
        bound: Any = super().bind(vocab_size=vocab_size, extra_vocab=extra_vocab, prefix=prefix, codes=codes)
        if self.positions in LEARNED:
            return bound
        before = [None] * len(prefix) if self.positions == "rope2d_blank" else prefix
        return bound.clone(coordinates=(*before, *codes[:-1]))

    def without_remat(self) -> "Transformer":
        """Returns the network that computes nothing twice in a backward pass."""
        return self.clone(remat="none")

    def setup(self):
        self.embedding = self.param("embedding", normal, (self.vocab_size + self.extra_vocab, self.width))
        shape = (self.max_len + self.takes_order, self.width)  # in another order the last token may be an input, too
        if self.positions in LEARNED:
            self.position_embedding = self.param("positions", nn.initializers.zeros, shape)
        if self.takes_order:
            self.target_embedding = self.param("targets", nn.initializers.zeros, shape)
        self.drop = nn.Dropout(self.dropout)
        stack = nn.scan(
            remat(Block, self.remat, static=4, scanned=True),  # argument 4 is `train`
            length=self.depth,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast,) * 4,  # type: ignore[arg-type]
        )
        self.layers = stack(**self.block_fields)
        self.norm_out = norm_in(self.norm, self.dtype)(name="norm")
        self.head = dense_in(self.dtype, use_bias=False, kernel_init=normal)(self.vocab_size)

    @property
    def block_fields(self) -> dict:
        """The fields of each of its blocks."""
        names = ("width", "num_heads", "norm", "mlp", "qk_norm", "bias", "dropout", "attn_dropout", "adaln", "dtype")
        return {name: getattr(self, name) for name in names} | {"causal": self.bidirectional_prefix <= 1}

    def rotations(
        self, start: int | Int[Array, ""], length: int, places: Float[Array, "b s 2"] | None = None
    ) -> Rotations | None:
        """Returns the rotations of `length` positions from `start` on; None with learned positions.

        Where a position stands nowhere they are zero. `places`: see `__call__`, only with a start of 0.
        """
        if self.positions in LEARNED:
            return None
        coordinates = np.array([place or (0, 0) for place in self.coordinates])
        somewhere = np.array([place is not None for place in self.coordinates])[:, None, None]
        angles = self.angles(coordinates)
        table = (np.stack([np.cos(angles), np.sin(angles)], axis=-2) * somewhere).astype(np.float32)
        rotations = jax.lax.dynamic_slice_in_dim(jnp.asarray(table), start, length)[None]
        if places is None:
            return rotations
        angles = self.angles(places)
        own = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-2)
        rest = rotations[:, places.shape[1] :]
        return jnp.concatenate([own, jnp.broadcast_to(rest, (len(own), *rest.shape[1:]))], axis=1)

    def angles(self, places: Any) -> Any:
        """Returns the angles of the pairs of a head's channels at places (... 2), half by row and half by column."""
        pairs = self.width // self.num_heads // 4
        rates = 10_000.0 ** (-np.arange(pairs) / pairs)
        return (places.reshape(-1, 1) * rates[None]).reshape(*places.shape[:-1], 2 * pairs)

    def embed(
        self,
        tokens: Int[Array, "b t"],
        start: int | Int[Array, ""] = 0,
        *,
        at: Int[Array, "b _"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b t m"]:
        """Returns the embeddings of tokens that stand at `start` and after, or where `at` says; see `__call__`."""
        length = tokens.shape[1]

        def rows(table: Array, ahead: int) -> Array:
            """Those of each token's position, or of the position of the token ahead."""
            if at is None:
                return jax.lax.dynamic_slice_in_dim(table, start + ahead, length)[None]
            return table[at[:, ahead : ahead + length]]

        x = self.embedding[tokens]
        if self.positions in LEARNED:
            x = x + rows(self.position_embedding, 0)
        if self.takes_order:
            x = x + rows(self.target_embedding, 1)
        return self.drop(x.astype(self.dtype), deterministic=not train)

    def condition(self, tokens: Int[Array, "b t"]) -> Float[Array, "b m"] | None:
        """Returns the embedding of the first token, which modulates the blocks; None without `adaln`."""
        return self.embedding[tokens[:, 0]].astype(self.dtype) if self.adaln else None

    def readout(self, x: Float[Array, "b t m"]) -> Float[Array, "b t v"]:
        """Returns float32 logits."""
        return self.head(self.norm_out(x)).astype(jnp.float32)

    def __call__(
        self,
        tokens: Int[Array, "b t"],
        *,
        places: Float[Array, "b s 2"] | None = None,
        at: Int[Array, "b _"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b t v"]:
        """Returns the logits of the token after each.

        Args:
          tokens: prefix and tokens.
          places: row and column where the first positions of each example stand, instead of `coordinates`; they need
            2-D rotary positions.
          at: position of each token, and of the one behind the last (b t+1); None is 0 to t. It needs `takes_order`.
          train: with dropout.

        Raises:
          ValueError: the input is too long.
        """
        length = tokens.shape[1]
        if length > self.max_len:
            raise ValueError(f"the input must have at most max_len {self.max_len} tokens; got {length}. Cut it.")
        x, condition = self.embed(tokens, at=at, train=train), self.condition(tokens)
        if self.rows is not None:
            x, condition = jax.lax.with_sharding_constraint((x, condition), self.rows)
        mask, rotations = causal_mask(length, self.bidirectional_prefix), self.rotations(0, length, places)
        x, _ = self.layers(x, mask, rotations, train, condition)
        return self.readout(x)

    # One token at a time

    @nn.nowrap
    def on_this_platform(self, run: Callable[[PriorNetwork], Any]) -> Any:
        """Returns `run` of the network with the cache for the platform of the program; see `PriorNetwork`."""
        return forms.choose_cache(lambda cache: run(self.clone(cache=cache)), Cache)

    @nn.nowrap
    def prepare(self, params: dict[str, Any]) -> Weights:
        """Returns the parameters of each layer apart, those of products in their dtype; see `PriorNetwork.prepare`."""
        is_product = lambda node: isinstance(node, dict) and "kernel" in node
        cast = lambda node: jax.tree.map(lambda x: x.astype(self.dtype), node) if is_product(node) else node
        params = jax.tree.map(cast, params, is_leaf=is_product)
        outer = {name: leaf for name, leaf in params.items() if name != "layers"}
        layers = tuple(jax.tree.map(lambda leaf: leaf[i], params["layers"]) for i in range(self.depth))  # noqa: B023
        return Weights(outer, layers)

    @nn.nowrap
    def prefill(
        self,
        weights: Weights,
        prefix: Int[Array, "b s"],
        length: int,
        places: Float[Array, "b p 2"] | None = None,
        last: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "b v"], tuple[Any, ...]]:
        """Runs the whole prefix and keeps each layer's keys, values and modulation; see `PriorNetwork.prefill`."""
        outer, block = {"params": weights.outer}, Block(**self.block_fields)
        mask = causal_mask(prefix.shape[1], self.bidirectional_prefix)[None, None]
        rotations, cache = self.rotations(0, prefix.shape[1], places), []
        x: Any = self.apply(outer, prefix, method="embed")
        condition = self.apply(outer, prefix, method="condition")
        for params in weights.layers:
            modulation = block.apply({"params": params}, condition, method="modulate")
            projected: Any = block.apply({"params": params}, x, rotations, modulation, method="project")
            q, k, v = projected
            cache.append((self.cache.start(k, v, length), modulation))
            attended = attend(q, k, v, mask, block.causal)
            x = block.apply({"params": params}, x, attended, modulation, method="finish")
        x = x[:, -1:] if last is None else jax.lax.dynamic_slice_in_dim(x, last, 1, axis=1)
        logits: Any = self.apply(outer, x, method="readout")
        return logits[:, 0], tuple(cache)

    @nn.nowrap
    def step(
        self, weights: Weights, cache: tuple[Any, ...], tokens: Int[Array, "b"], position: Int[Array, ""]
    ) -> tuple[Float[Array, "b v"], tuple[Any, ...]]:
        """Feeds one token, which sees every position before and itself; see `PriorNetwork.step`."""
        outer, block = {"params": weights.outer}, Block(**self.block_fields)
        rotations, filled = self.rotations(position, 1), []
        many = isinstance(tokens.shape[0], int) and tokens.shape[0] > FEW  # in an export a symbol
        copies = lambda x: jnp.broadcast_to(x, (x.shape[0], 1 if many else self.cache.copies, *x.shape[2:]))
        x: Any = copies(self.apply(outer, tokens[:, None], position, method="embed"))
        for params, (layer, modulation) in zip(weights.layers, cache, strict=True):
            projected: Any = block.apply({"params": params}, x, rotations, modulation, step=True, method="project")
            q, k, v = projected
            layer = layer.put(k, v, position)
            filled.append((layer, modulation))
            x = block.apply({"params": params}, x, copies(layer.attend(q, position)), modulation, method="finish")
        logits: Any = self.apply(outer, x, method="readout")
        return logits[:, 0], tuple(filled)


def causal_mask(length: int, bidirectional_prefix: int = 0) -> Bool[Array, "t t"]:
    """True where position t may see position s: s <= t, or both within the prefix."""
    position = np.arange(length)
    prefix = position < bidirectional_prefix
    return jnp.asarray((position[:, None] >= position[None]) | (prefix[:, None] & prefix[None]))
