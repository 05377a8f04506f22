"""What a batch holds of an example: one function a field, each of one rectangle cut of an image.

First the geometry of the rectangle is chosen, then it is applied: every map of an image follows the image's own.
Pictures are resized antialiased; label maps by the nearest pixel, for between two categories there is no third.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32, Int32, Shaped, UInt8
from PIL import Image

# Geometry


class Geometry(NamedTuple):
    """Which part of an image becomes how large a rectangle.

    Attributes:
      box: left, upper, right, lower edge in pixels of the source; fractional.
      size: height and width of the rectangle in pixels.
      flip: whether it is mirrored left to right.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    flip: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How squares are cut from training images.

    Fields:
      image_size: height and width of the square in pixels.
      resize: lowest and highest short side in pixels after resizing, drawn uniformly; equal values fix it.
      crop: where in the resized image the square lies, "random" or "center".
      flip: whether every second square, by chance, is mirrored left to right.
      small: what happens to an image whose short side is below the drawn one, "upscale" or "refuse".

    Raises:
      ValueError: unless 1 <= `image_size` <= lowest <= highest, and `crop` and `small` are among their values.
    """

    image_size: int
    resize: tuple[int, int]
    crop: str
    flip: bool
    small: str

    def __post_init__(self):
        lowest, highest = self.resize
        if not 1 <= self.image_size <= lowest <= highest:
            raise ValueError(
                "`resize` must be (lowest, highest) with image_size <= lowest <= highest; "
                f"got {self.resize} for image_size {self.image_size}. Raise `resize` to at least the image size."
            )
        for field, allowed in (("crop", ("random", "center")), ("small", ("upscale", "refuse"))):
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"`{field}` must be {' or '.join(map(repr, allowed))}; got {getattr(self, field)!r}. "
                    "Choose one of the two."
                )


def evaluation(image_size: int) -> Augmentation:
    """No augmentation: short side to `image_size`, whatever it was, and the centre of that."""
    return Augmentation(
        image_size=image_size, resize=(image_size, image_size), crop="center", flip=False, small="upscale"
    )


def choose_geometry(height: int, width: int, augmentation: Augmentation, rng: np.random.Generator) -> Geometry:
    """Draws short side, place and flip for an image of `height` x `width` from `rng`.

    Raises:
      ValueError: if the image is smaller than the drawn short side and `augmentation.small` is "refuse".
    """
    lowest, highest = augmentation.resize
    short, size = int(rng.integers(lowest, highest + 1)), augmentation.image_size
    if augmentation.small == "refuse" and min(height, width) < short:
        raise ValueError(
            f"with `small` 'refuse' an image's short side must be at least the drawn {short} pixels; got an image of "
            f"{height} x {width}. Lower `resize`, remove the image, or set `small` to 'upscale'."
        )
    resized = [round(side * short / min(height, width)) for side in (height, width)]
    # Drawn even where unused, so that one choice does not move the chance of the others.
    drawn = [int(rng.integers(side - size + 1)) for side in resized]
    flip = bool(rng.random() < 0.5)
    y, x = drawn if augmentation.crop == "random" else [(side - size) // 2 for side in resized]
    scale_y, scale_x = height / resized[0], width / resized[1]
    box = (x * scale_x, y * scale_y, (x + size) * scale_x, (y + size) * scale_y)
    return Geometry(box=box, size=(size, size), flip=flip and augmentation.flip)


def apply_geometry(
    image: Shaped[np.ndarray, "H W *c"], geometry: Geometry, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> Shaped[np.ndarray, "h w *c"]:
    """Cuts and resizes in one go, antialiased: equal to resizing the whole image and cropping.

    Args:
      image: of 8 bits with three channels, or float32 with any number of them or without.
      geometry: the part, and its size in the result.
      resampling: Pillow's filter.
    """
    if image.ndim == 3 and image.dtype != np.uint8:  # Pillow resizes one channel of floats at a time
        return np.stack([apply_geometry(image[..., i], geometry, resampling) for i in range(image.shape[-1])], axis=-1)
    # The filter reaches over the box's edges into the image, as it does when the whole image is resized.
    left, upper, right, lower = geometry.box
    box = (left, upper, min(right, image.shape[1]), min(lower, image.shape[0]))  # rounding may pass the edge
    height, width = geometry.size
    resized = np.asarray(Image.fromarray(image).resize((width, height), resampling, box=box))
    return resized[:, ::-1] if geometry.flip else resized


def nearest(geometry: Geometry, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the pixels of a map of `shape` that the centres of the rectangle's pixels fall in."""
    left, upper, right, lower = geometry.box
    middles = [(np.arange(side) + 0.5) / side for side in geometry.size]
    rows = np.floor(upper + middles[0] * (lower - upper)).astype(int).clip(0, shape[0] - 1)
    columns = np.floor(left + middles[1] * (right - left)).astype(int).clip(0, shape[1] - 1)
    return rows[:, None], (columns[::-1] if geometry.flip else columns)[None]


# Views


Pixels: TypeAlias = UInt8[np.ndarray, "h w 3"] | Float32[np.ndarray, "h w c"]


class Cut(NamedTuple):
    """An example, and which part of it is looked at."""

    example: Mapping[str, Any]
    geometry: Geometry
    image: Pixels  # the part itself
    rng: np.random.Generator

    @property
    def picture(self) -> UInt8[np.ndarray, "h w 3"]:
        """The part itself, of 8 bits; ValueError where it is not."""
        if self.image.dtype != np.uint8:
            raise ValueError(
                "edges and small copies are made of pictures of 8 bits, not of the values of data.value_range. Leave "
                "that key out, or choose another condition.kind."
            )
        return self.image

    def field(self, name: str) -> Any:
        """Returns a field of the whole example; ValueError if the source has none of that name."""
        if name not in self.example:
            raise ValueError(
                f"every example must have `{name}`, which the config asks for; this one has {', '.join(self.example)}. "
                "Choose another source, or another data.field or condition.kind."
            )
        return self.example[name]


View: TypeAlias = Callable[[Cut], Any]


def cut(example: Mapping[str, Any], geometry: Geometry, rng: np.random.Generator) -> Cut:
    """Returns the part of an example that a geometry describes."""
    return Cut(example, geometry, apply_geometry(example["image"], geometry), rng)


def fit(view: View, example: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """A view of the middle of an example: the largest part with the proportions of `size`, brought to it."""
    height, width, _ = example["image"].shape
    scale = min(height / size[0], width / size[1])
    upper, left = (height - scale * size[0]) / 2, (width - scale * size[1]) / 2
    box = (left, upper, left + scale * size[1], upper + scale * size[0])
    return view(cut(example, Geometry(box, size, flip=False), np.random.default_rng(0)))


def image(cut: Cut) -> Pixels:
    """The picture, or values in [-1, 1], over which resizing may have gone a little."""
    return cut.image if cut.image.dtype == np.uint8 else cut.image.clip(-1.0, 1.0)


def label(cut: Cut) -> np.int32:
    """The class; 0 where there is none."""
    return np.int32(cut.example["label"])


PLAIN: Mapping[str, View] = {"image": image, "label": label}


def segmentation(cut: Cut, *, num_classes: int, shift: bool) -> Int32[np.ndarray, "h w"]:
    """The category of each pixel.

    Args:
      cut: of an example with "segmentation", integers H W.
      num_classes: categories are below it.
      shift: adds 1 to each, by which 255 becomes 0: COCO-Stuff's unlabelled pixels.

    Raises:
      ValueError: the example has no such map, or one with a category that there is not, or `shift` and one above 255.
    """
    labels = cut.field("segmentation")
    part = labels[nearest(cut.geometry, labels.shape)]
    if shift and not 0 <= part.min() <= part.max() <= 255:
        raise ValueError(
            "labels of a segmentation must be in 0 to 255 under data.shift_labels, where 255 is unlabelled; got "
            f"{part.min()} to {part.max()}. Number the categories anew, or turn data.shift_labels off."
        )
    part = (part.astype(np.int32) + 1) % 256 if shift else part.astype(np.int32)
    if part.max() >= num_classes:
        raise ValueError(
            f"labels of a segmentation must be below the number of classes, {num_classes}; got {part.max()}. Raise "
            "the number, or look whether data.shift_labels fits the files."
        )
    return part


def depth(cut: Cut) -> Float32[np.ndarray, "h w 1"]:
    """Depth in [-1, 1], from the smallest to the largest of the whole image, as upstream scales it before cropping."""
    values = np.asarray(cut.field("depth"), np.float32)
    low, high = values.min(), values.max()
    scaled = 2 * (values - low) / max(high - low, np.float32(1e-12)) - 1
    return apply_geometry(scaled, cut.geometry, Image.Resampling.BILINEAR)[..., None]


def keypoints(cut: Cut) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of limbs."""
    return apply_geometry(cut.field("keypoints"), cut.geometry)


def coordinates(cut: Cut) -> Float32[np.ndarray, "h w 1"]:
    """Raster position of each pixel in the whole resized image, in [0, 1): (row W + column) / (H W)."""
    height, width, _ = cut.example["image"].shape
    left, upper, right, lower = cut.geometry.box
    h, w = cut.geometry.size
    rows, row = round(height * h / (lower - upper)), round(upper * h / (lower - upper))
    columns, column = round(width * w / (right - left)), round(left * w / (right - left))
    y, x = np.ogrid[row : row + h, column : column + w]
    places = ((y * columns + x) / (rows * columns)).astype(np.float32)[..., None]
    return places[:, ::-1] if cut.geometry.flip else places


def low_resolution(cut: Cut, *, factor: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture at a `factor`-th of its size, and back: both antialiased bicubic."""
    height, width = cut.geometry.size
    picture = Image.fromarray(cut.picture).resize((width // factor, height // factor), Image.Resampling.BICUBIC)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def edges(cut: Cut, *, sigma: float) -> UInt8[np.ndarray, "h w 3"]:
    """Canny's edges of the picture, white on black; `sigma` of its blur in pixels."""
    from skimage.feature import canny  # a second to import, which only those who use it should pay

    grey = (
        cut.picture.astype(np.float64) @ (0.2125, 0.7154, 0.0721) / 127.5 - 1.0
    )  # upstream's range: thresholds fit it
    return np.repeat(canny(grey, sigma=sigma)[..., None], 3, axis=-1).astype(np.uint8) * np.uint8(255)


class Field(NamedTuple):
    """A picture or map that a tokenizer may learn.

    Attributes:
      channels: of it; 0 for one a class.
      view: from `config.data` and the number of classes to its view.
      dtype: of its pixels in a batch.
    """

    channels: int
    view: Callable[[Any, int], View]
    dtype: Any = np.uint8

    @property
    def is_categories(self) -> bool:
        """Whether a pixel is the number of a category: b H W, without channels."""
        return self.channels == 0


FIELDS: Mapping[str, Field] = {
    "image": Field(3, lambda data, classes: image),
    "segmentation": Field(
        0, lambda data, classes: functools.partial(segmentation, num_classes=classes, shift=data.shift_labels), np.int32
    ),
    "depth": Field(1, lambda data, classes: depth, np.float32),
    "low_resolution": Field(
        3, lambda data, classes: functools.partial(low_resolution, factor=data.low_resolution_factor)
    ),
    "edges": Field(3, lambda data, classes: functools.partial(edges, sigma=data.edge_sigma)),
    "keypoints": Field(3, lambda data, classes: keypoints),
}
