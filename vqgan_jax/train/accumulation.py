"""A global batch in equal parts, one after the other: the memory of one part, the gradients of all."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Part = Callable[[Any, Any, jax.Array], tuple[Any, Any, Any]]


def in_parts(count: int, part: Part, carry: Any, batch: Any, keys: jax.Array) -> tuple[Any, Any, Any]:
    """Applies `part` to `count` parts of a batch in one `lax.scan`; to the batch itself where `count` is 1.

    Part i has the rows i, i + count, i + 2 count ...: cut so, a batch that lies on the devices in contiguous rows moves
    between none of them, and each device works on a share of every part.

    Args:
      count: of parts; it divides the batch, and the batch of each device.
      part: `(carry, batch, keys) -> (carry, means, rows)`.
      carry: what one part hands to the next.
      batch: a tree of arrays (b, ...).
      keys: (n,), for every part others.

    Returns:
      The last carry; the means over all parts, which are summed in float32; the rows in the order of the batch.
    """
    if count == 1:
        return part(carry, batch, keys)
    parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), batch)
    shapes = jax.eval_shape(lambda *given: part(*given)[1], carry, jax.tree.map(lambda x: x[0], parts), keys)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)

    def add(total: tuple[Any, Any], given: tuple[Any, jax.Array]) -> tuple[tuple[Any, Any], Any]:
        rows, number = given
        carry, means, rows = part(total[0], rows, jax.vmap(jax.random.fold_in, (0, None))(keys, number))
        return (carry, jax.tree.map(lambda a, b: a + b / count, total[1], means)), rows

    (carry, means), rows = jax.lax.scan(add, (carry, zeros), (parts, jnp.arange(count)))
    return carry, means, jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), rows)
