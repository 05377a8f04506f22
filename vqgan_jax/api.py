"""The verbs for Python users: load once; then pure functions, for the caller's own `jit`, `vmap` and shardings too."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, Key, Num, UInt8

from vqgan_jax import prior as priors
from vqgan_jax import sampling
from vqgan_jax.data.conditions import ClassLabel
from vqgan_jax.models import Prior, Tokenizer
from vqgan_jax.nn import pixels


def encode(tokenizer: Tokenizer, images: Num[Array, "b H W c"] | Num[np.ndarray, "b H W c"]) -> Int[Array, "b h w"]:
    """Indices of images; int32, `downsample_factor` times smaller.

    Args:
      tokenizer: from `load_tokenizer`.
      images: uint8, or float in [-1, 1].

    Raises:
      ValueError: images of another rank, dtype or number of channels, or whose sides are no multiples of the factor.
    """
    check_images(tokenizer, images)
    return _encode(tokenizer, images)


def decode(tokenizer: Tokenizer, indices: Int[Array, "b h w"] | Int[np.ndarray, "b h w"]) -> Float[Array, "b H W c"]:
    """Images of indices; float32, about in [-1, 1], not clipped: see `to_uint8`.

    Under `jit`, where values cannot raise, an index outside [0, codebook_size) makes its image NaN.

    Raises:
      ValueError: indices of another rank or dtype, or outside the codebook.
    """
    shape, dtype = jnp.shape(indices), jnp.result_type(indices)
    if len(shape) != 3 or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"`indices` must be integers of shape (b, h, w); got {dtype} of shape {shape}. Add a batch axis or cast."
        )
    if is_concrete(indices) and not bool(jnp.all((indices >= 0) & (indices < tokenizer.codebook_size))):
        raise ValueError(
            f"`indices` must be in [0, {tokenizer.codebook_size}); got values in [{int(jnp.min(indices))}, "
            f"{int(jnp.max(indices))}]. They belong to another tokenizer, or are tokens of a condition."
        )
    return _decode(tokenizer, indices)


def to_uint8(images: Float[Array, "*b"]) -> UInt8[Array, "*b"]:
    """[-1, 1] to the nearest of the levels 0..255; rounds, never truncates."""
    return pixels.to_uint8(images)


def sample(prior: Prior, key: Key[Array, "*b"], **options: Any) -> Float[Array, "b H W c"]:
    """Images out of the prior; float32, about in [-1, 1]: see `to_uint8`. Arguments and errors: `sample_indices`."""
    return _decode(prior.tokenizer, sample_indices(prior, key, **options))


def sample_indices(
    prior: Prior,
    key: Key[Array, "*b"],
    *,
    labels: Int[Array, "b"] | Int[np.ndarray, "b"] | None = None,
    count: int | None = None,
    prompt: Int[Array, "b h w"] | Int[np.ndarray, "b h w"] | None = None,
    prompt_length: int | Int[Array, ""] | None = None,
    **options: Any,
) -> Int[Array, "b h w"]:
    """Codes out of the prior, row-major, for `decode`.

    Image i depends on its own key, label and prompt only, not on how many are drawn with it.

    Args:
      prior: from `load_prior`.
      key: of all the images, whose number is folded in; or one for each.
      labels: the class of each, for a class-conditional prior.
      count: how many, for an unconditional one without a prompt.
      prompt: codes to begin with, as `encode` gives them; complete grids, of which the tokens that come first in the
        prior's order count.
      prompt_length: how many of these; by default the first half. It may change without a new compilation.
      options: `temperature`, `top_k`, `top_p`, `guidance`, `schedule`, `power`, `greedy`: see `sampling.Settings`.
        What is not given is off.

    Raises:
      ValueError: an argument out of range, or arguments that do not fit the prior or each other.
    """
    settings = sampling.Settings(**options)
    if not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(settings)):
        sampling.check(settings, prior.tokenizer.codebook_size)
    if settings.guidance is not None and not prior.config.condition.drop:
        raise ValueError(
            "`guidance` needs a prior that was trained with condition.drop above 0; this one was not. Leave it out."
        )
    condition = condition_tokens(prior, labels, count if prompt is None else len(prompt))
    codes = math.prod(prior.module.grid)
    if prompt is None:
        prompt, prompt_length = jnp.zeros((len(condition), *prior.module.grid), jnp.int32), 0
    check_indices(prior, prompt, len(condition))
    prompt_length = codes // 2 if prompt_length is None else prompt_length
    if is_concrete(prompt_length) and not 0 <= int(prompt_length) <= codes:
        raise ValueError(
            f"`prompt_length` must be in 0 .. {codes}, the codes of an image; got {int(prompt_length)}. Lower it."
        )
    if key.shape not in ((), (len(condition),)):
        raise ValueError(f"`key` must be one key, or one for each of {len(condition)} images; got {key.shape}.")
    return _sample(prior, key, condition, jnp.asarray(prompt), jnp.asarray(prompt_length), settings)


def log_likelihood(
    prior: Prior,
    images_or_indices: Num[Array, "b ..."] | Num[np.ndarray, "b ..."],
    *,
    labels: Int[Array, "b"] | Int[np.ndarray, "b"] | None = None,
) -> Float[Array, "b"]:
    """Logarithm of the probability that the prior gives to the codes of each image, in nats a sequence.

    Args:
      prior: from `load_prior`.
      images_or_indices: images as `encode` takes them, or their indices.
      labels: the class of each, for a class-conditional prior.

    Raises:
      ValueError: images or indices of another size than the prior's grid, or labels that do not fit.
    """
    indices = images_or_indices
    if jnp.ndim(indices) == 4:
        indices = encode(prior.tokenizer, indices)
    check_indices(prior, indices, len(indices))
    return _log_likelihood(prior, condition_tokens(prior, labels, len(indices)), jnp.asarray(indices))


@jax.jit
def _encode(tokenizer: Tokenizer, images: Any) -> Any:
    images = pixels.to_float(images) if images.dtype == jnp.uint8 else images.astype(jnp.float32)
    rngs = {"gumbel": jax.random.key(0)}  # drawn from only with `noisy_eval`
    quantized: Any = tokenizer.module.apply({"params": tokenizer.params}, images, method="encode", rngs=rngs)
    return quantized.indices


@jax.jit
def _decode(tokenizer: Tokenizer, indices: Any) -> Any:
    known = (indices >= 0) & (indices < tokenizer.codebook_size)
    images: Any = tokenizer.module.apply({"params": tokenizer.params}, indices, method="decode_indices")
    return jnp.where(known.all((1, 2))[:, None, None, None], images, jnp.nan)


@jax.jit
def _sample(prior: Prior, key: Any, condition: Any, prompt: Any, prompt_length: Any, settings: Any) -> Any:
    keys = key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(condition)))
    tokens = prompt.reshape(len(prompt), -1)[:, prior.module.forward]
    return priors.sample(prior.module, prior.params, condition, keys, settings, tokens, prompt_length)


@jax.jit
def _log_likelihood(prior: Prior, condition: Any, indices: Any) -> Any:
    return -priors.nll(prior.module, prior.params, condition, indices).sum(axis=1)


def condition_tokens(prior: Prior, labels: Any, count: int | None) -> Int[Array, "b s"]:
    """The prefix of each image; raises ValueError where `labels` and `count` do not fit the prior."""
    condition = prior.module.condition
    if not isinstance(condition, ClassLabel):
        if labels is not None:
            raise ValueError("`labels` are for a class-conditional prior; this one has no classes. Leave them out.")
        if count is None or count < 1:
            raise ValueError(f"an unconditional prior needs `count`, the number of images; got {count}.")
        return jnp.zeros((count, condition.length), jnp.int32)
    if labels is None:
        raise ValueError("a class-conditional prior needs `labels`, the class of each image; none were given.")
    if jnp.ndim(labels) != 1 or not jnp.issubdtype(jnp.result_type(labels), jnp.integer):
        raise ValueError(
            f"`labels` must be integers of shape (b,), the class of each image; got {jnp.result_type(labels)} of shape "
            f"{jnp.shape(labels)}."
        )
    if count is not None and len(labels) != count:
        raise ValueError(f"`labels` must be as many as the images, {count}; got {len(labels)}.")
    if is_concrete(labels) and not bool(jnp.all((labels >= 0) & (labels < condition.num_classes))):
        raise ValueError(
            f"`labels` must be in [0, {condition.num_classes}); got values in [{int(jnp.min(labels))}, "
            f"{int(jnp.max(labels))}]. Leave the others out."
        )
    return jnp.asarray(labels, jnp.int32)[:, None]


def check_indices(prior: Prior, indices: Any, count: int) -> None:
    """Raises ValueError for codes that are not of this prior's grid and codebook."""
    shape, dtype, size = jnp.shape(indices), jnp.result_type(indices), prior.tokenizer.codebook_size
    if shape != (count, *prior.module.grid) or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"codes for this prior must be integers of shape {(count, *prior.module.grid)}; got {dtype} of shape "
            f"{shape}. It was trained on images of {prior.config.data.image_size} pixels."
        )
    if is_concrete(indices) and not bool(jnp.all((indices >= 0) & (indices < size))):
        raise ValueError(f"codes must be in [0, {size}); some are outside. They belong to another tokenizer.")


def is_concrete(array: Any) -> bool:
    """Whether its values can be looked at: not inside somebody's `jit`."""
    return not isinstance(array, Tracer)


def check_images(tokenizer: Tokenizer, images: Any) -> None:
    """Raises ValueError for what `encode` cannot take; what is known only at run time, the range, it cannot see."""
    shape, dtype, f = jnp.shape(images), jnp.result_type(images), tokenizer.downsample_factor
    channels = tokenizer.module.decoder.out_channels
    if len(shape) != 4 or shape[-1] != channels:
        raise ValueError(
            f"`images` must have shape (b, H, W, {channels}); got {shape}. Add a batch axis or convert to RGB."
        )
    if dtype != jnp.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`images` must be uint8 or float in [-1, 1]; got {dtype}. Convert with `.astype(jnp.uint8)`.")
    for axis, size in (("height", shape[1]), ("width", shape[2])):
        if size == 0 or size % f:
            raise ValueError(
                f"`images` {axis} must be a multiple of the downsample factor {f}; got {size}. "
                f"Resize or pad to {max(-(-size // f), 1) * f}."
            )
    if dtype != jnp.uint8 and is_concrete(images) and not bool(jnp.max(jnp.abs(images)) <= 1.01):
        raise ValueError(
            f"float `images` must be in [-1, 1]; got values in [{float(jnp.min(images)):.3g}, "
            f"{float(jnp.max(images)):.3g}]. Pass uint8, or scale by x / 127.5 - 1."
        )
