"""Codes of which a share was replaced by near neighbours: what a decoder makes of the small mistakes of a prior.

The Frechet distance of what they decode to is reported to follow the quality of generation where that of the
reconstructions does not (Qiu et al. 2025, Robust Latent Matters, pFID), and it needs no prior. Its constants are ours:
a figure is to be compared with figures of the same ones only.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from vqgan_jax import api, models
from vqgan_jax.evaluate.distances import nearest
from vqgan_jax.nn.pixels import to_uint8

SHARE = 0.5  # of an image's codes
NEAR, OF = 100, 4096  # a code is replaced by one of its 100 nearest in a codebook of 4096, in others of as many in 4096
PROTOCOL = (
    f"codes of which {SHARE:.0%}, drawn by the seed, are replaced by one of their {NEAR} nearest others in each {OF} "
    "of the codebook, at least one, by Euclidean distance"
)


def neighbours(codes: Float[np.ndarray, "k d"], count: int) -> Int[np.ndarray, "k {count}"]:
    """Returns the rows of the codes nearest to each code, nearest first; a code is no neighbour of itself."""
    order, _ = nearest(codes, codes, count + 1)
    own = order == np.arange(len(codes))[:, None]
    own[~own.any(1), -1] = True  # of several equal codes its own row may have come too late
    return order[~own].reshape(len(codes), count)


def table_of(model: models.Tokenizer) -> Int[np.ndarray, "k n"]:
    """Returns the near neighbours of each code of a tokenizer, as its decoder reads the codes.

    Raises:
      ValueError: there is one code only.
    """
    size = model.codebook_size
    if size < 2:
        raise ValueError(f"`pfd_vgg` needs at least 2 codes; the tokenizer has {size}. Leave it out.")
    lookup = lambda module, rows: module.quantizer.lookup(rows)
    codes = model.module.apply({"params": model.params}, jnp.arange(size), method=lookup)
    return neighbours(np.asarray(codes), min(max(NEAR * size // OF, 1), size - 1))


def perturb(
    indices: Int[Array, "b h w"], table: Int[Array, "k n"], keys: Key[Array, "b"], share: float
) -> Int[Array, "b h w"]:
    """Replaces each index, with probability `share`, by one of its row of `table`, all of them equally likely."""

    def one(grid: Int[Array, "h w"], key: Key[Array, ""]) -> Int[Array, "h w"]:
        coin, choice = jax.random.split(key)
        column = jax.random.randint(choice, grid.shape, 0, table.shape[1])
        return jnp.where(jax.random.bernoulli(coin, share, grid.shape), table[grid, column], grid)

    return jax.vmap(one)(indices, keys)


@jax.jit
def decoded(
    model: models.Tokenizer, indices: Int[Array, "b h w"], table: Int[Array, "k n"], keys: Key[Array, "b"]
) -> UInt8[Array, "b H W 3"]:
    """Returns rounded pixels of perturbed codes, of each image by its own key."""
    return to_uint8(api.decode(model, perturb(indices, table, keys, SHARE)))
