"""How the keys and values of one layer lie in memory while tokens are drawn: one form for CPUs, one for the others.

Both hold what `Transformer` computed for the positions so far, and give the same attention. `platform_dependent` of JAX
chooses between them when a program is compiled, so that a plan for a TPU on a laptop sees the TPU's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqgan_jax.nn.precision import product

PARTS = 4  # of a CPU's cache; those behind the current position are not read, which saves three eighths on average
Parts = tuple[Float[Array, "b n t p"], ...]


class Form(NamedTuple):
    """A cache of keys, or of values, as functions.

    Attributes:
      start: `(x, length) -> cache` that holds x (b s n p) at its first positions and has room for `length`.
      put: `(cache, x, position) -> cache` with x (b 1 n p) written there, in place.
      attend: `(q, keys, values, position)`: attention of q (b n p) over positions 0 to `position`.
      positions: that a step of few rows computes, of which it uses the first.
    """

    start: Callable[[Array, int], Any]
    put: Callable[[Any, Array, Array], Any]
    attend: Callable[[Array, Any, Any, Array], Array]
    positions: int


def on_this_platform(run: Callable[[Form], Any]) -> Any:
    """`run` with the form for the platform that the program is compiled for."""
    return jax.lax.platform_dependent(cpu=lambda: run(CPU), default=lambda: run(ACCELERATOR))


def split(x: Float[Array, "b s n p"], length: int) -> Parts:
    """Positions 0 to s of a cache that holds at least `length` of them, in equal parts.

    Reading only the filled part of one array would copy it first.
    """
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


def attend(q: Float[Array, "b n p"], keys: Parts, values: Parts, position: Int[Array, ""]) -> Float[Array, "b n p"]:
    """Attention head by head; parts that lie behind the position are not even read."""
    size = keys[0].shape[2]

    def filled(equation: str, i: int, x: Array, part: Array) -> Array:
        """Of x and part i, in float32; zeros where no position of the part is filled."""
        einsum = lambda x, part: product(equation, x, part, jnp.float32)
        zeros = lambda x, part: jnp.zeros(jax.eval_shape(einsum, x, part).shape, jnp.float32)
        return jax.lax.cond(position >= i * size, einsum, zeros, x, part)

    logits = jnp.concatenate([filled("bnp,bntp->bnt", i, q, part) for i, part in enumerate(keys)], axis=-1)
    weights = jnp.split(seen_softmax(logits, q, position), len(values), axis=-1)
    attended = [filled("bnt,bntp->bnp", i, x, part) for i, (x, part) in enumerate(zip(weights, values, strict=True))]
    return sum(attended[1:], attended[0]).astype(q.dtype)


def grouped(x: Float[Array, "b s n p"], length: int) -> Float[Array, "b g t c"]:
    """One array; the heads of a group stand side by side."""
    b, s, n, p = x.shape
    heads = heads_of_a_group(n, p)
    x = jnp.swapaxes(x.reshape(b, s, n // heads, heads * p), 1, 2)
    return jnp.pad(x, ((0, 0), (0, 0), (0, length - s), (0, 0)))


def heads_of_a_group(n: int, p: int) -> int:
    """The fewest, but two, of n heads of width p that fill whole rows of 128 numbers, a TPU's width; else all."""
    return next((heads for heads in range(2, n + 1) if n % heads == 0 and heads * p % 128 == 0), n)


def put_grouped(
    cache: Float[Array, "b g t c"], new: Float[Array, "b 1 n p"], position: Int[Array, ""]
) -> Float[Array, "b g t c"]:
    """The cache with one position written, in place."""
    b, g, _, c = cache.shape
    return jax.lax.dynamic_update_slice_in_dim(cache, new.reshape(b, g, 1, c), position, axis=2)


def attend_grouped(
    q: Float[Array, "b n p"], keys: Float[Array, "b g t c"], values: Float[Array, "b g t c"], position: Int[Array, ""]
) -> Float[Array, "b n p"]:
    """Attention with the queries of a group's heads on a block diagonal, one product a group.

    A single query with its own head is a product that TPUs take element by element. What is multiplied in vain, as many
    times as a group has heads, a matrix unit has done before the cache is read.
    """
    b, n, p = q.shape
    _, g, _, c = keys.shape
    own = (jnp.arange(c // p)[:, None] == jnp.arange(c)[None] // p)[None, None]
    queries = jnp.where(own, q.reshape(b, g, 1, c), 0)
    logits = product("bghc,bgtc->bght", queries, keys, jnp.float32)
    weights = seen_softmax(logits.reshape(b, n, -1), q, position).reshape(logits.shape)
    attended = product("bght,bgtc->bghc", weights, values, jnp.float32)
    return jnp.where(own, attended, 0).sum(2).reshape(b, n, p).astype(q.dtype)


def seen_softmax(
    logits: Float[Array, "b n t"], q: Float[Array, "b n p"], position: Int[Array, ""]
) -> Float[Array, "b n t"]:
    """Weights of positions 0 to `position`, computed in float32, in the dtype of the queries."""
    seen = (jnp.arange(logits.shape[-1]) <= position)[None, None]
    return jax.nn.softmax(jnp.where(seen, logits * q.shape[-1] ** -0.5, -jnp.inf), axis=-1).astype(q.dtype)


CPU = Form(split, put, attend, positions=1)
# With a single row a TPU would take a kernel's product, too, element by element: a second position costs less.
ACCELERATOR = Form(grouped, put_grouped, attend_grouped, positions=2)
