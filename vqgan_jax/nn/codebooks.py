"""Parts that quantizers share: the nearest code, k-means, and estimators of a gradient through the choice of a code."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# A latent's float32 distances that are in memory at a time: those to 1,024 codes. They are never more than one layer's
# activations at the images' own size: at factor 4 a latent stands for 16 pixels of 128 channels of 2 bytes.
DISTANCE_BYTES = 4096


class Codes(NamedTuple):
    """What a quantizer's `refresh` reads of a step."""

    latents: Float[Array, "b h w d"]
    indices: Int[Array, "b h w"]


def unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Divides by the Euclidean length; safe, with a finite gradient, at zero."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def straight_through(latents: Float[Array, "*b d"], codes: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Returns the codes, with a gradient that passes to the latents as it is (van den Oord et al. 2017)."""
    return latents + jax.lax.stop_gradient(codes - latents)


def rotation(latents: Float[Array, "*b d"], codes: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Returns the codes, as latents that a constant rotation and a constant factor bring onto them.

    The rotation trick of Fifty et al. 2024: the gradient has the angle to the latent that it had to the code, and its
    length is scaled by |code| / |latent|. It is finite where one of the two is zero, and where they are opposite.
    """
    z, e = jax.lax.stop_gradient((latents, codes))
    u, v = unit(z), unit(e)
    w = unit(u + v)
    factor = jnp.linalg.norm(e, axis=-1, keepdims=True) / (jnp.linalg.norm(z, axis=-1, keepdims=True) + 1e-6)
    along = lambda direction: jnp.sum(latents * direction, axis=-1, keepdims=True)
    return factor * (latents - 2 * along(w) * w + 2 * along(u) * v)


ESTIMATORS = {"straight_through": straight_through, "rotation": rotation}


def nearest(latents: Float[Array, "*b d"], codebook: Float[Array, "k d"]) -> Int[Array, "*b"]:
    """Returns the row of the nearest code, the first one of equals.

    The minimum of |e|^2 / 2 - z.e: adding |z|^2, the same for all codes, would only cost digits. HIGHEST because
    bfloat16 products, the default on TPU, choose another code for up to 3% of the latents.

    A large codebook is searched in equal parts, one after the other: see `DISTANCE_BYTES`. The codes are cut and not
    the latents, which many devices may share.
    """
    flat, k = latents.reshape(-1, latents.shape[-1]), codebook.shape[0]
    parts = -(-4 * k // DISTANCE_BYTES)
    if parts == 1:
        return jnp.argmin(distances(flat, codebook), axis=-1).astype(jnp.int32).reshape(latents.shape[:-1])
    size = -(-k // parts)
    # What fills up the last part repeats the last code, and of equals the first one wins.
    codes = jnp.pad(codebook, ((0, parts * size - k), (0, 0)), mode="edge").reshape(parts, size, -1)

    def search(part: Float[Array, "_ d"]) -> tuple[Float[Array, "n"], Int[Array, "n"]]:
        costs = distances(flat, part)
        return costs.min(axis=-1), jnp.argmin(costs, axis=-1)

    smallest, rows = jax.lax.map(search, codes)
    part = jnp.argmin(smallest, axis=0)[None]
    indices = part * size + jnp.take_along_axis(rows, part, axis=0)
    return indices.astype(jnp.int32).reshape(latents.shape[:-1])


def distances(flat: Float[Array, "n d"], codebook: Float[Array, "k d"]) -> Float[Array, "n k"]:
    """Returns half of the squared distance of each latent to each code, less half of the latent's squared length."""
    products = jnp.einsum("nd,kd->nk", flat, codebook, precision=jax.lax.Precision.HIGHEST)
    return 0.5 * jnp.sum(jnp.square(codebook), axis=-1)[None] - products


def nearest_others(codebook: Float[Array, "k d"], count: int) -> Int[Array, "k _count"]:
    """Returns the `count` nearest others of each code, nearest first; all others where there are fewer.

    Of the codes and not of a batch's latents: every device computes the same table, in parts that bound the memory, and
    the rows of a batch stay where they are.
    """
    count, places = min(count, len(codebook) - 1), jnp.arange(len(codebook))

    def near(place: Int[Array, ""]) -> Int[Array, "_count"]:
        away = jnp.where(places == place, jnp.inf, distances(codebook[place][None], codebook)[0])
        return jax.lax.top_k(-away, count)[1]

    return jax.lax.map(near, places, batch_size=min(len(codebook), 1_024))


def neighbours(indices: Int[Array, "*b"], others: Int[Array, "k c"], key: jax.Array) -> Int[Array, "*b"]:
    """Returns for each code one of its nearest others, of which `others` has equally many for each, drawn uniformly."""
    return others[indices, jax.random.randint(key, indices.shape, 0, others.shape[1])]


def kmeans(points: Float[Array, "m n d"], k: int, key: jax.Array, *, rounds: int = 10) -> Float[Array, "k d"]:
    """Returns the k centres that Lloyd's algorithm finds from k random points.

    A centre that loses all its points stays where it is. With fewer points than centres the surplus centres repeat
    points. The m sets are searched one after the other, which bounds the memory; their points count alike.
    """
    m, n, _ = points.shape
    chosen = jnp.resize(jax.random.permutation(key, m * n), (k,))
    centres = points[chosen // n, chosen % n]

    def move(_: int | Int[Array, ""], centres: Float[Array, "k d"]) -> Float[Array, "k d"]:
        indices = jax.lax.map(lambda part: nearest(part, centres), points)
        counts = jnp.zeros(k).at[indices].add(1.0)[:, None]
        sums = jnp.zeros_like(centres).at[indices].add(points)
        return jnp.where(counts > 0, sums / jnp.maximum(counts, 1.0), centres)

    return jax.lax.fori_loop(0, rounds, move, centres)
