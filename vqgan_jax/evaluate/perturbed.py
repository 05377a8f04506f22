"""Perturbed codes: a share of an image's codes is replaced by near ones, as if a prior had made small mistakes.

The Frechet distance of the decoded images needs no prior, and is reported to follow the quality of generation where
that of reconstructions does not (Qiu et al. 2025, Robust Latent Matters, pFID). The constants below are ours: compare a
figure only with figures of the same constants.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, UInt8

from vqgan_jax import api, models
from vqgan_jax.nn.codebooks import nearest_others, neighbours
from vqgan_jax.nn.pixels import to_uint8

SHARE = 0.5  # of an image's codes
NEAR, OF = 100, 4096  # a code is replaced by one of its 100 nearest in a codebook of 4096, in others of as many in 4096
PROTOCOL = (
    f"codes of which {SHARE:.0%}, drawn by the seed, are replaced by one of their {NEAR} nearest others in each {OF} "
    "of the codebook, at least one, by Euclidean distance"
)


def near_codes(size: int) -> int:
    """Returns how many near codes each code of a codebook of `size` has; ValueError where there is one code only."""
    if size < 2:
        raise ValueError(f"`pfd_vgg` needs at least 2 codes; the tokenizer has {size}. Leave it out.")
    return min(max(NEAR * size // OF, 1), size - 1)


def perturb(
    indices: Int[Array, "b h w"], codebook: Float[Array, "k d"], keys: Key[Array, "b"], share: float
) -> Int[Array, "b h w"]:
    """Replaces each index, with probability `share`, by one of its near codes, all of them equally likely."""
    others = nearest_others(codebook, near_codes(len(codebook)))

    def one(grid: Int[Array, "h w"], key: Key[Array, ""]) -> Int[Array, "h w"]:
        coin, choice = jax.random.split(key)
        return jnp.where(jax.random.bernoulli(coin, share, grid.shape), neighbours(grid, others, choice), grid)

    return jax.vmap(one)(indices, keys)


@jax.jit
def decoded(model: models.Tokenizer, indices: Int[Array, "b h w"], keys: Key[Array, "b"]) -> UInt8[Array, "b H W 3"]:
    """Returns rounded pixels of perturbed codes, of each image by its own key."""
    lookup = lambda module: module.quantizer.lookup(jnp.arange(model.codebook_size))
    codebook: Any = model.module.apply({"params": model.params}, method=lookup)
    return to_uint8(api.decode(model, perturb(indices, codebook, keys, SHARE)))
