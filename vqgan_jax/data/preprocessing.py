"""From an image of any size to a rectangle, in training a square: first the geometry is chosen, then it is applied.

The two are apart so that other maps of the same image can follow the same geometry.
"""

import dataclasses

import numpy as np
from jaxtyping import UInt8
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Which part of an image becomes how large a rectangle.

    Fields:
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
    """Draws short side, place and flip for an image of `height` x `width`; `rng` gives the chance.

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


def apply_geometry(image: UInt8[np.ndarray, "H W 3"], geometry: Geometry) -> UInt8[np.ndarray, "h w 3"]:
    """Cuts and resizes in one go, antialiased bicubic: equal to resizing the whole image and cropping."""
    # The filter reaches over the box's edges into the image, as it does when the whole image is resized.
    left, upper, right, lower = geometry.box
    box = (left, upper, min(right, image.shape[1]), min(lower, image.shape[0]))  # rounding may pass the edge
    height, width = geometry.size
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box))
    return resized[:, ::-1] if geometry.flip else resized
