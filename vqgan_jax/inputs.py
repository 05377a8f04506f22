"""What to draw, out of classes, files and held-out examples, as `sample` takes it and as a sheet shows it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from vqgan_jax import api, build, data
from vqgan_jax.data import images, views
from vqgan_jax.models import Prior
from vqgan_jax.train import program

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


def classes(prior: Prior, labels: Sequence[int] | None) -> Subjects:
    """The classes that are asked for, or all."""
    everything = range(prior.module.condition.num_labels)
    return Subjects(np.array(everything if labels is None else labels, np.int32), {})


def nothing(count: int) -> Subjects:
    """For a prior that is told nothing."""
    return Subjects(np.zeros(count, np.int32), {})


def given(prior: Prior, values: np.ndarray, size: Size, names: Sequence[str] = ()) -> Subjects:
    """Conditions, beside pictures of them; `names` are those of the classes.

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
    """Conditions of examples that the prior did not see, of the training size, beside the examples themselves.

    Raises:
      ValueError: the prior was trained on a token cache, which holds no images.
    """
    config, side = prior.config, prior.config.data.image_size
    if data.is_cache(config.data.source):
        raise ValueError("a run on a token cache knows no held-out images; name its conditions by --condition FILE.")
    source = data.spread(program.open_split(config, config.data.eval_split), count)
    (batch,) = data.evaluation_batches(source, image_size=side, batch_size=len(source), fields=build.views(config))
    names = getattr(source, "category_names", ())
    subjects = given(prior, batch[prior.module.condition.field], (side, side), names)
    return subjects._replace(beside=(*subjects.beside, batch["image"]))


def completing(
    prior: Prior, subjects: Subjects, paths: Sequence[str], size: Size, *, keep: float, mask: str | None = None
) -> Subjects:
    """The same subjects with images of which some codes are kept.

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
