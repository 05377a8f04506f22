"""From image files to arrays: pictures as 8-bit RGB, values of any channels, label maps, depth; or an `ImageError`."""

import contextlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image, ImageOps

Data = bytes | str | os.PathLike[str]  # the bytes of a file, or its path
Labels = UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]


TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # what such a file begins with
PNG = b"\x89PNG\r\n\x1a\n"


class ImageError(ValueError):
    """An image file cannot be used: it is no image, damaged, too large, or holds other values than it must."""


def decode(data: Data, *, name: str = "") -> UInt8[np.ndarray, "H W 3"]:
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
    with _readable(data, name) as (content, _):
        return np.asarray(_to_rgb(_open(content)))


def decode_values(data: Data, value_range: tuple[float, ...], *, name: str = "") -> Float32[np.ndarray, "H W c"]:
    """Decodes an image of any number of channels, of whole numbers or floats, to [-1, 1] by its values as stored.

    Args:
      data: the bytes of a file, or its path: PNG and what else Pillow reads, TIFF of any channels (pages of one size
        are channels, too), or an array of `numpy.save`, H W or H W c.
      value_range: the values that become -1 and 1; what lies outside is as at the end.
      name: what to call the image in errors; the path where `data` is one.

    Raises:
      ImageError: if the file is damaged, too large, a PNG of 16-bit colours, which Pillow cuts to 8, or holds values
        that are no numbers or not finite.
      OSError: if the file at the path `data` cannot be read.
    """
    with _readable(data, name) as (content, name):
        values = _values(content, name)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or 0 in values.shape or values.dtype.kind not in "biuf" or not np.isfinite(values).all():
        raise ImageError(
            f"an image must be an array H W or H W c of finite numbers; {name} is {values.dtype} of shape "
            f"{values.shape}{', with values that are not finite' * (values.dtype.kind == 'f')}. Mend or remove it."
        )
    low, high = value_range
    return (2 * (values.astype(np.float64).clip(low, high) - low) / (high - low) - 1).astype(np.float32)


def _values(content: bytes, name: str) -> np.ndarray:
    """The values of a file as they are stored; of an array or a TIFF, of whatever shape."""
    if content.startswith(np.lib.format.MAGIC_PREFIX):
        return np.load(io.BytesIO(content), allow_pickle=False)
    if content[:4] in TIFF:
        from tifffile import TiffFile  # half a second to import, which only those who use it should pay

        with TiffFile(io.BytesIO(content)) as file:
            series = file.series[0]
            _check_pixels(*series.shape)
            rows, columns = series.axes.index("Y"), series.axes.index("X")
            values = np.moveaxis(series.asarray(), (rows, columns), (0, 1))
            return values.reshape(*values.shape[:2], -1)
    image = _open(content)
    if content.startswith(PNG) and content[24] == 16 and image.mode not in ("I", "I;16", "F"):
        raise ImageError(
            f"Pillow cuts 16-bit colours of a PNG to 8 bits; {name} is one. Write a TIFF or an .npy instead."
        )
    return np.asarray(image.convert("RGB") if image.mode == "P" else image)


def decode_labels(data: Data, *, name: str = "") -> Labels:
    """Decodes a label map: the stored number of each pixel's category.

    Args:
      data: the bytes of an image file of 1, 8 or 16 bits a pixel, or its path. Of a palette the indices count, not
        the colours.
      name: what to call the map in errors; the path where `data` is one.

    Returns:
      Category numbers, 16 bits wide where the file is wider than 8.

    Raises:
      ImageError: if the file is damaged, too large, has more than one channel, or numbers outside 0 to 65535.
      OSError: if the file at the path `data` cannot be read.
    """
    with _readable(data, name) as (content, name):
        image = _open(content)
    labels = np.asarray(image)
    if image.mode in ("1", "L", "P"):
        return labels.astype(np.uint8)
    if not image.mode.startswith("I"):
        raise ImageError(
            f"a label map must have one channel of whole numbers, the categories; {name} is of mode {image.mode}. "
            "Write category numbers instead of colours."
        )
    if labels.min() < 0 or labels.max() > 65535:
        raise ImageError(
            f"categories of a label map must be within 0 to 65535; {name} has {labels.min()} to {labels.max()}. Number "
            "them anew."
        )
    return labels.astype(np.uint16)


def decode_depth(data: Data, *, name: str = "") -> Float32[np.ndarray, "H W"]:
    """Decodes a map of depth; its values are as stored, in whatever unit.

    Four channels of 8 bits are the bytes of one little-endian float32 a pixel, as the published depth maps of MiDaS
    are stored; grey of 8 or 16 bits and floating point TIFF are taken as they are, and so is an array of `numpy.save`.

    Args:
      data: the bytes of such a file, or its path.
      name: what to call the map in errors; the path where `data` is one.

    Raises:
      ImageError: if the file is damaged, too large, of another kind, or holds values that are not finite.
      OSError: if the file at the path `data` cannot be read.
    """
    with _readable(data, name) as (content, name):
        if content.startswith(np.lib.format.MAGIC_PREFIX):
            return to_depth(np.load(io.BytesIO(content), allow_pickle=False), name=name)
        image = _open(content)
    values = np.asarray(image)
    if image.mode == "RGBA":
        values = values.view("<f4")
    elif image.mode not in ("L", "F") and not image.mode.startswith("I"):
        raise ImageError(
            f"a map of depth must be grey, floating point, or RGBA for the four bytes of a float; {name} is of mode "
            f"{image.mode}. Store it as one of these."
        )
    return to_depth(values, name=name)


def to_depth(values: np.ndarray, *, name: str) -> Float32[np.ndarray, "H W"]:
    """Depth from numbers of any real type, H W or H W 1; ImageError unless they are that, and finite."""
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise ImageError(
            f"a map of depth must be an array H W of real numbers; {name} is {values.dtype} of shape {values.shape}. "
            "Store it as such."
        )
    with np.errstate(over="ignore"):  # what is too large for 32 bits becomes infinite
        depth = values.astype(np.float32)
    if not np.isfinite(depth).all():
        raise ImageError(
            f"depth must be finite everywhere; {name} has {np.sum(~np.isfinite(depth))} pixels where it is not. Fill "
            "them, or remove the image."
        )
    return depth


def check_size(values: np.ndarray, image: UInt8[np.ndarray, "H W 3"], *, name: str) -> None:
    """ImageError unless a map, H W or H W 3, is as large as its image."""
    if values.shape[:2] != image.shape[:2]:
        (height, width), (rows, columns) = image.shape[:2], values.shape[:2]
        raise ImageError(
            f"a map must be as large as its image, {width} x {height} pixels; {name} is {columns} x {rows}. Resize "
            "it by the nearest pixel, or replace it."
        )


@contextlib.contextmanager
def _readable(data: Data, name: str) -> Iterator[tuple[bytes, str]]:
    """The bytes of a file and its name for errors; what goes wrong with the bytes is an `ImageError` of that name."""
    content = data if isinstance(data, bytes) else Path(data).read_bytes()  # a disk that fails is no damaged image
    name = name or ("this one" if isinstance(data, bytes) else os.fspath(data))
    try:
        yield content, name
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"an image must have at most {Image.MAX_IMAGE_PIXELS:,} pixels in all, lest one file fill the memory; "
            f"{name} has more (DecompressionBombError: {error}). Make it smaller, or cut it into parts."
        ) from error
    except Exception as error:  # damaged files make Pillow raise SyntaxError, struct.error, KeyError, zlib.error, ...
        raise ImageError(
            f"an image must be a whole, readable file; {name} is not ({type(error).__name__}: {error}). Replace or "
            "remove it."
        ) from error


def _open(content: bytes) -> Image.Image:
    """The first frame, upright, with its pixels loaded; all sorts of errors if the file is damaged."""
    image = Image.open(io.BytesIO(content))
    _check_pixels(image.width, image.height)  # Pillow itself only warns up to twice the limit
    return ImageOps.exif_transpose(image)


def _check_pixels(*sides: int) -> None:
    """DecompressionBombError for more values than Pillow's limit."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and math.prod(sides) > limit:
        raise Image.DecompressionBombError(f"{' x '.join(map(str, sides))} exceed the limit of {limit}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16-bit grey, also as 32-bit integers; Pillow's own conversion clips at 255
        grey = np.asarray(image)
        if grey.dtype.kind == "f" or grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"{grey.dtype} values from {grey.min()} to {grey.max()} have no defined white")
        image = Image.fromarray(np.round(grey / 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
