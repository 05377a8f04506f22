"""Many samples: in batches over all devices of this process, each sample the same however it is batched."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num, UInt8

from vqgan_jax import api, data
from vqgan_jax.conditions import check_range
from vqgan_jax.data import images, views
from vqgan_jax.models import Prior
from vqgan_jax.nn.pixels import to_uint8
from vqgan_jax.train import program, sharding

Scorer = Callable[[UInt8[np.ndarray, "n H W c"], Int[np.ndarray, "n"]], Any]


def draw(
    prior: Prior,
    labels: Int[np.ndarray, "n"],
    numbers: Int[np.ndarray, "n"],
    *,
    seed: int,
    batch_size: int,
    options: Mapping[str, Any],
    rows: Mapping[str, Num[np.ndarray, "n ..."] | Bool[np.ndarray, "n ..."]] = MappingProxyType({}),
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[UInt8[np.ndarray, "n H W c"], Int[np.ndarray, "n h w"]]:
    """Draws one image for each label and number; it depends on these, its rows and the seed alone.

    Args:
      prior: from `load_prior`.
      labels: classes; zeros for a prior without.
      numbers: which sample of its class each one is.
      seed: of all.
      batch_size: images at a time, rounded up to a multiple of the devices.
      options: of `sample_indices`, the same for all.
      rows: of `sample_indices`, one for each image: "condition", "prompt", "known".
      progress: told how many are done.

    Returns:
      Pixels and codes.
    """
    mesh = sharding.local_mesh()
    split, everywhere = jax.NamedSharding(mesh, sharding.BATCH), sharding.replicated(mesh)
    batch_size = -(-min(batch_size, len(labels)) // mesh.size) * mesh.size
    prior = jax.device_put(prior, everywhere)
    key = jax.random.key(seed)
    if prior.module.condition.num_labels:
        rows = {"labels": labels, **rows}
    check(prior, rows, len(labels), options.get("size"), options.get("stride", 1))
    images, codes = [], []
    for start in range(0, len(labels), batch_size):
        index = np.arange(start, start + batch_size).clip(max=len(labels) - 1)  # the last batch repeats its last row
        put = lambda array: jax.device_put(np.asarray(array)[index], split)  # noqa: B023
        arguments: dict[str, Any] = {name: put(array) for name, array in rows.items()}
        if not arguments.keys() & {"labels", "condition"}:
            arguments["count"] = batch_size
        own = jax.device_put(keys(key, put(labels), put(numbers)), split)  # for `jit` keys at rest are of one form only
        indices = api.sample_indices(prior, own, **arguments, **options)
        images.append(np.asarray(to_uint8(api.decode_samples(prior, indices))))
        codes.append(np.asarray(indices))
        progress(min(start + batch_size, len(labels)))
    return np.concatenate(images)[: len(labels)], np.concatenate(codes)[: len(labels)]


def check(prior: Prior, rows: Mapping[str, Any], count: int, size: tuple[int, int] | None, stride: int) -> None:
    """Raises ValueError for rows out of range: here, on the host, once for all batches. Nothing is computed."""
    labels, condition = rows.get("labels"), rows.get("condition")
    arguments = {"labels": labels, "condition": condition, "count": count, "size": size, "stride": stride}
    jax.eval_shape(lambda: api.prefix(prior, **arguments).tokens)
    if "prompt" in rows:
        check_range("prompt", rows["prompt"], prior.tokenizer.codebook_size, "It is of another tokenizer.")


@jax.jit
def keys(key: Key[Array, ""], labels: Int[Array, "b"], numbers: Int[Array, "b"]) -> Key[Array, "b"]:
    """The key of each image, of that of all."""
    return jax.vmap(lambda label, number: jax.random.fold_in(jax.random.fold_in(key, label), number))(labels, numbers)


def stages(
    prior: Prior, indices: Int[np.ndarray, "h w"], *, known: Bool[np.ndarray, "h w"] | None = None, frames: int = 32
) -> UInt8[np.ndarray, "n H W c"]:
    """How an image came to be: what of its codes is there decoded, and grey where there are none yet.

    Args:
      prior: that drew it.
      indices: all of its codes.
      known: the codes of the prompt.
      frames: at most so many, from none of the drawn codes to all.
    """
    f, count = prior.tokenizer.downsample_factor, indices.size
    order = prior.module.forward if indices.shape == prior.module.grid else np.arange(count)
    drawn = order if known is None else order[~known.reshape(-1)[order]]
    film = []
    for number in np.unique(np.linspace(0, len(drawn), frames).round().astype(int)):
        hidden = np.zeros(count, bool)
        hidden[drawn[number:]] = True
        hidden = hidden.reshape(indices.shape)
        codes = np.where(hidden, 0, indices)[None]
        pixels = np.asarray(to_uint8(api.decode_samples(prior, codes)))[0]
        film.append(np.where(np.repeat(np.repeat(hidden, f, 0), f, 1)[..., None], np.uint8(128), pixels))
    return np.stack(film)


def scored(
    scorer: Scorer, images: UInt8[np.ndarray, "n H W c"], labels: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    """A score for each image of its class.

    Raises:
      ValueError: scores that are not one finite number an image.
    """
    scores = np.asarray(scorer(images, labels), np.float64)
    if scores.shape != labels.shape or not np.all(np.isfinite(scores)):
        raise ValueError(f"a scorer must return {len(labels)} finite numbers, one an image; got shape {scores.shape}.")
    return scores


def best(scores: Float[np.ndarray, "n"], labels: Int[np.ndarray, "n"], count: int) -> Int[np.ndarray, "_"]:
    """Rows of the `count` highest scores of each class, in the order in which they came (section 4.4 of the paper)."""
    order = np.argsort(-scores, kind="stable")
    kept = [order[labels[order] == label][:count] for label in np.unique(labels)]
    return np.sort(np.concatenate(kept))


# What to draw

Size = tuple[int, int]


class Subjects(NamedTuple):
    """Things of which images are drawn.

    Attributes:
      labels: the class of each; zeros for a prior without classes.
      rows: what `sample_indices` takes for each: "condition", "prompt", "known".
      beside: pictures of what each is made of (uint8 n H W 3), from left to right on a sheet.
    """

    labels: Int[np.ndarray, "n"]
    rows: dict[str, np.ndarray]
    beside: tuple[UInt8[np.ndarray, "n H W 3"], ...] = ()


def of_values(prior: Prior, values: np.ndarray, size: Size, names: Sequence[str] = ()) -> Subjects:
    """Returns a subject for each value of the prior's condition, with pictures of it.

    Args:
      prior: what they are for.
      values: as `sample_indices` takes them.
      size: height and width of the samples in pixels.
      names: of the classes.

    Raises:
      ValueError: maps of a size of which the prior draws no images.
    """
    beside = prior.module.condition.beside(prior.frozen, values, size, names)
    return Subjects(np.zeros(len(values), np.int32), {"condition": values}, beside)


def held_out(prior: Prior, count: int) -> Subjects:
    """Returns subjects of the training size out of held-out examples, with pictures of the examples.

    Raises:
      ValueError: the prior was trained on a token cache, which holds no images.
    """
    config, side = prior.config, prior.config.data.image_size
    if data.is_cache(config.data.source):
        raise ValueError("a run on a token cache knows no held-out images; name its conditions by --condition FILE.")
    source = data.spread(program.open_split(config, config.data.eval_split), count)
    (batch,) = data.evaluation_batches(source, image_size=side, batch_size=len(source), fields=config.views())
    names = getattr(source, "category_names", ())
    subjects = of_values(prior, batch[prior.module.condition.field], (side, side), names)
    return subjects._replace(beside=(*subjects.beside, batch["image"]))


def completing(
    prior: Prior, subjects: Subjects, paths: Sequence[str], size: Size, *, keep: float, mask: str | None = None
) -> Subjects:
    """Returns the same subjects with images of which some codes stay.

    Args:
      prior: that completes them.
      subjects: one for each file, or one for all.
      paths: of the images.
      size: height and width in pixels, to which they are brought.
      keep: share of the codes to keep, the first in the prior's order.
      mask: path of a picture, white where codes are to be drawn anew; `keep` does not matter then.

    Raises:
      ValueError: neither one subject nor as many as files.
    """
    if len(subjects.labels) not in (1, len(paths)):
        raise ValueError(
            f"give one class or condition, or one for each of {len(paths)} files; got {len(subjects.labels)}."
        )
    each = np.zeros(len(paths), int) if len(subjects.labels) == 1 else np.arange(len(paths))
    pixels = np.stack([views.fit(views.image, {"image": images.decode(path)}, size) for path in paths])
    codes = np.asarray(api.encode(prior.tokenizer, pixels))
    grid, f = codes.shape[1:], prior.tokenizer.downsample_factor
    if mask is None:
        known = np.asarray(api.known_codes(prior, len(codes), grid, math.floor(keep * math.prod(grid))))
    else:
        white = views.fit(views.image, {"image": images.decode(mask)}, size)[..., 0] > 127
        drawn = white.reshape(grid[0], f, grid[1], f).any((1, 3))
        known = np.broadcast_to(~drawn, codes.shape)
    rows = {name: array[each] for name, array in subjects.rows.items()} | {"prompt": codes, "known": known}
    kept = np.where(np.repeat(np.repeat(known, f, 1), f, 2)[..., None], pixels, np.uint8(128))
    return Subjects(subjects.labels[each], rows, (*(array[each] for array in subjects.beside), pixels, kept))
