"""The verbs for Python users: load once; then pure functions, for the caller's own `jit`, `vmap` and shardings too.

No verb waits for a device. So shapes and dtypes are checked of everything, but values of what is on the host only
(NumPy arrays, Python numbers): those raise. Of a `jax.Array`, which may still be in the making, and under `jit`, codes,
labels and tokens of a condition that are out of range show in what comes of them: codes are -1, images,
vectors and likelihoods NaN, each in its own row. The values of images and maps on a device are not looked at.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num

from vqgan_jax import prior as priors
from vqgan_jax import sampling
from vqgan_jax.conditions import Prefix, check_range, mark_out_of_range, on_host
from vqgan_jax.models import Prior, Tokenizer
from vqgan_jax.nn import pixels

OVERLAP = 8  # a tile reaches by its side / 8 into its neighbours


def encode(tokenizer: Tokenizer, images: Num[Array, "b H W ..."] | Num[np.ndarray, "b H W ..."]) -> Int[Array, "b h w"]:
    """Indices of images; int32, `downsample_factor` times smaller.

    Args:
      tokenizer: from `load_tokenizer`.
      images: uint8, or float in [-1, 1]; label maps (integers b H W) for a tokenizer of segmentations.

    Raises:
      ValueError: images of another rank, dtype or number of channels, or whose sides are no multiples of the factor;
        images on the host with values out of range.
    """
    check_images(tokenizer, images)
    return _encode(tokenizer, images)


def decode(
    tokenizer: Tokenizer, indices: Int[Array, "b h w"] | Int[np.ndarray, "b h w"], *, tile: int | None = None
) -> Float[Array, "b H W c"]:
    """Images of indices; float32, about in [-1, 1], not clipped: see `to_uint8`.

    An index outside [0, codebook_size) that cannot raise, on a device or under `jit`, makes its image NaN.

    Args:
      tokenizer: from `load_tokenizer`.
      indices: as `encode` gives them.
      tile: codes from one tile to the next; larger images are decoded in tiles one after the other, so that memory
        stays bounded. None decodes every image whole. See `decode_tiles`.

    Raises:
      ValueError: indices of another rank or dtype, or, on the host, outside the codebook; a tile that is not positive.
    """
    check_codes(tokenizer, indices)
    if tile is not None and tile < 1:
        raise ValueError(f"`tile` must be a positive number of codes; got {tile}. Leave it out to decode whole images.")
    return _decode(tokenizer, indices, tile)


def embed(tokenizer: Tokenizer, indices: Int[Array, "b h w"] | Int[np.ndarray, "b h w"]) -> Float[Array, "b h w d"]:
    """Codes of indices; float32: the vectors that the decoder is given, of unit length where the quantizer's are.

    An index outside [0, codebook_size) that cannot raise, on a device or under `jit`, has a code of NaN.

    Args:
      tokenizer: from `load_tokenizer`.
      indices: as `encode` gives them.

    Raises:
      ValueError: indices of another rank or dtype, or, on the host, outside the codebook.
    """
    check_codes(tokenizer, indices)
    return _embed(tokenizer, indices)


def sample(prior: Prior, key: Key[Array, "*b"], **options: Any) -> Float[Array, "b H W c"]:
    """Images out of the prior; float32, about in [-1, 1]: see `to_uint8`. Arguments and errors: `sample_indices`.

    What is larger than twice the training images, and a quarter, is decoded in tiles of that size.
    """
    return decode_samples(prior, sample_indices(prior, key, **options))


def decode_samples(prior: Prior, indices: Int[Array, "b h w"] | Int[np.ndarray, "b h w"]) -> Float[Array, "b H W c"]:
    """Images of a prior's codes, in tiles where they are larger than twice those of training, and a quarter."""
    return decode(prior.tokenizer, indices, tile=2 * max(prior.module.grid))


def sample_indices(
    prior: Prior,
    key: Key[Array, "*b"],
    *,
    labels: Int[Array, "b"] | Int[np.ndarray, "b"] | None = None,
    condition: Num[Array, "b ..."] | Num[np.ndarray, "b ..."] | Sequence[str] | None = None,
    count: int | None = None,
    size: tuple[int, int] | None = None,
    prompt: Int[Array, "b h w"] | Int[np.ndarray, "b h w"] | None = None,
    prompt_length: int | Int[Array, ""] | None = None,
    known: Bool[Array, "b h w"] | Bool[np.ndarray, "b h w"] | None = None,
    stride: int = 1,
    **options: Any,
) -> Int[Array, "b h w"]:
    """Codes out of the prior, row-major, for `decode`.

    Image i depends on its own key, condition and prompt only, not on how many are drawn with it. A label or token out
    of range that cannot raise, on a device or under `jit`, makes the codes of its image -1.

    Args:
      prior: from `load_prior`.
      key: of all the images, whose number is folded in; or one for each.
      labels: the class of each, for a class-conditional prior.
      condition: the map of each, for a prior over maps: segmentation (integers b H W), depth (float b H W 1 in
        [-1, 1]), or low_resolution, edges, keypoints (uint8 b H W 3); for one over objects, their tokens as
        `encode_objects` of its condition makes them, b s, or for a larger image `encode_windows`, b n m s;
        for one over captions, their texts, or token ids b s.
      count: how many, for a prior that has neither, without a prompt.
      size: height and width in pixels; by default the map's, or those of training. Larger images are drawn through a
        sliding window of the training size (section 4.3 of the paper), which needs the order "raster". Of a map that
        the config brings to another size, each window's part is encoded as in training.
      prompt: codes that are given, as `encode` gives them; complete grids.
      prompt_length: how many of these count, in the prior's order; by default the first half. It may change without a
        new compilation.
      known: or which of them count; what is drawn sees of them what comes before it in the order.
      stride: the window of a larger image is centred anew at every `stride`-th row and column only; 1 as published,
        more is faster, up to half the window.
      options: `temperature`, `top_k`, `top_p`, `guidance`, `schedule`, `power`, `greedy`: see `sampling.Settings`.
        What is not given is off.

    Raises:
      ValueError: an argument out of range, or arguments that do not fit the prior or each other.
    """
    settings = sampling.Settings(**options)
    if all(on_host(leaf) for leaf in jax.tree.leaves(settings)):
        sampling.check(settings, prior.tokenizer.codebook_size)
    if settings.guidance is not None and not prior.module.condition.droppable:
        raise ValueError(
            "`guidance` needs a prior that was trained with condition.drop above 0; this one was not. Leave it out."
        )
    if prompt is not None and count is None and labels is None and condition is None:
        count = len(prompt)
    tokens, grid = prefix(prior, labels=labels, condition=condition, count=count, size=size, stride=stride)
    batch = len(tokens)
    if prompt is None and known is not None:
        raise ValueError("`known` says which codes of a `prompt` count; no prompt was given. Give both.")
    if prompt is None:
        prompt, known = jnp.zeros((batch, *grid), jnp.int32), jnp.zeros((batch, *grid), bool)
    check_indices(prior, prompt, batch, grid)
    known = known_codes(prior, batch, grid, prompt_length) if known is None else jnp.asarray(known)
    if known.shape != prompt.shape:
        raise ValueError(f"`known` must have the prompt's shape, {prompt.shape}; got {known.shape}.")
    if key.shape not in ((), (batch,)):
        raise ValueError(f"`key` must be one key, or one for each of {batch} images; got {key.shape}.")
    if grid == prior.module.grid:
        return _sample(prior, key, tokens, jnp.asarray(prompt), known, settings)
    return _sample_large(prior, key, tokens, jnp.asarray(prompt), known, settings, grid, stride)


def prefix(
    prior: Prior, *, labels: Any, condition: Any, count: int | None, size: tuple[int, int] | None, stride: int = 1
) -> Prefix:
    """The condition's tokens before the codes of each image, and the grid of codes that it asks for.

    Args:
      prior: from `load_prior`.
      labels, condition, count, size, stride: see `sample_indices`.

    Raises:
      ValueError: something is missing, out of range, or does not fit the prior or the rest.
    """
    kind, origins = prior.module.condition, None
    value = kind.value_of(labels=labels, condition=condition, count=count)
    grid = kind.grid_of(kind.size_of(value, size))
    if grid != kind.window:
        priors.check_order(prior.module)
        origins = priors.visited(priors.runs(grid, kind.window, kind.rule, stride))
    return Prefix(kind.tokens(prior.frozen, value, grid, origins), grid)


def known_codes(
    prior: Prior, batch: int, grid: tuple[int, int], length: int | Int[Array, ""] | None
) -> Bool[Array, "b h w"]:
    """True for the first `length` codes in the prior's order, half of them if None.

    A length on a device counts as the nearest that there is.

    Raises:
      ValueError: a length on the host that is negative, or more than there are.
    """
    codes = math.prod(grid)
    length = codes // 2 if length is None else length
    if on_host(length) and not 0 <= int(length) <= codes:
        raise ValueError(
            f"`prompt_length` must be in 0 .. {codes}, the codes of an image; got {int(length)}. Lower it."
        )
    if grid == prior.module.grid:
        return priors.leading(prior.module, length, batch)
    return jnp.broadcast_to((jnp.arange(codes) < length).reshape(1, *grid), (batch, *grid))


def log_likelihood(
    prior: Prior,
    images_or_indices: Num[Array, "b ..."] | Num[np.ndarray, "b ..."],
    *,
    labels: Int[Array, "b"] | Int[np.ndarray, "b"] | None = None,
    condition: Num[Array, "b ..."] | Num[np.ndarray, "b ..."] | Sequence[str] | None = None,
) -> Float[Array, "b"]:
    """Logarithm of the probability that the prior gives to the codes of each image, in nats a sequence.

    NaN for codes, a label or tokens out of range that cannot raise, on a device or under `jit`.

    Args:
      prior: from `load_prior`.
      images_or_indices: images as `encode` takes them, or their indices.
      labels, condition: as in `sample_indices`.

    Raises:
      ValueError: images or indices of another size than the prior's grid, or labels that do not fit.
    """
    indices = images_or_indices
    if jnp.ndim(indices) == 4:
        indices = encode(prior.tokenizer, indices)
    check_indices(prior, indices, len(indices), prior.module.grid)
    tokens, grid = prefix(prior, labels=labels, condition=condition, count=len(indices), size=None)
    if grid != prior.module.grid:
        raise ValueError(
            f"`condition` must be of the size of the training images, {prior.image_size} pixels a side; got one of an "
            f"image of {grid} codes. A likelihood is of one window: crop both."
        )
    return _log_likelihood(prior, tokens, jnp.asarray(indices))


@jax.jit
def _encode(tokenizer: Tokenizer, images: Any) -> Any:
    if jnp.issubdtype(images.dtype, jnp.floating):
        images = images.astype(jnp.float32)
    images = pixels.to_input(images, tokenizer.module.image_channels)
    rngs = {"gumbel": jax.random.key(0)}  # drawn from only with `noisy_eval`
    quantized: Any = tokenizer.module.apply({"params": tokenizer.params}, images, method="encode", rngs=rngs)
    return quantized.indices


@jax.jit
def _embed(tokenizer: Tokenizer, indices: Any) -> Any:
    lookup = lambda module, codes: module.quantizer.lookup(codes)
    codes: Any = tokenizer.module.apply({"params": tokenizer.params}, indices, method=lookup)
    known = (indices >= 0) & (indices < tokenizer.codebook_size)
    return jnp.where(known[..., None], codes.astype(jnp.float32), jnp.nan)


@functools.partial(jax.jit, static_argnames="tile")
def _decode(tokenizer: Tokenizer, indices: Any, tile: int | None) -> Any:
    known = (indices >= 0) & (indices < tokenizer.codebook_size)
    decode: Any = lambda codes: tokenizer.module.apply({"params": tokenizer.params}, codes, method="decode_indices")
    if tile is None:
        images = decode(indices)
    else:
        images = decode_tiles(decode, indices, factor=tokenizer.downsample_factor, tile=tile, overlap=tile // OVERLAP)
    return jnp.where(known.all((1, 2))[:, None, None, None], images, jnp.nan)


@jax.jit
def _sample(prior: Prior, key: Any, condition: Any, prompt: Any, known: Any, settings: Any) -> Any:
    indices = priors.sample(prior.module, prior.params, condition, keys_of(key, prompt), settings, prompt, known)
    return jnp.where(fine(condition)[:, None, None], indices, -1)


@functools.partial(jax.jit, static_argnames=("grid", "stride"))
def _sample_large(
    prior: Prior, key: Any, tokens: Any, prompt: Any, known: Any, settings: Any, grid: tuple[int, int], stride: int
) -> Any:
    at = functools.partial(prior.module.condition.window_of, tokens)
    rule = prior.module.condition.rule
    indices = priors.sample_larger(
        prior.module, prior.params, at, grid, keys_of(key, prompt), settings, prompt, known, rule=rule, stride=stride
    )
    return jnp.where(fine(tokens)[:, None, None], indices, -1)


def fine(tokens: Int[Array, "b ..."]) -> Bool[Array, "b"]:
    """Whether all tokens of a row are in range: `conditions.mark_out_of_range` made the others -1."""
    return (tokens >= 0).all(axis=tuple(range(1, tokens.ndim)))


def keys_of(key: Key[Array, "*b"], rows: Array) -> Key[Array, "b"]:
    """A key for each row."""
    return key if key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows.shape[0]))


@jax.jit
def _log_likelihood(prior: Prior, condition: Any, indices: Any) -> Any:
    nats = -priors.nll(prior.module, prior.params, condition, indices).sum(axis=1)
    codes = mark_out_of_range(indices, prior.tokenizer.codebook_size)
    return jnp.where(fine(condition) & fine(codes), nats, jnp.nan)


def check_indices(prior: Prior, indices: Any, count: int, grid: tuple[int, int]) -> None:
    """Raises ValueError for codes that are not of this prior's grid and codebook."""
    shape, dtype, size = jnp.shape(indices), jnp.result_type(indices), prior.tokenizer.codebook_size
    if shape != (count, *grid) or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"codes for this prior must be integers of shape {(count, *grid)}; got {dtype} of shape {shape}. It was "
            f"trained on images of {prior.image_size} pixels."
        )
    check_range("codes", indices, size, "They belong to another tokenizer.")


def check_codes(tokenizer: Tokenizer, indices: Any) -> None:
    """Raises ValueError for what is no grid of codes, and for values on the host that are outside the codebook."""
    shape, dtype = jnp.shape(indices), jnp.result_type(indices)
    if len(shape) != 3 or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"`indices` must be integers of shape (b, h, w); got {dtype} of shape {shape}. Add a batch axis or cast."
        )
    hint = "They belong to another tokenizer, or are tokens of a condition."
    check_range("indices", indices, tokenizer.codebook_size, hint)


def check_images(tokenizer: Tokenizer, images: Any) -> None:
    """Raises ValueError for what `encode` cannot take, and for values on the host that are out of range."""
    shape, dtype, f = jnp.shape(images), jnp.result_type(images), tokenizer.downsample_factor
    channels = tokenizer.module.image_channels
    labels = len(shape) == 3 and jnp.issubdtype(dtype, jnp.integer) and channels not in (1, 3)
    if not labels and (len(shape) != 4 or shape[-1] != channels):
        raise ValueError(
            f"`images` must have shape (b, H, W, {channels}); got {shape}. Add a batch axis or convert to RGB."
        )
    if not labels and dtype != jnp.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`images` must be uint8 or float in [-1, 1]; got {dtype}. Convert with `.astype(jnp.uint8)`.")
    for axis, size in (("height", shape[1]), ("width", shape[2])):
        if size == 0 or size % f:
            raise ValueError(
                f"`images` {axis} must be a multiple of the downsample factor {f}; got {size}. "
                f"Resize or pad to {max(-(-size // f), 1) * f}."
            )
    if labels:
        check_range("images", images, channels, "The tokenizer knows only so many classes.")
    floats = jnp.issubdtype(dtype, jnp.floating) and on_host(images)
    if floats and not np.max(np.abs(images)) <= 1.01:
        raise ValueError(
            f"float `images` must be in [-1, 1]; got values in [{np.min(images):.3g}, {np.max(images):.3g}]. Pass "
            "uint8, or scale by x / 127.5 - 1."
        )


# Grids of codes of any size in bounded memory: tile after tile, blended where they overlap.


def tile_starts(side: int, tile: int, overlap: int) -> Int[np.ndarray, "n"]:
    """Returns where the tiles along an axis begin: a tile's distance apart, the last one flush with the end."""
    count = max(-(-(side - 2 * overlap) // tile), 1)
    return np.minimum(np.arange(count) * tile, max(side - tile - 2 * overlap, 0))


def tile_weights(side: int, tile: int, overlap: int, factor: int) -> Float[np.ndarray, "n p"]:
    """Returns the weights of each tile's pixels along an axis: those of all tiles add up to 1 everywhere.

    A tile rises from 0 to 1 along the 2 overlaps of codes that it shares with the one before, which falls meanwhile.
    """
    start = tile_starts(side, tile, overlap)[:, None]
    pixel = start * factor + np.arange(min(tile + 2 * overlap, side) * factor) + 0.5  # its centre, in the image
    width = max(2 * overlap * factor, 1)  # of the rise in pixels: without an overlap a step, between two of them
    risen = lambda number: np.clip((pixel - (number * tile + overlap) * factor) / width + 0.5, 0, 1)
    number = np.arange(len(start))[:, None]
    rise = np.where(number == 0, 1.0, risen(number))
    fall = np.where(number == len(start) - 1, 0.0, risen(number + 1))
    return (rise - fall).astype(np.float32)


def decode_tiles(
    decode_fn: Callable[[Int[Array, "b h w"]], Float[Array, "b H W c"]],
    indices: Int[Array, "b h w"],
    *,
    factor: int,
    tile: int,
    overlap: int,
) -> Float[Array, "b H W c"]:
    """Decodes tiles one after the other; memory holds the result and what one tile of each image needs.

    Tiles have `tile + 2 * overlap` codes a side. Neighbours share the last and first `2 * overlap`, along which one
    fades linearly into the other. What fits into one tile is decoded whole: the result is `decode_fn`'s own.

    Otherwise it is not what `decode_fn` would make of the whole: GroupNorm takes its statistics from a tile, and the
    attention in the middle of a decoder sees no further. Tiles that are as large as the training images keep to what
    the decoder has learnt; larger ones come nearer to the whole.

    Args:
      decode_fn: from indices to images, `factor` times larger.
      indices: codes of any grid.
      factor: pixels along a side of a code.
      tile: codes from one tile to the next.
      overlap: codes by which a tile reaches beyond that, on each side.

    Returns:
      float32, of the scale that `decode_fn` gives.

    Raises:
      ValueError: a tile that is smaller than 1 or than two overlaps, so that three would meet; a negative overlap.
    """
    if not 0 <= 2 * overlap <= tile or tile < 1:
        raise ValueError(
            f"`tile` must be positive and at least twice the `overlap`; got {tile} and {overlap}. Enlarge the tile."
        )
    batch, height, width = indices.shape
    part = (min(tile + 2 * overlap, height), min(tile + 2 * overlap, width))
    if part == (height, width):
        return decode_fn(indices).astype(jnp.float32)
    rows, columns = tile_starts(height, tile, overlap), tile_starts(width, tile, overlap)
    down, across = (jnp.asarray(tile_weights(side, tile, overlap, factor)) for side in (height, width))

    def add(image: Array, number: Array) -> tuple[Array, None]:
        i, j = number // len(columns), number % len(columns)
        row, column = jnp.asarray(rows)[i], jnp.asarray(columns)[j]
        codes = jax.lax.dynamic_slice(indices, (0, row, column), (batch, *part))
        pixels = decode_fn(codes).astype(jnp.float32) * (down[i][:, None] * across[j][None])[None, :, :, None]
        at = (0, row * factor, column * factor, 0)
        return jax.lax.dynamic_update_slice(image, jax.lax.dynamic_slice(image, at, pixels.shape) + pixels, at), None

    channels = jax.eval_shape(decode_fn, jax.ShapeDtypeStruct((batch, *part), indices.dtype)).shape[-1]
    image = jnp.zeros((batch, height * factor, width * factor, channels), jnp.float32)
    return jax.lax.scan(add, image, jnp.arange(len(rows) * len(columns)))[0]
