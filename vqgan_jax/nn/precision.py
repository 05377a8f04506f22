"""float32 is float32: accelerators multiply float32 in fewer bits unless each product says otherwise."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float


def precision_of(dtype: DTypeLike) -> jax.lax.Precision | None:
    """Returns the precision of products of `dtype`: HIGHEST of float32, the platform's default of fewer bits.

    The default of a TPU rounds float32 to bfloat16 before it multiplies, that of a GPU to 10 bits.
    """
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def product(equation: str, x: Array, y: Array, out: DTypeLike | None = None) -> Array:
    """Computes `jnp.einsum` at the precision of the dtype of x; `out` is the dtype of the sums, if another."""
    return jnp.einsum(equation, x, y, precision=precision_of(x.dtype), preferred_element_type=out)


def dense_in(dtype: DTypeLike, **fields: Any) -> Callable[..., nn.DenseGeneral]:
    """Returns `flax.linen.DenseGeneral` that computes in `dtype` at its precision; call it with the features."""
    return functools.partial(nn.DenseGeneral, dtype=dtype, precision=precision_of(dtype), **fields)


def attention(
    q: Float[Array, "b t n p"],
    k: Float[Array, "b s n p"],
    v: Float[Array, "b s n p"],
    mask: Bool[Array, "_ _ t s"] | None = None,
) -> Float[Array, "b t n p"]:
    """Computes softmax attention, its softmax in float32, its products at the precision of their dtype."""
    # `jax.nn.dot_product_attention` has no argument for it.
    highest = precision_of(q.dtype) is not None
    with jax.default_matmul_precision("highest") if highest else contextlib.nullcontext():
        return jax.nn.dot_product_attention(q, k, v, mask=mask)
