"""One token at a time: the transformer with a cache of keys and values, allocated once and updated in place.

Each layer has arrays of its own. A scan over stacked layers would copy the whole cache and slice all weights at every
token; separate arrays in the carry of the loop over tokens stay where they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqgan_jax.nn.caches import Form
from vqgan_jax.nn.precision import attention
from vqgan_jax.nn.transformer import Block, Transformer, Turns, causal_mask

FEW = 32  # rows, of all devices together: one device may have a single one


class Weights(NamedTuple):
    """A transformer's parameters with the stack of layers taken apart."""

    outer: dict[str, Any]
    layers: tuple[dict[str, Any], ...]


class Cache(NamedTuple):
    """Keys and values of each layer, in one `caches.Form`; positions that are not filled yet hold zeros."""

    keys: tuple[Any, ...]
    values: tuple[Any, ...]


def unstack(module: Transformer, params: dict[str, Any]) -> Weights:
    """Parameters for `prefill` and `step`; do it once, outside the loop over tokens."""
    # Products would cast their kernels and biases at every token.
    product = lambda node: isinstance(node, dict) and "kernel" in node
    cast = lambda node: {name: leaf.astype(module.dtype) for name, leaf in node.items()} if product(node) else node
    params = jax.tree.map(cast, params, is_leaf=product)
    outer = {name: leaf for name, leaf in params.items() if name != "layers"}
    layers = tuple(jax.tree.map(lambda leaf: leaf[i], params["layers"]) for i in range(module.depth))  # noqa: B023
    return Weights(outer, layers)


def prefill(
    module: Transformer,
    weights: Weights,
    prefix: Int[Array, "b s"],
    length: int,
    form: Form,
    places: Float[Array, "b p 2"] | None = None,
    last: Int[Array, ""] | None = None,
) -> tuple[Float[Array, "b v"], Cache]:
    """Runs the whole prefix.

    Args:
      module: static.
      weights: from `unstack`.
      prefix: the condition's tokens, at least one.
      length: positions that the cache shall hold.
      form: of the cache.
      places: see `Transformer.__call__`.
      last: position of the last token that counts, by default that of the last one. `step` writes over what the cache
        holds behind it before anything sees it.

    Returns:
      Logits of the token after the last one that counts, and the filled cache.
    """
    mask = causal_mask(prefix.shape[1], module.bidirectional_prefix)[None, None]
    keys, values = [], []

    def attend(_: int, q: Array, k: Array, v: Array) -> Array:
        keys.append(form.start(k, length))
        values.append(form.start(v, length))
        return attention(q, k, v, mask)

    x: Any = module.apply({"params": weights.outer}, prefix, method="embed")
    x = layers(module, weights, x, module.turns_at(0, prefix.shape[1], places), attend)
    x = x[:, -1:] if last is None else jax.lax.dynamic_slice_in_dim(x, last, 1, axis=1)
    logits: Any = module.apply({"params": weights.outer}, x, method="readout")
    return logits[:, 0], Cache(tuple(keys), tuple(values))


def step(
    module: Transformer, weights: Weights, cache: Cache, tokens: Int[Array, "b"], position: Int[Array, ""], form: Form
) -> tuple[Float[Array, "b v"], Cache]:
    """Feeds one token at `position`, behind the prefix: it sees every position before and itself.

    Returns:
      Logits of the next token, and the cache with this one in it.
    """
    keys, values = list(cache.keys), list(cache.values)

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        keys[layer], values[layer] = form.put(keys[layer], k, position), form.put(values[layer], v, position)
        return repeated(form.attend(q[:, 0], keys[layer], values[layer], position)[:, None])

    many = isinstance(tokens.shape[0], int) and tokens.shape[0] > FEW  # in an export their number is a symbol
    times = 1 if many else form.positions
    repeated = lambda x: jnp.broadcast_to(x, (x.shape[0], times, *x.shape[2:]))
    x: Any = module.apply({"params": weights.outer}, tokens[:, None], position, method="embed")
    x = layers(module, weights, repeated(x), module.turns_at(position, 1), attend, step=True)
    logits: Any = module.apply({"params": weights.outer}, x, method="readout")
    return logits[:, 0], Cache(tuple(keys), tuple(values))


def layers(
    module: Transformer,
    weights: Weights,
    x: Float[Array, "b t m"],
    turns: Turns | None,
    attend: Callable[[int, Array, Array, Array], Array],
    *,
    step: bool = False,
) -> Float[Array, "b t m"]:
    """One after the other, with `attend(layer, q, k, v)` between the halves."""
    block = Block(**module.block_fields)
    for layer, params in enumerate(weights.layers):
        projected: Any = block.apply({"params": params}, x, turns, step=step, method="project")
        finished: Any = block.apply({"params": params}, x, attend(layer, *projected), method="finish")
        x = finished
    return x
