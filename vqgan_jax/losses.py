r"""The losses of both stages as functions of arrays; unreduced, so that the caller weights, masks and averages.

Section 3.1 and equations 4 to 7 of the paper (Esser et al. 2021, Taming Transformers). `logits_real` and `logits_fake`
are the discriminator's outputs for images and for reconstructions, positive where it believes them real.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

ADAPTIVE_CEILING = 1e4  # the published code's bound of the adaptive weight


class LeCam(NamedTuple):
    """Running averages of the discriminator's mean logits."""

    real: Float[Array, ""]
    fake: Float[Array, ""]


def l1_loss(images: Float[Array, "*b"], recon: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Absolute difference of every value."""
    return jnp.abs(images - recon)


def l2_loss(images: Float[Array, "*b"], recon: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Squared difference of every value."""
    return jnp.square(images - recon)


def pixel_cross_entropy(one_hot: Float[Array, "*b n"], logits: Float[Array, "*b n"]) -> Float[Array, "*b"]:
    """Cross-entropy of each pixel's category: the reconstruction loss of segmentations (appendix A of the paper)."""
    return -jnp.sum(one_hot * jax.nn.log_softmax(logits, axis=-1), axis=-1)


def pixel_binary_cross_entropy(one_hot: Float[Array, "*b"], logits: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Binary cross-entropy of every channel of every pixel: what the published code takes for segmentations."""
    return jax.nn.softplus(logits) - one_hot * logits


def bit_entropies(logits: Float[Array, "n d"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Entropies, in nats, of distributions over the 2^d values of d independent bits.

    The entropy of independent bits is the sum of their entropies. The probability of a value is the probability of its
    lower bits times that of its upper bits, so the mean over the batch is one product of two matrices with about
    2^(d/2) columns, and no array has n 2^d elements. Under `jax.jit` the batch is the global one.

    Args:
      logits: of each bit to be 1.

    Returns:
      The mean of the entropies, and the entropy of the mean distribution.
    """
    size = jnp.abs(logits)  # the entropy of a bit is even in its logit
    entropy = jnp.sum(jax.nn.softplus(-size) + size * jax.nn.sigmoid(-size), axis=-1)

    def probabilities(logits: Float[Array, "n d"]) -> Float[Array, "n k"]:
        values = jnp.ones((len(logits), 1))
        for i in range(logits.shape[1]):
            bit = logits[:, i : i + 1]
            values = jnp.concatenate([values * jax.nn.sigmoid(-bit), values * jax.nn.sigmoid(bit)], axis=-1)
        return values

    half = logits.shape[1] // 2
    lower, upper = probabilities(logits[:, :half]), probabilities(logits[:, half:])
    mean = jnp.einsum("nl,nu->lu", lower, upper, precision=jax.lax.Precision.HIGHEST) / len(logits)
    return entropy.mean(), -jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-20)))


def lecam_loss(logits_real: Float[Array, "*b"], logits_fake: Float[Array, "*b"], average: LeCam) -> Float[Array, ""]:
    """LeCAM regularization: penalises means of logits beyond the running average of the other kind (Tseng et al. 2021).

    Args:
      logits_real, logits_fake: of the batch; only their means count, as in VQGAN+.
      average: running averages of these means before this step.
    """
    real, fake = logits_real.mean(), logits_fake.mean()
    return jnp.square(jax.nn.relu(real - average.fake)) + jnp.square(jax.nn.relu(average.real - fake))


def codebook_loss(latents: Float[Array, "*b d"], codes: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    r"""Squared distance from each code to its (constant) latent, averaged over the code's width.

    .. math:: \frac{1}{d}\lVert \mathrm{sg}[z] - e \rVert_2^2

    Args:
      latents: encoder outputs z before quantisation.
      codes: the nearest codes e.

    Returns:
      One value a position; take the mean.

    References:
      van den Oord et al. 2017, Neural Discrete Representation Learning, equation 3, second term.
    """
    return jnp.mean(jnp.square(jax.lax.stop_gradient(latents) - codes), axis=-1)


def commitment_loss(latents: Float[Array, "*b d"], codes: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    r"""Squared distance from each latent to its (constant) code, averaged over the code's width.

    .. math:: \frac{1}{d}\lVert z - \mathrm{sg}[e] \rVert_2^2

    Args:
      latents: encoder outputs z before quantisation.
      codes: the nearest codes e.

    Returns:
      One value a position; take the mean.

    References:
      van den Oord et al. 2017, Neural Discrete Representation Learning, equation 3, third term.
    """
    return jnp.mean(jnp.square(latents - jax.lax.stop_gradient(codes)), axis=-1)


def lpips_loss(
    difference: Float[Array, "b h w c"], head: Float[Array, "c"], key: Key[Array, ""] | None = None
) -> Float[Array, "b"]:
    r"""One layer of LPIPS: the mean over positions of the weighted squares of a difference of features.

    .. math:: \frac{1}{HW}\sum_{h, w}\lVert w \odot (\hat f - \hat g)_{hw} \rVert_2^2

    Args:
      difference: of the features of two images, each position divided by its length.
      head: the learned weights of the channels, which stand for the squares of w.
      key: drops half of the channels at random, of each position others, and doubles the rest; None drops none.

    References:
      Zhang et al. 2018, The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, equation 1.
    """
    squares = jnp.square(difference)
    if key is not None:
        squares = jnp.where(jax.random.bernoulli(key, 0.5, squares.shape), 2.0 * squares, 0.0)
    # One contraction over space and channels: the weights are linear.
    weighted = jnp.einsum("bhwc,c->b", squares, head, precision=jax.lax.Precision.HIGHEST)
    return weighted / (squares.shape[1] * squares.shape[2])


def hinge_discriminator_loss(logits_real: Float[Array, "*b"], logits_fake: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Half the sum of both hinges (Lim and Ye 2017); exactly 1 for a discriminator that says 0 everywhere."""
    return 0.5 * (jax.nn.relu(1.0 - logits_real) + jax.nn.relu(1.0 + logits_fake))


def vanilla_discriminator_loss(logits_real: Float[Array, "*b"], logits_fake: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Half the sum of both binary cross-entropies; log 2 at chance."""
    return 0.5 * (jax.nn.softplus(-logits_real) + jax.nn.softplus(logits_fake))


def non_saturating_discriminator_loss(
    logits_real: Float[Array, "*b"], logits_fake: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """The sum of both binary cross-entropies (Goodfellow et al. 2014); 2 log 2 at chance."""
    return jax.nn.softplus(-logits_real) + jax.nn.softplus(logits_fake)


def linear_generator_loss(logits_fake: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Minus the logits: what the paper pairs with both the hinge and the vanilla discriminator."""
    return -logits_fake


def non_saturating_generator_loss(logits_fake: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Cross-entropy of calling a reconstruction real."""
    return jax.nn.softplus(-logits_fake)


def adaptive_weight(
    rec_gradient: Float[Array, "*k"],
    generator_gradient: Float[Array, "*k"],
    *,
    eps: float = 1e-4,
    ceiling: float = ADAPTIVE_CEILING,
) -> Float[Array, ""]:
    r"""The weight that makes both losses pull equally hard at the decoder's last kernel; constant.

    .. math:: \lambda = \mathrm{clip}\left(
        \frac{\lVert\nabla_{G_L} \mathcal{L}_{rec}\rVert}
             {\lVert\nabla_{G_L} \mathcal{L}_{GAN}\rVert + \epsilon}, 0, c\right)

    Args:
      rec_gradient: gradient of reconstruction and perceptual loss with respect to that kernel.
      generator_gradient: gradient of the generator loss with respect to it.
      eps: the published code's 1e-4; the paper prints 1e-6.
      ceiling: the bound.

    References:
      Equation 7 of the paper.
    """
    ratio = jnp.linalg.norm(rec_gradient.reshape(-1)) / (jnp.linalg.norm(generator_gradient.reshape(-1)) + eps)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.0, ceiling))


class Adversarial(NamedTuple):
    """The two sides of one game."""

    discriminator_loss: Callable[..., Array]
    generator_loss: Callable[..., Array]


PIXEL = {
    "l1": l1_loss,
    "l2": l2_loss,
    "cross_entropy": pixel_cross_entropy,
    "binary_cross_entropy": pixel_binary_cross_entropy,
}
ADVERSARIAL = {
    "hinge": Adversarial(hinge_discriminator_loss, linear_generator_loss),
    "vanilla": Adversarial(vanilla_discriminator_loss, linear_generator_loss),
    "non_saturating": Adversarial(non_saturating_discriminator_loss, non_saturating_generator_loss),
}


def cross_entropy(
    logits: Float[Array, "*b v"], targets: Int[Array, "*b"], smoothing: float = 0.0
) -> Float[Array, "*b"]:
    r"""Negative log-likelihood of each target, in nats (equation 8 of the paper).

    .. math:: -(1 - s) \log p_y - \frac{s}{v} \sum_i \log p_i

    Args:
      logits: unnormalised log-probabilities; a uniform prediction costs ln v.
      targets: in [0, v).
      smoothing: s, mass that the target gives away to all.
    """
    log_p = jax.nn.log_softmax(logits, axis=-1)
    nll = -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    return (1.0 - smoothing) * nll - smoothing * jnp.mean(log_p, axis=-1) if smoothing else nll
