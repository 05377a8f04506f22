"""From the bytes of a file that people do not look at to numbers: label maps and depth."""

import io
import os

import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from PIL import Image

from vqgan_jax.data import images
from vqgan_jax.data.images import ImageError

NPY_MAGIC = b"\x93NUMPY"  # with which files of `numpy.save` begin

Labels = UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]


def decode_labels(data: bytes | str | os.PathLike[str], *, name: str = "") -> Labels:
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
    data, name = images.file_bytes(data, name)
    with images.readable(name):
        image = images.open_image(data)
    if image.mode in ("1", "L", "P"):
        return np.asarray(image).astype(np.uint8)
    if not image.mode.startswith("I"):
        raise ImageError(
            f"a label map must have one channel of whole numbers, the categories; {name or 'this one'} is of mode "
            f"{image.mode}. Write category numbers instead of colours."
        )
    labels = np.asarray(image)
    if labels.min() < 0 or labels.max() > 65535:
        raise ImageError(
            f"categories of a label map must be within 0 to 65535; {name or 'this one'} has {labels.min()} to "
            f"{labels.max()}. Number them anew."
        )
    return labels.astype(np.uint16)


def decode_depth(data: bytes | str | os.PathLike[str], *, name: str = "") -> Float32[np.ndarray, "H W"]:
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
    data, name = images.file_bytes(data, name)
    with images.readable(name):
        is_array = data.startswith(NPY_MAGIC)
        image = np.load(io.BytesIO(data), allow_pickle=False) if is_array else images.open_image(data)
    return to_depth(_numbers(image, name), name=name)


def _numbers(image: np.ndarray | Image.Image, name: str) -> np.ndarray:
    if isinstance(image, np.ndarray):
        return image
    if image.mode == "RGBA":
        return np.asarray(image).view("<f4")
    if image.mode in ("L", "F") or image.mode.startswith("I"):
        return np.asarray(image)
    raise ImageError(
        f"a map of depth must be grey, floating point, or RGBA for the four bytes of a float; {name or 'this one'} is "
        f"of mode {image.mode}. Store it as one of these."
    )


def to_depth(values: np.ndarray, *, name: str = "") -> Float32[np.ndarray, "H W"]:
    """Depth from numbers of any real type, H W or H W 1; ImageError unless they are that, and finite."""
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise ImageError(
            f"a map of depth must be an array H W of real numbers; {name or 'this one'} is {values.dtype} of shape "
            f"{values.shape}. Store it as such."
        )
    with np.errstate(over="ignore"):  # what is too large for 32 bits becomes infinite
        depth = values.astype(np.float32)
    if not np.isfinite(depth).all():
        raise ImageError(
            f"depth must be finite everywhere; {name or 'this one'} has {np.sum(~np.isfinite(depth))} pixels where it "
            "is not. Fill them, or remove the image."
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
