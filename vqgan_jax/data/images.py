"""From the bytes of an image file, whatever its kind, to 8-bit RGB; or an `ImageError` that names the file."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps


class ImageError(ValueError):
    """An image file cannot be used: it is no image, damaged, too large, or has no defined brightness."""


def decode(data: bytes | str | os.PathLike[str], *, name: str = "") -> UInt8[np.ndarray, "H W 3"]:
    """Decodes an encoded image into RGB values 0 to 255, in the orientation in which people look at it.

    Grey is repeated over three channels; transparency is laid over white; palette and CMYK are converted; 16-bit grey
    is scaled to 8 bits (0 to 65535 becomes 0 to 255, rounded), not clipped; of an animation the first frame counts;
    the EXIF orientation is applied. Colour profiles are ignored.

    Args:
      data: the bytes of a file in any format that Pillow reads, or the path of such a file.
      name: what to call the image in errors; the path where `data` is one.

    Returns:
      The decoded image, read-only.

    Raises:
      ImageError: if the image is undecodable, truncated, larger than `PIL.Image.MAX_IMAGE_PIXELS`, or holds numbers
        without a defined white (32-bit integers beyond 65535, floating point).
      OSError: if the file at the path `data` cannot be read.
    """
    data, name = file_bytes(data, name)
    with readable(name):
        return np.asarray(_to_rgb(open_image(data)))


def file_bytes(data: bytes | str | os.PathLike[str], name: str) -> tuple[bytes, str]:
    """The bytes of a file, and what to call it; read before decoding, for a disk that fails is not a damaged image."""
    return (data, name) if isinstance(data, bytes) else (Path(data).read_bytes(), name or os.fspath(data))


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Whatever goes wrong within becomes an `ImageError` that names the file."""
    try:
        yield
    except Exception as error:  # damaged files make Pillow raise SyntaxError, struct.error, KeyError, zlib.error, ...
        raise ImageError(
            f"an image must be a whole, readable file; {name or 'this one'} is not ({type(error).__name__}: {error}). "
            "Replace or remove it."
        ) from error


def open_image(data: bytes) -> Image.Image:
    """The first frame, upright, with its pixels loaded; all sorts of errors if the file is damaged, see `readable`."""
    image = Image.open(io.BytesIO(data))
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:  # Pillow itself only warns up to twice the limit
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels exceed the limit of {limit}")
    return ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return _from_wide_grey(np.asarray(image)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_wide_grey(grey: np.ndarray) -> Image.Image:
    """16-bit grey, which Pillow also hands out as 32-bit integers, and whose own conversion clips at 255."""
    if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() > 65535:
        raise ValueError(f"{grey.dtype} values from {grey.min()} to {grey.max()} have no defined white")
    return Image.fromarray(np.round(grey / 257).astype(np.uint8))
