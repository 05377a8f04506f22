"""One token at a time: the transformer with a cache of keys and values, allocated once and updated in place.

Each layer has arrays of its own. A scan over stacked layers would copy the whole cache and slice all weights at every
token; separate arrays in the carry of the loop over tokens stay where they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqgan_jax.nn.transformer import Block, Transformer, causal_mask

CHUNK = 64  # attention reads the filled part of the cache, rounded up to a multiple of this


class Weights(NamedTuple):
    """A transformer's parameters with the stack of layers taken apart."""

    outer: dict[str, Any]
    layers: tuple[dict[str, Any], ...]


class Cache(NamedTuple):
    """Keys and values of each layer, b n t p; positions that are not filled yet hold zeros."""

    keys: tuple[Float[Array, "b n t p"], ...]
    values: tuple[Float[Array, "b n t p"], ...]


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
    module: Transformer, weights: Weights, prefix: Int[Array, "b s"], length: int
) -> tuple[Float[Array, "b v"], Cache]:
    """Runs the whole prefix.

    Args:
      module: static.
      weights: from `unstack`.
      prefix: the condition's tokens, at least one.
      length: positions that the cache shall hold.

    Returns:
      Logits of the token after the prefix, and the filled cache.
    """
    mask = causal_mask(prefix.shape[1], module.bidirectional_prefix)[None, None]
    keys, values = [], []

    def attend(_: int, q: Array, k: Array, v: Array) -> Array:
        for cache, new in ((keys, k), (values, v)):
            cache.append(jnp.pad(jnp.swapaxes(new, 1, 2), ((0, 0), (0, 0), (0, length - new.shape[1]), (0, 0))))
        return jax.nn.dot_product_attention(q, k, v, mask=mask)

    logits = forward(module, weights, prefix, 0, attend)
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
        put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, jnp.swapaxes(new, 1, 2), position, axis=2)
        keys[layer], values[layer] = put(keys[layer], k), put(values[layer], v)
        return attend_filled(q[:, 0], keys[layer], values[layer], position)[:, None]

    logits = forward(module, weights, tokens[:, None], position, attend)
    return logits, Cache(tuple(keys), tuple(values))


def forward(
    module: Transformer,
    weights: Weights,
    tokens: Int[Array, "b t"],
    start: int | Int[Array, ""],
    attend: Callable[[int, Array, Array, Array], Array],
) -> Float[Array, "b v"]:
    """The layers one after the other, with `attend(layer, q, k, v)` between the halves; logits of the last position."""
    block = Block(**module.block_fields)
    angles = module.angles
    if angles is not None:
        angles = jax.lax.dynamic_slice_in_dim(jnp.asarray(angles), start, tokens.shape[1])
    x: Any = module.apply({"params": weights.outer}, tokens, start, method="embed")
    for layer, params in enumerate(weights.layers):
        q, k, v = block.apply({"params": params}, x, angles, method="project")
        x = block.apply({"params": params}, x, attend(layer, q, k, v), method="finish")
    logits: Any = module.apply({"params": weights.outer}, x[:, -1:], method="readout")
    return logits[:, 0]


def attend_filled(
    q: Float[Array, "b n p"], keys: Float[Array, "b n t p"], values: Float[Array, "b n t p"], position: Int[Array, ""]
) -> Float[Array, "b n p"]:
    """Attention of one query over positions 0 to `position`; what lies behind the next full chunk is not even read."""
    length = keys.shape[2]

    def over(filled: int) -> Callable[..., Array]:
        def attend(q: Array, keys: Array, values: Array, position: Array) -> Array:
            keys, values = keys[:, :, :filled], values[:, :, :filled]
            logits = jnp.einsum("bnp,bntp->bnt", q, keys, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
            seen = jnp.arange(filled) <= position
            weights = jax.nn.softmax(jnp.where(seen[None, None], logits, -jnp.inf), axis=-1)
            return jnp.einsum("bnt,bntp->bnp", weights.astype(values.dtype), values)

        return attend

    branches = [over(min(filled + CHUNK, length)) for filled in range(0, length, CHUNK)]
    return jax.lax.switch(position // CHUNK, branches, q, keys, values, position)
