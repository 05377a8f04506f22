"""One token at a time: the transformer with a cache of keys and values, allocated once and updated in place.

Each layer has arrays of its own. A scan over stacked layers would copy the whole cache and slice all weights at every
token; separate arrays in the carry of the loop over tokens stay where they are. For the same reason a layer's cache is
cut into parts along its positions: reading only the filled part of one array would copy it first.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqgan_jax.nn.transformer import Block, Transformer, Turns, causal_mask

PARTS = 4  # of a cache; those behind the current position are not read, which saves three eighths on average
Parts = tuple[Float[Array, "b n t p"], ...]


class Weights(NamedTuple):
    """A transformer's parameters with the stack of layers taken apart."""

    outer: dict[str, Any]
    layers: tuple[dict[str, Any], ...]


class Cache(NamedTuple):
    """Keys and values of each layer; positions that are not filled yet hold zeros."""

    keys: tuple[Parts, ...]
    values: tuple[Parts, ...]


def unstack(module: Transformer, params: dict[str, Any]) -> Weights:
    """Parameters for `prefill` and `step`; do it once, outside the loop over tokens."""
    # Products would cast their kernels at every token.
    kernel = lambda path: jax.tree_util.keystr(path[-1:], simple=True) == "kernel"
    cast = lambda path, leaf: leaf.astype(module.dtype) if kernel(path) else leaf
    params = jax.tree_util.tree_map_with_path(cast, params)
    outer = {name: leaf for name, leaf in params.items() if name != "layers"}
    layers = tuple(jax.tree.map(lambda leaf: leaf[i], params["layers"]) for i in range(module.depth))  # noqa: B023
    return Weights(outer, layers)


def prefill(
    module: Transformer,
    weights: Weights,
    prefix: Int[Array, "b s"],
    length: int,
    places: Float[Array, "b p 2"] | None = None,
) -> tuple[Float[Array, "b v"], Cache]:
    """Runs the whole prefix.

    Args:
      module: static.
      weights: from `unstack`.
      prefix: the condition's tokens, at least one.
      length: positions that the cache shall hold.
      places: see `Transformer.__call__`.

    Returns:
      Logits of the token after the prefix, and the filled cache.
    """
    mask = causal_mask(prefix.shape[1], module.bidirectional_prefix)[None, None]
    keys, values = [], []

    def attend(_: int, q: Array, k: Array, v: Array) -> Array:
        keys.append(split(k, length))
        values.append(split(v, length))
        return jax.nn.dot_product_attention(q, k, v, mask=mask)

    turns = module.turns_at(0, prefix.shape[1], places)
    logits = forward(module, weights, prefix, 0, turns, attend)
    return logits, Cache(tuple(keys), tuple(values))


def step(
    module: Transformer, weights: Weights, cache: Cache, tokens: Int[Array, "b"], position: Int[Array, ""]
) -> tuple[Float[Array, "b v"], Cache]:
    """Feeds one token at `position`, behind the prefix: it sees every position before and itself.

    Returns:
      Logits of the next token, and the cache with this one in it.
    """
    keys, values = list(cache.keys), list(cache.values)

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        keys[layer], values[layer] = put(keys[layer], k, position), put(values[layer], v, position)
        return attend_filled(q[:, 0], keys[layer], values[layer], position)[:, None]

    logits = forward(module, weights, tokens[:, None], position, module.turns_at(position, 1), attend)
    return logits, Cache(tuple(keys), tuple(values))


def forward(
    module: Transformer,
    weights: Weights,
    tokens: Int[Array, "b t"],
    start: int | Int[Array, ""],
    turns: Turns | None,
    attend: Callable[[int, Array, Array, Array], Array],
) -> Float[Array, "b v"]:
    """The layers one after the other, with `attend(layer, q, k, v)` between the halves; logits of the last position."""
    block = Block(**module.block_fields)
    x: Any = module.apply({"params": weights.outer}, tokens, start, method="embed")
    for layer, params in enumerate(weights.layers):
        projected: Any = block.apply({"params": params}, x, turns, method="project")
        q, k, v = projected
        x = block.apply({"params": params}, x, attend(layer, q, k, v), method="finish")
    logits: Any = module.apply({"params": weights.outer}, x[:, -1:], method="readout")
    return logits[:, 0]


def split(x: Float[Array, "b s n p"], length: int) -> Parts:
    """Positions 0 to s of a cache that holds at least `length` of them, in equal parts."""
    size = -(-length // PARTS)
    x = jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, PARTS * size - x.shape[1]), (0, 0)))
    return tuple(jnp.split(x, PARTS, axis=2))


def put(parts: Parts, new: Float[Array, "b 1 n p"], position: Int[Array, ""]) -> Parts:
    """The cache with one position written, in place; the other parts get a row of theirs back."""
    size = parts[0].shape[2]

    def write(i: int, part: Array) -> Array:
        old = jax.lax.dynamic_slice_in_dim(part, position % size, 1, axis=2)
        row = jnp.where(position // size == i, jnp.swapaxes(new, 1, 2), old)
        return jax.lax.dynamic_update_slice_in_dim(part, row, position % size, axis=2)

    return tuple(write(i, part) for i, part in enumerate(parts))


def attend_filled(
    q: Float[Array, "b n p"], keys: Parts, values: Parts, position: Int[Array, ""]
) -> Float[Array, "b n p"]:
    """Attention of one query over positions 0 to `position`; parts that lie behind are not even read."""
    size = keys[0].shape[2]

    def product(equation: str, i: int, x: Array, part: Array) -> Array:
        """Of x and part i, in float32; zeros where no position of the part is filled."""
        einsum = lambda x, part: jnp.einsum(equation, x, part, preferred_element_type=jnp.float32)
        zeros = lambda x, part: jnp.zeros(jax.eval_shape(einsum, x, part).shape, jnp.float32)
        return jax.lax.cond(position >= i * size, einsum, zeros, x, part)

    logits = jnp.concatenate([product("bnp,bntp->bnt", i, q, part) for i, part in enumerate(keys)], axis=-1)
    seen = jnp.arange(logits.shape[-1]) <= position
    weights = jax.nn.softmax(jnp.where(seen[None, None], logits * q.shape[-1] ** -0.5, -jnp.inf), axis=-1)
    weights = jnp.split(weights.astype(q.dtype), len(values), axis=-1)
    attended = [product("bnt,bntp->bnp", i, x, part) for i, (x, part) in enumerate(zip(weights, values, strict=True))]
    return sum(attended[1:], attended[0]).astype(q.dtype)
