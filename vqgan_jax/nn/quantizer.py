"""From latents to codes: nearest neighbour (equation 2 of the paper) or Gumbel softmax, always in float32."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from vqgan_jax.nn.blocks import conv1x1

# A latent's float32 distances that are in memory at a time: those to 1,024 codes. They are never more than one layer's
# activations at the images' own size: at factor 4 a latent stands for 16 pixels of 128 channels of 2 bytes.
DISTANCE_BYTES = 4096


@struct.dataclass
class Quantized:
    """What a quantizer makes of latents; float32.

    Attributes:
      quantized: the codes, with a gradient that reaches the latents: what the decoder gets.
      indices: codebook row of each position.
      latents: the latents as they were compared with the codes (of unit length where the codes are).
      codes: the chosen codes; their gradient reaches the codebook.
      kl: nats of each position's code distribution against the uniform one; zero where the choice is not random.
    """

    quantized: Float[Array, "*b d"]
    indices: Int[Array, "*b"]
    latents: Float[Array, "*b d"]
    codes: Float[Array, "*b d"]
    kl: Float[Array, "*b"]


class CodebookStats(NamedTuple):
    """Running averages of a step's hits of each code and of the sum of the latents that hit it."""

    hits: Float[Array, "k"]
    sums: Float[Array, "k d"]


def unit(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Divides by the Euclidean length; safe, with a finite gradient, at zero."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


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
        found = distances(flat, part)
        return found.min(axis=-1), jnp.argmin(found, axis=-1)

    smallest, rows = jax.lax.map(search, codes)
    part = jnp.argmin(smallest, axis=0)[None]
    indices = part * size + jnp.take_along_axis(rows, part, axis=0)
    return indices.astype(jnp.int32).reshape(latents.shape[:-1])


def distances(flat: Float[Array, "n d"], codebook: Float[Array, "k d"]) -> Float[Array, "n k"]:
    """Returns half of the squared distance of each latent to each code, less half of the latent's squared length."""
    products = jnp.einsum("nd,kd->nk", flat, codebook, precision=jax.lax.Precision.HIGHEST)
    return 0.5 * jnp.sum(jnp.square(codebook), axis=-1)[None] - products


class VectorQuantizer(nn.Module):
    """Nearest code, straight-through gradient.

    Attributes:
      codebook_size: number of codes k.
      embed_dim: their width d.
      unit_length: compare and return latents and codes divided by their lengths (then `embed_dim` wants to be about
        8). The codebook itself is stored as it is and divided at use, so that its gradient passes the division.
      ema: the codebook is the running average of the latents that chose it, by `refresh`, and gets no gradient.
      decay: of the running averages.
      revive_below: a code whose average hits fall below this share of a uniform code's becomes a random latent of the
        batch; 0 is never.
    """

    codebook_size: int
    embed_dim: int
    unit_length: bool = False
    ema: bool = False
    decay: float = 0.99
    revive_below: float = 0.0

    def setup(self):
        bound = 1.0 / self.codebook_size
        init = (
            nn.initializers.normal(1.0)
            if self.unit_length
            else lambda key, s: jax.random.uniform(key, s, minval=-bound, maxval=bound)
        )
        self.codebook = self.param("codebook", init, (self.codebook_size, self.embed_dim))

    def normalise(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Into the space where latents and codes are compared."""
        return unit(x) if self.unit_length else x

    def __call__(
        self, latents: Float[Array, "*b d"], *, train: bool = False, temperature: float | Float[Array, ""] = 1.0
    ) -> Quantized:
        """Quantizes; neither `train` nor `temperature` changes anything here."""
        del train, temperature
        latents = self.normalise(latents.astype(jnp.float32))
        codebook = self.normalise(jax.lax.stop_gradient(self.codebook) if self.ema else self.codebook)
        indices = nearest(jax.lax.stop_gradient(latents), jax.lax.stop_gradient(codebook))
        codes = codebook[indices]
        quantized = latents + jax.lax.stop_gradient(codes - latents)
        return Quantized(quantized, indices, latents, codes, jnp.zeros(indices.shape))

    def lookup(self, indices: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """The codes of the given rows, as the decoder wants them."""
        return self.normalise(self.codebook)[indices]

    @property
    def refreshes(self) -> bool:
        """Whether `refresh` does anything."""
        return self.ema or self.revive_below > 0

    def initial_stats(self, codebook: Float[Array, "k d"], n: int) -> CodebookStats:
        """Every code as if it had had its share of the `n` latents of a step: no code starts near its death."""
        share = n / self.codebook_size
        return CodebookStats(
            hits=jnp.full(self.codebook_size, share, jnp.float32), sums=share * self.normalise(codebook)
        )

    def refresh(
        self,
        codebook: Float[Array, "k d"],
        stats: CodebookStats,
        latents: Float[Array, "n d"],
        indices: Int[Array, "n"],
        key: jax.Array,
    ) -> tuple[Float[Array, "k d"], CodebookStats]:
        """One step of the running averages, of the EMA codebook and of the revival of dead codes.

        Pure, without parameters of the module; hits and sums are over the whole array, which under `jax.jit` is the
        global batch.
        """
        n, k = latents.shape[0], self.codebook_size
        hits = jnp.zeros(k).at[indices].add(1.0)
        sums = jnp.zeros_like(codebook).at[indices].add(latents)
        hits = self.decay * stats.hits + (1 - self.decay) * hits
        sums = self.decay * stats.sums + (1 - self.decay) * sums
        if self.ema:
            # Laplace smoothing (van den Oord et al. 2017, appendix A.1) keeps a rare code's divisor off zero.
            smoothed = (hits + 1e-5) / (hits.sum() + k * 1e-5) * hits.sum()
            codebook = sums / smoothed[:, None]
        if self.revive_below > 0:
            dead = hits < self.revive_below * n / k
            fresh = latents[jax.random.randint(key, (k,), 0, n)]
            codebook = jnp.where(dead[:, None], fresh, codebook)
            # A revived code starts as a uniform one: with its old averages it would die again in the next step.
            hits = jnp.where(dead, n / k, hits)
            sums = jnp.where(dead[:, None], fresh * (n / k), sums)
        return codebook, CodebookStats(hits, sums)


class GumbelQuantizer(nn.Module):
    """A soft choice of codes by Gumbel noise, made hard with a straight-through gradient (Jang et al. 2017).

    Attributes:
      codebook_size: number of codes k.
      embed_dim: their width d.
      noisy_eval: draw noise in evaluation too, as the published model does, which makes encoding random. The noise
        comes from the PRNG collection "gumbel".
    """

    codebook_size: int
    embed_dim: int
    noisy_eval: bool = False

    def setup(self):
        self.logits = conv1x1(self.codebook_size, jnp.float32, "logits")
        self.codebook = self.param("codebook", nn.initializers.normal(1.0), (self.codebook_size, self.embed_dim))

    def __call__(
        self, latents: Float[Array, "b h w d"], *, train: bool = False, temperature: float | Float[Array, ""] = 1.0
    ) -> Quantized:
        """Quantizes; `temperature` shapes the gradient and, where there is noise, nothing else of the choice."""
        latents = latents.astype(jnp.float32)
        logits = self.logits(latents)
        noisy = logits
        if train or self.noisy_eval:
            noisy = logits + jax.random.gumbel(self.make_rng("gumbel"), logits.shape)
        soft = jax.nn.softmax(noisy / temperature)
        indices = jnp.argmax(noisy, axis=-1).astype(jnp.int32)
        hard = jax.nn.one_hot(indices, self.codebook_size)
        choice = soft + jax.lax.stop_gradient(hard - soft)
        codes = jnp.einsum("bhwk,kd->bhwd", choice, self.codebook, precision=jax.lax.Precision.HIGHEST)
        q = jax.nn.softmax(logits)
        kl = jnp.sum(q * jnp.log(q * self.codebook_size + 1e-10), axis=-1)
        return Quantized(codes, indices, latents, codes, kl)

    def lookup(self, indices: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """The codes of the given rows."""
        return self.codebook[indices]


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
