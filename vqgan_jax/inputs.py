"""What to draw, out of classes, files and held-out examples, as `sample` takes it and as a sheet shows it."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int, Num, UInt8

from vqgan_jax import api, build, data, pictures, prefixes
from vqgan_jax.data import conditions, images, layouts, maps, views
from vqgan_jax.data.preprocessing import Geometry
from vqgan_jax.models import Prior, Tokenizer
from vqgan_jax.nn.pixels import to_output
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
    everything = range(prior.config.condition.num_classes)
    return Subjects(np.array(everything if labels is None else labels, np.int32), {})


def nothing(count: int) -> Subjects:
    """For a prior that is told nothing."""
    return Subjects(np.zeros(count, np.int32), {})


def from_files(prior: Prior, paths: Sequence[str], size: Size) -> Subjects:
    """The condition in each file.

    Args:
      prior: what it is for.
      paths: label maps for segmentation, depth maps, rendered limbs, or photographs of which low resolution and edges
        are made; for boxes and centers, JSON files: a list of {"box": [x, y, width, height], "category": 3}, in [0, 1]
        of the image.
      size: height and width in pixels, to which maps are brought.

    Raises:
      ValueError: a file does not hold what the prior needs.
    """
    kind = prior.module.condition
    if isinstance(kind, conditions.Objects):
        return of_tokens(prior, np.stack([layout_tokens(prior, kind.layout, path, size) for path in paths]))
    if isinstance(kind, conditions.Codes):
        return of_maps(prior, np.stack([read_map(prior, kind.field, path, size) for path in paths]))
    raise ValueError(f"a prior conditioned on {prior.config.condition.kind!r} reads no files; got {paths[0]}.")


def held_out(prior: Prior, count: int) -> Subjects:
    """Conditions of examples that the prior did not see, of the training size, beside the examples themselves.

    Raises:
      ValueError: the prior was trained on a token cache, which holds no images.
    """
    config, field = prior.config, prior.module.condition.field
    if data.is_cache(config.data.source):
        raise ValueError("a run on a token cache knows no held-out images; name its conditions by --condition FILE.")
    source = data.spread(program.open_split(config, config.data.eval_split), count)
    batches = data.evaluation_batches(
        source, image_size=config.data.image_size, batch_size=len(source), fields=build.views(config)
    )
    (batch,) = batches
    make = of_tokens if isinstance(prior.module.condition, conditions.Objects) else of_maps
    subjects = make(prior, batch[field], getattr(source, "category_names", ()))
    return subjects._replace(beside=(*subjects.beside, batch["image"]))


def of_maps(prior: Prior, given: Num[np.ndarray, "n H W ..."], names: Sequence[str] = ()) -> Subjects:
    """Maps, shown as they are and as the prior sees them."""
    return Subjects(np.zeros(len(given), np.int32), {"condition": given}, (pictures.shown(given), seen(prior, given)))


def of_tokens(prior: Prior, tokens: Int[np.ndarray, "n ..."], names: Sequence[str] = ()) -> Subjects:
    """Layouts, shown as outlines; of a larger image the first window's."""
    shown = tokens.reshape(len(tokens), -1, tokens.shape[-1])[:, 0]
    outlines = prior.module.condition.picture(prior.frozen, shown, prior.config.data.image_size, names)
    return Subjects(np.zeros(len(tokens), np.int32), {"condition": tokens}, (outlines,))


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
    pixels = np.stack([fit(views.image, {"image": images.decode(path)}, size) for path in paths])
    codes = np.asarray(api.encode(prior.tokenizer, pixels))
    grid, f = codes.shape[1:], prior.tokenizer.downsample_factor
    if mask is None:
        known = np.asarray(api.known_codes(prior, len(codes), grid, math.floor(keep * math.prod(grid))))
    else:
        white = fit(views.image, {"image": images.decode(mask)}, size)[..., 0] > 127
        drawn = white.reshape(grid[0], f, grid[1], f).any((1, 3))
        known = np.broadcast_to(~drawn, codes.shape)
    rows = {name: array[each] for name, array in subjects.rows.items()} | {"prompt": codes, "known": known}
    kept = np.where(np.repeat(np.repeat(known, f, 1), f, 2)[..., None], pixels, np.uint8(128))
    return Subjects(subjects.labels[each], rows, (*(array[each] for array in subjects.beside), pixels, kept))


def seen(prior: Prior, given: Num[np.ndarray, "n H W ..."]) -> UInt8[np.ndarray, "n H W 3"]:
    """What a prior sees of maps: what their tokenizer keeps of the whole, or of windows that stand side by side.

    Raises:
      ValueError: maps of a size of which this prior draws no images.
    """
    kind, side = prior.module.condition, prior.config.data.image_size
    assert isinstance(kind, conditions.Codes)
    if kind.is_cut(prior.module.grid):
        return pictures.shown(reconstruction(prior.condition or prior.tokenizer, given))
    prefixes.grid_of(prior, given.shape[1:3])
    shown = np.empty((*given.shape[:3], 3), np.uint8)
    starts = [[*range(0, length - side, side), length - side] for length in given.shape[1:3]]
    for top, left in itertools.product(*starts):
        part = np.s_[:, top : top + side, left : left + side]
        tokens = prefixes.prefix(prior, labels=None, condition=given[part], count=None, size=None).tokens
        shown[part] = kind.picture(prior.frozen, np.asarray(tokens), side)
    return shown


def reconstruction(tokenizer: Tokenizer, given: Num[np.ndarray, "n H W ..."]) -> Num[np.ndarray, "n H W ..."]:
    """What a tokenizer keeps of pictures or maps."""
    recon = api.decode(tokenizer, api.encode(tokenizer, given))
    return np.asarray(jax.jit(to_output)(recon, given))


def read_map(prior: Prior, field: str, path: str, size: Size) -> Num[np.ndarray, "H W ..."]:
    """One map, as the loader would show it."""
    view = build.view(prior.config.data, field, prior.config.condition.num_classes)
    if field in ("segmentation", "depth"):
        values = maps.decode_labels(path) if field == "segmentation" else maps.decode_depth(path)
        return fit(view, {field: values, "image": np.zeros((*values.shape, 3), np.uint8)}, size)
    picture = images.decode(path)
    return fit(view, {"image": picture, "keypoints": picture}, size)


def fit(view: views.View, example: dict[str, Any], size: Size) -> np.ndarray:
    """A view of the middle of an example: the largest part with the proportions of `size`, brought to it."""
    height, width, _ = example["image"].shape
    scale = min(height / size[0], width / size[1])
    upper, left = (height - scale * size[0]) / 2, (width - scale * size[1]) / 2
    box = (left, upper, left + scale * size[1], upper + scale * size[0])
    return view(views.cut(example, Geometry(box, size, flip=False), np.random.default_rng(0)))


def layout_tokens(prior: Prior, layout: layouts.Layout, path: str, size: Size) -> Int[np.ndarray, "..."]:
    """A layout's tokens; one row for each window of an image that is larger than those of training."""
    try:
        objects = json.loads(Path(path).read_text())
        boxes = np.array([thing["box"] for thing in objects], np.float64).reshape(-1, 4)
        categories = np.array([thing["category"] for thing in objects], np.int32)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'a layout must be JSON like [{{"box": [x, y, width, height], "category": 3}}, ...]; {path} is not '
            f"({type(error).__name__}: {error}). Correct it."
        ) from error
    modifiers, f = np.zeros_like(categories), prior.tokenizer.downsample_factor
    grid, window = (size[0] // f, size[1] // f), prior.module.grid
    if grid == window:
        return layout.encode(boxes, categories, modifiers, rng=None)
    return layout.windows(boxes, categories, modifiers, grid=grid, window=window, seed=0)
