"""Scene layouts as tokens: which objects an image shows and where, as a prefix for a prior.

A place is one token: the unit square has `sections` x `sections` points, numbered row by row. An object is one token,
its category and modifiers, followed by the points of its two corners, or by that of its centre. What stays empty is
filled with the none token, and two points last of all say which part of the image is looked at.

References:
  Jahn et al. 2021, High-Resolution Complex Scene Synthesis with Transformers; the order of building, the rounding and
  the quirks behind `paper` are those of the code that was released with it, in taming-transformers.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float64, Int, Int32, Int64, Integer, UInt8

from vqgan_jax import pictures
from vqgan_jax.conditions.base import Color, Condition, Grid, HostTokens, Params, Pictures, Size, in_range
from vqgan_jax.data.views import Cut, View

Box: TypeAlias = tuple[float, float, float, float]  # x0 y0 w h, each in [0, 1] of the image

FULL: Box = (0.0, 0.0, 1.0, 1.0)
GROUP, OCCLUDED, DEPICTION, INSIDE = 1, 2, 4, 8  # bits of a modifier
_MODIFIERS = 16
_SLACK = 1e-6  # pixels divided by the image's size may miss 1 by rounding; this moves no point


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objects(Condition):
    """Objects of an image as tokens, which the loader makes; `Boxes` and `Centers` are two forms.

    Attributes:
      object_length: tokens of one object: itself and the points of its two corners, or the point of its centre.
      num_classes: categories are below it. An object's token is category + num_classes * modifier.
      num_tokens: tokens are below it, at least 4. The last one is the none token; objects are below that.
      max_objects: places for objects.
      crop_points: the two corners of the crop come last and boxes stay where they are in the whole image. Else there
        are no such points, and boxes are rescaled to the crop.
      paper: as the published COCO models were trained. The bit `GROUP` is never set, and a rescaled box that sticks
        out on the left or at the top is as large as if it did not, up to the crop's other side.
    """

    argument = "condition"
    rule = "scene"
    files = (".json",)
    object_length: ClassVar[int]

    num_classes: int = 1000
    num_tokens: int = 1024
    max_objects: int = 30
    crop_points: bool = True
    paper: bool = False

    def check(self) -> None:
        """Raises ValueError where there are too few categories, objects or tokens."""
        if min(self.num_classes, self.max_objects) < 1 or self.num_tokens < max(4, self.num_classes + 1):
            raise ValueError(
                "`config.condition.num_classes` and `max_objects` must be positive, and `num_tokens` at least 4 and "
                f"above `num_classes`, for the last token is none; got {self.num_classes}, {self.max_objects} and "
                f"{self.num_tokens}. Correct them."
            )
        super().check()

    @property
    def length(self) -> int:
        """Tokens of one layout: 92 of 30 boxes with the crop, 62 of 30 centres."""
        return self.max_objects * self.object_length + 2 * self.crop_points

    @property
    def num_values(self) -> int:
        """Objects, points and the none token."""
        return self.num_tokens

    @property
    def sections(self) -> int:
        """Points on each side of the unit square, both ends included."""
        return math.isqrt(self.num_tokens)

    @property
    def none(self) -> int:
        """The token of what is not there."""
        return self.num_tokens - 1

    def views(self, data: Any) -> dict[str, View]:
        """Returns the tokens of the objects in the part of an image that is looked at."""
        return {self.field: self._view}

    def _view(self, cut: Cut) -> Int32[np.ndarray, "t"]:
        height, width, _ = cut.example["image"].shape
        left, upper, right, lower = cut.geometry.box
        corner = (left / width, upper / height)
        extent = (min(right / width, 1.0) - corner[0], min(lower / height, 1.0) - corner[1])
        categories = np.asarray(cut.field("categories"))
        modifiers = np.asarray(cut.example.get("modifiers", np.zeros_like(categories)))
        boxes, crop = np.asarray(cut.field("boxes"), np.float64), (*corner, *extent)
        return self.encode_objects(boxes, categories, modifiers, crop=crop, flip=cut.geometry.flip, rng=cut.rng)

    def tokens(self, frozen: Params, value: Any, grid: Grid, origins: np.ndarray | None) -> Int[Array, "b ..."]:
        """Returns tokens of a layout, or of one for each window; ValueError for what is neither."""
        windows = tuple(side - part + 1 for side, part in zip(grid, self.window, strict=True))
        shape = (self.length,) if grid == self.window else (*windows, self.length)
        if jnp.shape(value)[1:] != shape or not jnp.issubdtype(jnp.result_type(value), jnp.integer):
            made_by = "encode_objects" if grid == self.window else "encode_windows"
            raise ValueError(
                f"`condition` must be integers of shape {('b', *shape)}, as the prior's `condition.{made_by}` gives "
                f"them; got {jnp.result_type(value)} of shape {jnp.shape(value)}."
            )
        return in_range("condition", value, self.num_values)

    def places(self, tokens: Int[Array, "b s"]) -> Float[Array, "b s 2"]:
        """Returns where each token stands in the grid of codes, in rows and columns of the part that is looked at.

        A point stands at itself, an object in the middle of its points, and what says nothing at (0, 0).
        """
        last = self.sections - 1
        points = jnp.stack([tokens // self.sections, tokens % self.sections], axis=-1) / last
        known = (tokens < self.none)[..., None]
        first, extent = jnp.zeros((1, 1, 2)), jnp.ones((1, 1, 2))
        if self.crop_points:
            first = points[:, -2:-1]
            extent = jnp.maximum(points[:, -1:] - first, 1 / last)
        count = self.max_objects * self.object_length
        objects = points[:, :count].reshape(len(tokens), -1, self.object_length, 2)
        objects = objects.at[:, :, 0].set(objects[:, :, 1:].mean(axis=2)).reshape(len(tokens), count, 2)
        points = jnp.concatenate([objects, points[:, count:]], axis=1)
        return jnp.where(known, (points - first) / extent * jnp.array(self.window)[None, None] - 0.5, 0.0)

    def read(self, names: Sequence[str], size: Size, data: Any) -> Int[np.ndarray, "n ..."]:
        """Returns tokens of layouts in JSON files; of a larger image for each window.

        A file is a list of {"box": [x, y, width, height], "category": 3}, in [0, 1] of the image.
        """
        return np.stack([self._read(name, size) for name in names])

    def _read(self, path: str, size: tuple[int, int]) -> Int[np.ndarray, "..."]:
        try:
            objects = json.loads(Path(path).read_text())
            boxes = np.array([thing["box"] for thing in objects], np.float64).reshape(-1, 4)
            categories = np.array([thing["category"] for thing in objects], np.int32)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f'a layout must be JSON like [{{"box": [x, y, width, height], "category": 3}}, ...]; {path} is not '
                f"({type(error).__name__}: {error}). Correct it."
            ) from error
        return self._layout(boxes, categories, size)

    def _layout(
        self, boxes: Float64[np.ndarray, "n 4"], categories: Integer[np.ndarray, "n"], size: Size
    ) -> Int[np.ndarray, "..."]:
        """Tokens of objects without modifiers; of a larger image for each window."""
        modifiers, f = np.zeros_like(categories), self.downsample_factor
        grid = (size[0] // f, size[1] // f)
        if grid == self.window:
            return self.encode_objects(boxes, categories, modifiers, rng=None)
        return self.encode_windows(boxes, categories, modifiers, grid=grid, seed=0)

    def brushes(self, names: Sequence[str] = ()) -> dict[str, Color]:
        """Returns the colour of each category, that of its outline in `picture`, on light grey."""
        named = lambda category: str(names[category] if category < len(names) else category)
        return {"nothing": pictures.LIGHT} | {named(i): pictures.color(i + 1) for i in range(self.num_classes)}

    def drawn(self, drawing: UInt8[np.ndarray, "H W 3"], size: Size) -> Int[np.ndarray, "1 ..."]:
        """Returns the tokens of a layout: each blot of one colour is an object, and the box is what it fills.

        Blots of less than a thousandth of the picture are the soft edges of others.
        """
        from skimage import measure  # half a second to import, which only those who draw should pay

        colors = pictures.nearest(drawing, list(self.brushes().values()))
        blots = [blot for blot in measure.regionprops(measure.label(colors)) if blot.area * 1000 >= colors.size]
        if not blots:
            raise ValueError("a layout must show at least one object; the drawing shows none. Draw one larger.")
        boxes = np.array([blot.bbox for blot in blots])[:, [1, 0, 3, 2]] / (2 * drawing.shape[1::-1])
        boxes[:, 2:] -= boxes[:, :2]
        categories = np.array([colors[tuple(blot.coords[0])] - 1 for blot in blots])
        return self._layout(boxes, categories, size)[None]

    def picture(self, frozen: Params, tokens: HostTokens, size: int, names: Sequence[str] = ()) -> Pictures:
        """Returns outlines with the categories' names, or their numbers."""

        def outlines(row: np.ndarray) -> list[tuple[str, tuple[float, ...], tuple[int, ...]]]:
            objects = [(number % self.num_classes, box) for number, box in self.decode_objects(row)]
            return [(names[c] if c < len(names) else str(c), tuple(box), pictures.color(c + 1)) for c, box in objects]

        known = np.minimum(tokens, self.none)  # a null token is no object
        return np.stack([pictures.boxes(outlines(row), size) for row in known])

    def beside(self, frozen: Params, values: np.ndarray, size: Size, names: Sequence[str] = ()) -> tuple[Pictures, ...]:
        """Returns outlines; of a larger image those of the first window."""
        first = values.reshape(len(values), -1, values.shape[-1])[:, 0]
        return super().beside(frozen, first, size, names)

    def encode_objects(
        self,
        boxes: Float64[np.ndarray, "n 4"],
        categories: Integer[np.ndarray, "n"],
        modifiers: Integer[np.ndarray, "n"],
        *,
        crop: Box = FULL,
        flip: bool = False,
        rng: np.random.Generator | None,
    ) -> Int32[np.ndarray, "{self.length}"]:
        """Tokens of an image's objects.

        Of more than `max_objects` objects the first are kept, then they are shuffled, then those that share no area
        with the crop are left out.

        Args:
          boxes: x0 y0 w h of each object, in [0, 1] of the whole image.
          categories: of each, in [0, num_classes); below 0 is padding.
          modifiers: sums of `GROUP`, `OCCLUDED`, `DEPICTION` and `INSIDE`; 0 where nothing is known.
          crop: the part of the image that is looked at.
          flip: whether that part is mirrored left to right.
          rng: of the order; None leaves it as it is.

        Raises:
          ValueError: if a category, a modifier, a box or the crop is out of range.
        """
        chosen = np.flatnonzero(categories >= 0)
        numbers = self._numbers(categories.astype(np.int64), modifiers.astype(np.int64), chosen)
        part = np.array([crop], np.float64)
        _check_boxes("object {}", boxes, chosen)
        _check_boxes("the crop", part, np.arange(1))
        if min(crop[2:]) <= 0:
            raise ValueError(f"the crop's width and height must be positive; got {crop}. Correct it.")
        chosen = chosen[: self.max_objects]
        if rng is not None:
            chosen = rng.permutation(chosen)
        chosen = chosen[_overlap(boxes[chosen], part)]
        boxes = boxes[chosen]
        if not self.crop_points:
            boxes = self._rescaled(boxes, part)
        if flip:
            boxes, part = _mirrored(boxes), _mirrored(part)
        start, extent = boxes[:, :2], boxes[:, 2:]
        places = [start + extent / 2] if self.object_length == 2 else [start, start + extent]
        rows = np.column_stack([numbers[chosen], *map(self._points, places)])
        tokens = np.full(self.length, self.none, np.int32)
        tokens[: rows.size] = rows.ravel()
        if self.crop_points:
            tokens[-2:] = self._points(np.concatenate([part[:, :2], part[:, :2] + part[:, 2:]]))
        return tokens

    def decode_objects(self, tokens: Integer[np.ndarray, "t"]) -> list[tuple[int, Box]]:
        """Token and box of each object, in their order; boxes are as exact as points are dense, centres have no size.

        The category is the token modulo `num_classes`, the modifier its quotient. Boxes are where the points are:
        in the whole image with `crop_points`, else in the crop.

        Raises:
          ValueError: if the tokens are not as many as a layout has.
        """
        if tokens.shape != (self.length,):
            raise ValueError(f"a layout must have {self.length} tokens; got shape {tokens.shape}. Give one at a time.")
        rows = tokens[: self.max_objects * self.object_length].reshape(-1, self.object_length)
        return [(int(row[0]), self._box(row[1], row[-1])) for row in rows if row[0] != self.none]

    def encode_windows(
        self,
        boxes: Float64[np.ndarray, "n 4"],
        categories: Integer[np.ndarray, "n"],
        modifiers: Integer[np.ndarray, "n"],
        *,
        grid: Grid,
        seed: int,
    ) -> Int32[np.ndarray, "_rows _columns {self.length}"]:
        """Tokens of an image that is larger than the window a prior looks through, for every place of the window.

        Args:
          boxes, categories, modifiers: see `encode_objects`.
          grid: rows and columns of codes of the image, H and W; those of the window are h and w.
          seed: of the orders, not negative; each place has its own, the same whenever it is asked for.

        Returns:
          H - h + 1 by W - w + 1 layouts: at [i, j] that of the crop whose upper left code is (i, j).

        Raises:
          ValueError: if the window is larger than the grid; see also `encode_objects`.
        """
        (height, width), (rows, columns) = grid, self.window
        if not (1 <= rows <= height and 1 <= columns <= width):
            raise ValueError(
                f"the window {self.window} must fit into `grid`, in codes; got {grid}. Ask for a larger image."
            )
        shape = (height - rows + 1, width - columns + 1)
        tokens = np.empty((*shape, self.length), np.int32)
        for i, j in np.ndindex(shape):
            crop = (j / width, i / height, columns / width, rows / height)
            rng = np.random.default_rng((seed, i, j))
            tokens[i, j] = self.encode_objects(boxes, categories, modifiers, crop=crop, rng=rng)
        return tokens

    def _numbers(
        self, categories: Int64[np.ndarray, "n"], modifiers: Int64[np.ndarray, "n"], chosen: Int64[np.ndarray, "m"]
    ) -> Int64[np.ndarray, "n"]:
        """Tokens of the objects; ValueError if one of those chosen has none."""
        # Upstream compares COCO's flag, the integer 1, with `is True`.
        numbers = categories + self.num_classes * (modifiers & ~GROUP if self.paper else modifiers)
        fine = (categories < self.num_classes) & (modifiers >= 0) & (modifiers < _MODIFIERS) & (numbers < self.none)
        for i in chosen[~fine[chosen]]:
            raise ValueError(
                f"categories must be below {self.num_classes}, modifiers in [0, {_MODIFIERS}), and the token of "
                f"both below the none token {self.none}; got category {categories[i]} with modifier {modifiers[i]} for "
                f"object {i}. Leave it out, or ask for more categories or tokens."
            )
        return numbers

    def _rescaled(self, boxes: Float64[np.ndarray, "n 4"], crop: Float64[np.ndarray, "1 4"]) -> np.ndarray:
        """Boxes as parts of the crop."""
        offset, extent = boxes[:, :2] - crop[:, :2], boxes[:, 2:]
        if not self.paper:
            extent = extent + np.minimum(offset, 0)  # what sticks out at the top or on the left is cut off
        start = np.clip(offset / crop[:, 2:], 0, 1)
        return np.concatenate([start, np.minimum(extent / crop[:, 2:], 1 - start)], axis=1)

    def _points(self, places: Float64[np.ndarray, "n 2"]) -> Int64[np.ndarray, "n"]:
        """The nearest point to each x y; half-way the even one."""
        x, y = np.rint(places * (self.sections - 1)).astype(np.int64).T
        return y * self.sections + x

    def _box(self, first: np.integer, last: np.integer) -> Box:
        """From the points of the upper left and lower right corner."""
        (y0, x0), (y1, x1) = divmod(int(first), self.sections), divmod(int(last), self.sections)
        steps = self.sections - 1
        return x0 / steps, y0 / steps, (x1 - x0) / steps, (y1 - y0) / steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boxes(Objects):
    """Objects and the two corners of each."""

    kind = field = "boxes"
    object_length = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Centers(Objects):
    """Objects and the centre of each."""

    kind = field = "centers"
    object_length = 2


def _check_boxes(name: str, boxes: Float64[np.ndarray, "n 4"], chosen: Int64[np.ndarray, "m"]) -> None:
    """ValueError unless the boxes chosen lie in the image; one that is not a number does not."""
    inside = np.all((boxes >= -_SLACK) & (np.tile(boxes[:, :2], 2) + boxes * (0, 0, 1, 1) <= 1 + _SLACK), axis=1)
    for i in chosen[~inside[chosen]]:
        raise ValueError(
            f"x0, y0, x0 + w and y0 + h must be in [0, 1] of the image, w and h not negative; got {boxes[i].tolist()} "
            f"for {name.format(i)}. Divide pixels by the image's width and height, or clip."
        )


def _overlap(boxes: Float64[np.ndarray, "n 4"], crop: Float64[np.ndarray, "1 4"]) -> Bool[np.ndarray, "n"]:
    """Which boxes share area with the crop; an edge is no area, and a box without any shares none."""
    first = np.maximum(boxes[:, :2], crop[:, :2])
    last = np.minimum(boxes[:, :2] + boxes[:, 2:], crop[:, :2] + crop[:, 2:])
    return np.all(last > first, axis=1)


def _mirrored(boxes: Float64[np.ndarray, "n 4"]) -> Float64[np.ndarray, "n 4"]:
    return np.column_stack([1 - (boxes[:, 0] + boxes[:, 2]), boxes[:, 1:]])
