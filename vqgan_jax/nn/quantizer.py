"""From latents to codes: nearest neighbour (equation 2 of the paper), Gumbel softmax, scalars and bits; in float32.

A quantizer is one class and one line of `QUANTIZERS`. Its fields are the keys of the config's section `quantizer`. Its
losses, its statistics and its start belong to it, so that the training step is the same for all of them.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from vqgan_jax import losses
from vqgan_jax.nn.codebooks import ESTIMATORS, kmeans, nearest, straight_through, unit
from vqgan_jax.nn.fields import check_known
from vqgan_jax.nn.layers import conv1x1

Params = dict[str, Any]
HIGHEST = jax.lax.Precision.HIGHEST


@struct.dataclass
class Quantized:
    """What a quantizer returns; float32.

    Attributes:
      quantized: the codes that the decoder reads, with a gradient that reaches the latents.
      indices: codebook row of each position.
      latents: the latents as they were compared with the codes (of unit length where the codes are).
      codes: the chosen codes; their gradient reaches the codebook.
      loss: the weighted sum of the quantizer's own losses (equation 4 of the paper, second and third term).
      terms: each of these losses without its weight, by name.
    """

    quantized: Float[Array, "*b d"]
    indices: Int[Array, "*b"]
    latents: Float[Array, "*b d"]
    codes: Float[Array, "*b d"]
    loss: Float[Array, ""]
    terms: dict[str, Float[Array, ""]]


class CodebookStats(NamedTuple):
    """Running averages of a step's hits of each code and of the sum of the latents that hit it."""

    hits: Float[Array, "k"]
    sums: Float[Array, "k d"]


class Quantizer(nn.Module):
    """The interface of all quantizers. A class adds

    - `codebook_size` and `embed_dim`, as fields or properties;
    - `__call__(latents, *, train=False, step=0) -> Quantized`, where `step` is that of training, for schedules;
    - `lookup(indices)`, the codes of the given rows, as the decoder reads them.

    The methods below act on the quantizer's parameters outside of gradients. Here they do nothing: a quantizer whose
    codes learn by gradients alone inherits them.
    """

    ema = False  # whether the codebook is a running average

    @property
    def start_batches(self) -> int:
        """Number of training batches whose latents `start` needs."""
        return 0

    def start(self, params: Params, latents: Float[Array, "m n d"], key: jax.Array) -> Params:
        """Returns the parameters that training starts from, given the latents of each of `start_batches` batches."""
        del latents, key
        return params

    def initial_stats(self, params: Params, n: int) -> CodebookStats | None:
        """Returns the statistics that `refresh` keeps, before the first step of `n` latents; None for none."""
        del params, n
        return None

    def refresh(
        self, params: Params, stats: CodebookStats, latents: Float[Array, "n d"], indices: Int[Array, "n"], key: Any
    ) -> tuple[Params, CodebookStats]:
        """Returns parameters and statistics after a step; `latents` and `indices` are those of the global batch."""
        del latents, indices, key
        return params, stats

    def folded(self, params: Params) -> tuple["Quantizer", Params]:
        """Returns a quantizer of the same codes that other programs may know, and its parameters: here itself."""
        return self, params

    def check(self) -> None:
        """Raises ValueError where fields contradict each other."""


class VectorQuantizer(Quantizer):
    """Nearest code, straight-through gradient (section 3.1 of the paper).

    Attributes:
      codebook_size: number of codes k.
      embed_dim: their width d.
      unit_length: compare and return latents and codes divided by their lengths (then `embed_dim` wants to be about
        8). The codebook itself is stored as it is and divided at use, so that its gradient passes the division.
      estimator: of the latents' gradient through the choice, a name of `codebooks.ESTIMATORS`.
      ema: the codebook is the running average of the latents that chose it, by `refresh`, and gets no gradient.
      decay: of the running averages.
      revive_below: a code whose average hits fall below this share of a uniform code's becomes a random latent of the
        batch; 0 is never.
      kmeans_batches: the codebook starts as the k-means centres of the latents of so many batches; 0 is off.
      codebook_weight: of `losses.codebook_loss`; 0 with `ema`.
      commitment_weight: of `losses.commitment_loss`, beta in the paper.
    """

    codebook_size: int = 1024
    embed_dim: int = 256
    unit_length: bool = False
    estimator: str = "straight_through"
    ema: bool = False
    decay: float = 0.99
    revive_below: float = 0.0
    kmeans_batches: int = 0
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25

    def check(self) -> None:
        """Raises ValueError for an unknown estimator, and where the codebook has a loss and no gradient."""
        check_known("quantizer.estimator", self.estimator, ESTIMATORS)
        if self.ema and self.codebook_weight:
            raise ValueError(
                "`config.quantizer.codebook_weight` must be 0 with quantizer.ema, whose codebook gets no gradient; got "
                f"{self.codebook_weight}. Set it to 0."
            )

    def setup(self):
        bound = 1.0 / self.codebook_size
        uniform = lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
        init = nn.initializers.normal(1.0) if self.unit_length else uniform
        self.codebook = self.param("codebook", init, (self.codebook_size, self.embed_dim))

    def normalise(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Maps latents or codes into the space where they are compared."""
        return unit(x) if self.unit_length else x

    def __call__(
        self, latents: Float[Array, "*b d"], *, train: bool = False, step: int | Int[Array, ""] = 0
    ) -> Quantized:
        """Quantizes; neither `train` nor `step` changes anything here."""
        del train, step
        latents = self.normalise(latents.astype(jnp.float32))
        codebook = self.normalise(jax.lax.stop_gradient(self.codebook) if self.ema else self.codebook)
        return quantize(latents, codebook, self.estimator, self.codebook_weight, self.commitment_weight)

    def lookup(self, indices: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """Returns the codes of the given rows."""
        return self.normalise(self.codebook)[indices]

    @property
    def start_batches(self) -> int:
        """Batches for the k-means start."""
        return self.kmeans_batches

    def start(self, params: Params, latents: Float[Array, "m n d"], key: jax.Array) -> Params:
        """Puts the codes at the k-means centres of the latents."""
        return params | {"codebook": self.normalise(kmeans(latents, self.codebook_size, key))}

    def initial_stats(self, params: Params, n: int) -> CodebookStats | None:
        """Gives every code its share of the `n` latents of a step: no code starts near its death."""
        if not self.ema and not self.revive_below:
            return None
        share = n / self.codebook_size
        hits = jnp.full(self.codebook_size, share, jnp.float32)
        return CodebookStats(hits, share * self.normalise(params["codebook"]))

    def refresh(
        self, params: Params, stats: CodebookStats, latents: Float[Array, "n d"], indices: Int[Array, "n"], key: Any
    ) -> tuple[Params, CodebookStats]:
        """Updates the running averages, the EMA codebook, and revives dead codes."""
        n, k, codebook = latents.shape[0], self.codebook_size, params["codebook"]
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
        return params | {"codebook": codebook}, CodebookStats(hits, sums)


class SimVQ(Quantizer):
    """Nearest code of a codebook that is a frozen random table times one learned matrix (Zhu et al. 2024).

    Every gradient moves every code, so that no code dies.

    Attributes:
      codebook_size: number of codes k.
      embed_dim: their width d.
      estimator: see `VectorQuantizer`; so are the weights.
    """

    codebook_size: int = 1024
    embed_dim: int = 256
    estimator: str = "straight_through"
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25

    def check(self) -> None:
        """Raises ValueError for an unknown estimator."""
        check_known("quantizer.estimator", self.estimator, ESTIMATORS)

    def setup(self):
        k, d = self.codebook_size, self.embed_dim
        self.frozen = self.param("frozen", nn.initializers.normal(d**-0.5), (k, d))  # no kernel, which would decay
        self.projection = self.param("projection", nn.initializers.orthogonal(), (d, d))

    @property
    def codebook(self) -> Float[Array, "k d"]:
        """The codes."""
        return jnp.einsum("kd,de->ke", jax.lax.stop_gradient(self.frozen), self.projection, precision=HIGHEST)

    @nn.nowrap
    def folded(self, params: Params) -> tuple[Quantizer, Params]:
        """Returns a plain codebook."""
        codes: Any = self.apply({"params": params}, jnp.arange(self.codebook_size), method="lookup")
        return VectorQuantizer(self.codebook_size, self.embed_dim), {"codebook": codes}

    def __call__(
        self, latents: Float[Array, "*b d"], *, train: bool = False, step: int | Int[Array, ""] = 0
    ) -> Quantized:
        """Quantizes; neither `train` nor `step` changes anything here."""
        del train, step
        latents = latents.astype(jnp.float32)
        return quantize(latents, self.codebook, self.estimator, self.codebook_weight, self.commitment_weight)

    def lookup(self, indices: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """Returns the codes of the given rows."""
        return self.codebook[indices]


class GumbelQuantizer(Quantizer):
    """A soft choice of codes by Gumbel noise, made hard with a straight-through gradient (Jang et al. 2017).

    Attributes:
      codebook_size: number of codes k.
      embed_dim: their width d.
      temperature: of the softmax: half a cosine from the first value to the second over so many steps, then constant.
        It shapes the gradient and nothing else of the choice.
      noisy_eval: draw noise in evaluation too, as the published model does, which makes encoding random. The noise
        comes from the PRNG collection "gumbel".
      kl_weight: of the mean over positions of the KL divergence from the uniform distribution, in nats.
    """

    codebook_size: int = 8192
    embed_dim: int = 256
    temperature: tuple[float, float, int] = (1.0, 1.0, 1)
    noisy_eval: bool = False
    kl_weight: float = 0.0

    def setup(self):
        self.logits = conv1x1(self.codebook_size, jnp.float32, "logits")
        self.codebook = self.param("codebook", nn.initializers.normal(1.0), (self.codebook_size, self.embed_dim))

    def temperature_at(self, step: int | Int[Array, ""]) -> Float[Array, ""]:
        """Temperature of the softmax at a training step."""
        start, end, steps = self.temperature
        return end + 0.5 * (start - end) * (1 + jnp.cos(jnp.pi * jnp.clip(step / steps, 0.0, 1.0)))

    def __call__(
        self, latents: Float[Array, "b h w d"], *, train: bool = False, step: int | Int[Array, ""] = 0
    ) -> Quantized:
        """Quantizes, with noise in training or with `noisy_eval`."""
        latents = latents.astype(jnp.float32)
        logits = self.logits(latents)
        noisy = logits
        if train or self.noisy_eval:
            noisy = logits + jax.random.gumbel(self.make_rng("gumbel"), logits.shape)
        soft = jax.nn.softmax(noisy / self.temperature_at(step))
        indices = jnp.argmax(noisy, axis=-1).astype(jnp.int32)
        hard = jax.nn.one_hot(indices, self.codebook_size)
        choice = soft + jax.lax.stop_gradient(hard - soft)
        codes = jnp.einsum("bhwk,kd->bhwd", choice, self.codebook, precision=HIGHEST)
        q = jax.nn.softmax(logits)
        kl = jnp.sum(q * jnp.log(q * self.codebook_size + 1e-10), axis=-1).mean()
        return Quantized(codes, indices, latents, codes, self.kl_weight * kl, {"kl": kl})

    def lookup(self, indices: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """Returns the codes of the given rows."""
        return self.codebook[indices]


class FSQ(Quantizer):
    """Finite scalar quantization: every channel is rounded to one of a few levels (Mentzer et al. 2023).

    There is no codebook to learn, none to collapse and no loss. Codes are points of a grid in [-1, 1].

    Attributes:
      levels: number of levels of each channel; their product is the codebook's size. The paper's section 4.2 uses
        (8, 5, 5, 5) for about 2^10 codes, (7, 5, 5, 5, 5) for 2^12, (8, 8, 8, 6, 5) for 2^14.
    """

    levels: tuple[int, ...] = (8, 5, 5, 5)

    @property
    def codebook_size(self) -> int:
        """Product of the levels."""
        return math.prod(self.levels)

    @property
    def embed_dim(self) -> int:
        """One channel for each entry of `levels`."""
        return len(self.levels)

    def check(self) -> None:
        """Raises ValueError for a channel that carries nothing, or whose margin rounds to one level more."""
        if not self.levels or min(self.levels) < 2 or max(self.levels) > 1_000:
            raise ValueError(
                f"`config.quantizer.levels` must be numbers of 2 to 1,000, one a channel; got {self.levels}. "
                "Choose, say, (8, 5, 5, 5)."
            )

    @property
    def strides(self) -> Int[np.ndarray, "d"]:
        """What one level of each channel adds to the index: the first channel varies fastest."""
        return np.cumprod((1, *self.levels[:-1])).astype(np.int32)

    def __call__(
        self, latents: Float[Array, "*b d"], *, train: bool = False, step: int | Int[Array, ""] = 0
    ) -> Quantized:
        """Rounds; neither `train` nor `step` changes anything here."""
        del train, step
        latents = latents.astype(jnp.float32)
        levels, half = np.asarray(self.levels), np.asarray(self.levels) // 2
        # Equation 1 of the paper: as wide as `levels` points 1 apart, moved by half a point where their number is even.
        width = (levels - 1) * (1 + 1e-3) / 2
        offset = np.where(levels % 2 == 0, 0.5, 0.0)
        row = lambda v: jnp.asarray(v, jnp.float32).reshape((1,) * (latents.ndim - 1) + (-1,))
        bounded = jnp.tanh(latents + row(np.arctanh(offset / width))) * row(width) - row(offset)
        rounded = bounded + jax.lax.stop_gradient(jnp.rint(bounded) - bounded)
        digits = jnp.rint(bounded).astype(jnp.int32) + half.astype(np.int32).reshape(row(half).shape)
        # int32: in bfloat16 a thousand codes would share some five hundred indices.
        indices = jnp.sum(digits * self.strides.reshape(row(half).shape), axis=-1, dtype=jnp.int32)
        codes = rounded / row(half)
        return Quantized(codes, indices, latents, codes, jnp.zeros(()), {})

    def lookup(self, indices: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """Returns the grid points of the given indices."""
        shape = (1,) * indices.ndim + (-1,)
        levels, half = (np.asarray(v, np.int32).reshape(shape) for v in (self.levels, np.asarray(self.levels) // 2))
        digits = indices[..., None] // self.strides.reshape(shape) % levels
        return (digits - half).astype(jnp.float32) / half.astype(np.float32)


class LFQ(Quantizer):
    """Lookup-free quantization: the sign of every channel is one bit of the index (Yu et al. 2023).

    There is no codebook to learn. The entropy loss makes each choice confident and all codes equally frequent; without
    it many codes are never used. The first channel is the lowest bit of the index, as in Open-MAGVIT2 and MaskBit.

    Attributes:
      bits: number of channels d; the codebook's size is 2^d.
      unit_length: divide latents and codes by their lengths: binary spherical quantization (Zhao et al. 2024).
      entropy_weight: of the mean entropy minus the entropy of the mean; see `losses.bit_entropies`.
      temperature: of the distribution softmax(2 z.e / temperature) over all codes e, whose entropies these are.
      commitment_weight: of `losses.commitment_loss`.
    """

    bits: int = 10
    unit_length: bool = False
    entropy_weight: float = 0.1
    temperature: float = 0.01
    commitment_weight: float = 0.25

    @property
    def codebook_size(self) -> int:
        """All combinations of the bits."""
        return 2**self.bits

    @property
    def embed_dim(self) -> int:
        """One channel a bit."""
        return self.bits

    @property
    def size(self) -> float:
        """The absolute value of every number of a code."""
        return self.bits**-0.5 if self.unit_length else 1.0

    def check(self) -> None:
        """Raises ValueError for indices beyond int32, and for no temperature."""
        if not 1 <= self.bits <= 30 or self.temperature <= 0:
            raise ValueError(
                "`config.quantizer.bits` must be in 1 .. 30 and quantizer.temperature above 0; got "
                f"{self.bits} and {self.temperature}. Change them."
            )

    def __call__(
        self, latents: Float[Array, "*b d"], *, train: bool = False, step: int | Int[Array, ""] = 0
    ) -> Quantized:
        """Takes signs; neither `train` nor `step` changes anything here. Zero counts as negative."""
        del train, step
        latents = latents.astype(jnp.float32)
        latents = unit(latents) if self.unit_length else latents
        ones = (jax.lax.stop_gradient(latents) > 0).astype(jnp.int32)
        codes = self.size * (2.0 * ones - 1.0)
        places = (2 ** np.arange(self.bits, dtype=np.int32)).reshape((1,) * (latents.ndim - 1) + (-1,))
        indices = jnp.sum(ones * places, axis=-1, dtype=jnp.int32)
        logits = 4 * self.size / self.temperature * latents  # of each bit: of 2 z.e, the difference between its codes
        mean_entropy, entropy_of_mean = losses.bit_entropies(logits.reshape(-1, self.bits))
        terms = {
            "commitment_loss": losses.commitment_loss(latents, codes).mean(),
            "entropy": mean_entropy,
            "entropy_of_mean": entropy_of_mean,
        }
        loss = self.entropy_weight * (mean_entropy - entropy_of_mean)
        loss += self.commitment_weight * terms["commitment_loss"]
        return Quantized(straight_through(latents, codes), indices, latents, codes, loss, terms)

    def lookup(self, indices: Int[Array, "*b"]) -> Float[Array, "*b d"]:
        """Returns the signs that are the bits of the given indices."""
        places = np.arange(self.bits, dtype=np.int32).reshape((1,) * indices.ndim + (-1,))
        return self.size * (2.0 * (indices[..., None] >> places & 1) - 1.0)


QUANTIZERS = {"vq": VectorQuantizer, "simvq": SimVQ, "gumbel": GumbelQuantizer, "fsq": FSQ, "lfq": LFQ}


def quantize(
    latents: Float[Array, "*b d"],
    codebook: Float[Array, "k d"],
    estimator: str,
    codebook_weight: float,
    commitment_weight: float,
) -> Quantized:
    """Replaces each latent by the nearest code (equation 2 of the paper), with the losses of equation 4."""
    indices = nearest(jax.lax.stop_gradient(latents), jax.lax.stop_gradient(codebook))
    codes = codebook[indices]
    terms = {
        "codebook_loss": losses.codebook_loss(latents, codes).mean(),
        "commitment_loss": losses.commitment_loss(latents, codes).mean(),
    }
    loss = codebook_weight * terms["codebook_loss"] + commitment_weight * terms["commitment_loss"]
    return Quantized(ESTIMATORS[estimator](latents, codes), indices, latents, codes, loss, terms)
