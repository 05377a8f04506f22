"""Pictures for people: grids, colours of maps, outlines of objects, words, PNG and GIF."""

import colorsys
import io
import math
import textwrap
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from einops import rearrange
from jaxtyping import Float32, Integer, Num, UInt8
from PIL import Image, ImageDraw, ImageFont

DARK, LIGHT = (40, 40, 40), (238, 238, 238)
_Rectangle: TypeAlias = tuple[float | int, ...]  # left top right bottom, in pixels
_GOLDEN = (math.sqrt(5) - 1) / 2  # steps of this part of the circle never come near each other soon


def grid(images: UInt8[np.ndarray, "n H W c"], *, columns: int, gap: int = 2) -> UInt8[np.ndarray, "_H _W 3"]:
    """Returns images side by side, row by row, on white; a single channel is shown as grey."""
    colored = images if images.shape[-1] == 3 else np.repeat(images[..., :1], 3, axis=-1)
    spaced = np.pad(colored, ((0, -len(images) % columns), (0, gap), (0, gap), (0, 0)), constant_values=255)
    sheet = rearrange(spaced, "(row column) h w rgb -> (row h) (column w) rgb", column=columns)
    return sheet[: sheet.shape[0] - gap, : sheet.shape[1] - gap]


def pairs(
    originals: UInt8[np.ndarray, "n H W c"], recons: UInt8[np.ndarray, "n H W c"], *, columns: int = 8
) -> UInt8[np.ndarray, "_H _W 3"]:
    """Returns rows of originals, each with the row of their reconstructions below."""
    filled = np.pad(
        np.stack([originals, recons]), ((0, 0), (0, -len(originals) % columns), *[(0, 0)] * 3), constant_values=255
    )
    return grid(rearrange(filled, "two (row column) h w c -> (row two column) h w c", column=columns), columns=columns)


def wall(
    sheets: Sequence[UInt8[np.ndarray, "_H _W 3"]], *, width: int = 1200, gap: int = 8
) -> UInt8[np.ndarray, "_H _W 3"]:
    """Returns pictures of any size from left to right, in as many lines as `width` pixels need, on white."""
    corners, left, top, height = [], 0, 0, 0
    for sheet in sheets:
        if left and left + sheet.shape[1] > width:
            left, top, height = 0, top + height + gap, 0
        corners.append((top, left))
        left, height = left + sheet.shape[1] + gap, max(height, len(sheet))
    ends = np.add(corners, [sheet.shape[:2] for sheet in sheets])
    canvas = np.full((*ends.max(0), 3), 255, np.uint8)
    for sheet, (top, left), (bottom, right) in zip(sheets, corners, ends, strict=True):
        canvas[top:bottom, left:right] = sheet
    return canvas


def words(text: str, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Returns a square with words in its middle, dark on light grey, as large as fits."""
    image = Image.new("RGB", (size, size), LIGHT)
    draw, text, middle = ImageDraw.Draw(image), text.replace("_", " "), (size / 2, size / 2)
    about_square = max(map(len, text.split(" "))), math.isqrt(2 * len(text))
    lines = textwrap.fill(text, max(*about_square, 1))
    for points in range(max(size // 4, 6), 5, -1):
        font = ImageFont.load_default(points)
        box = draw.multiline_textbbox(middle, lines, font=font, anchor="mm", align="center")
        if min(box) >= size * 0.04 and max(box) <= size * 0.96:
            break
    draw.multiline_text(middle, lines, fill=DARK, font=font, anchor="mm", align="center")
    return np.asarray(image)


def png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """The file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def colors(labels: Integer[np.ndarray, "*b H W"]) -> UInt8[np.ndarray, "*b H W 3"]:
    """Each category, a number that is not negative, in its own color: 0 dark grey, the same ones every time."""
    numbers, places = np.unique(labels, return_inverse=True)
    palette = np.array([color(int(number)) for number in numbers], np.uint8).reshape(-1, 3)
    return palette[places.reshape(-1)].reshape(*labels.shape, 3)


def nearest(image: UInt8[np.ndarray, "H W 3"], palette: Sequence[tuple[int, int, int]]) -> Integer[np.ndarray, "H W"]:
    """Returns the number of the colour that is nearest to each pixel; of equal ones the first."""
    distances = [np.sum(np.square(image - np.asarray(color, np.int32)), axis=-1) for color in palette]
    return np.argmin(distances, axis=0)


def resized(image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "_H _W 3"]:
    """Returns the picture with `size` rows and columns, by the nearest pixel: no new colours."""
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.NEAREST))


def color(number: int) -> tuple[int, int, int]:
    """Hues by the golden ratio, light and dark by turns; the cycles of 4 and 5 tell near hues of far numbers apart."""
    if number == 0:
        return DARK
    lightness, saturation = (0.7, 0.4, 0.6, 0.3)[number % 4], (0.95, 0.8, 0.65, 0.5, 0.35)[number % 5]
    red, green, blue = colorsys.hls_to_rgb(number * _GOLDEN % 1, lightness, saturation)
    return round(255 * red), round(255 * green), round(255 * blue)


def heat(values: Float32[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Numbers in [-1, 1], such as depth, as greys from black to white; what lies outside is as at the end."""
    grey = np.rint((np.clip(values, -1, 1) + 1) * 127.5).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def boxes(
    layout: Sequence[tuple[str, tuple[float, ...], tuple[int, ...]]], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """Outlines of objects on light grey, the small ones above the large.

    Args:
      layout: name, box (x0 y0 w h in [0, 1] of the picture) and color of each object. A box without any size is a
        point and shown as a dot. Names stand inside their boxes, or to the right of their dots, where there is room
        that no other name has taken; else they are left out.
      size: pixels of either side.
    """
    image = Image.new("RGB", (size, size), LIGHT)
    draw, line = ImageDraw.Draw(image), max(size // 96, 1)
    rooms: list[tuple[str, _Rectangle]] = []
    for name, (x, y, w, h), color in sorted(layout, key=lambda entry: -entry[1][2] * entry[1][3]):
        left, top, right, bottom = (round(v * (size - 1)) for v in (x, y, x + w, y + h))
        if w == h == 0:
            draw.rectangle((left - line, top - line, right + line, bottom + line), fill=color)
            rooms.append((name, (left + 2 * line + 1, max(top - size // 28, 0), size - 1, size - 1)))
        else:
            draw.rectangle((left, top, right, bottom), outline=color, width=line)
            rooms.append((name, (left + line + 1, top + line + 1, right - line, bottom - line)))
    taken: list[_Rectangle] = []
    for name, room in reversed(rooms):  # a small box has no other place for its name, a large one may do without
        taken += _write(draw, name, room, taken, max(size // 14, 8))
    return np.asarray(image)


def _write(
    draw: ImageDraw.ImageDraw, name: str, room: _Rectangle, taken: Sequence[_Rectangle], largest: int
) -> list[_Rectangle]:
    """Writes a name into the upper left of its room; the rectangle that it takes, none if it does not fit."""
    corner = room[0], room[1]
    for points in range(largest, 7, -1):
        font = ImageFont.load_default(points)
        left, top, right, bottom = place = draw.textbbox(corner, name, font=font, anchor="lt")
        over = any(left < t[2] and t[0] < right and top < t[3] and t[1] < bottom for t in taken)
        if right <= room[2] and bottom <= room[3] and not over:
            draw.text(corner, name, fill=DARK, font=font, anchor="lt")
            return [place]
    return []


def animation(frames: Sequence[UInt8[np.ndarray, "H W 3"]], *, fps: int) -> bytes:
    """A GIF that plays for ever and shows its last frame for a second.

    Args:
      frames: one or more, all of one size; beyond 256 colors in one of them, some are merged.
      fps: frames a second, 1 to 50: viewers slow down what is faster.

    Raises:
      ValueError: if there is no frame, or `fps` is out of range.
    """
    if not frames or not 1 <= fps <= 50:
        raise ValueError(f"an animation needs frames, and 1 to 50 of them a second; got {len(frames)} and {fps=}.")
    durations = [round(100 / fps) * 10] * (len(frames) - 1) + [1000]  # the format counts hundredths of a second
    first, *rest = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    first.save(buffer, "gif", save_all=True, append_images=rest, duration=durations, loop=0)
    return buffer.getvalue()


def shown(maps: Num[np.ndarray, "n H W ..."]) -> UInt8[np.ndarray, "n H W 3"]:
    """Pictures of maps: label maps in colours; values of three channels as colours, of others the first in greys.

    Floats are in [-1, 1].
    """
    if maps.ndim == 3:
        return colors(maps)
    if maps.dtype == np.uint8:
        return maps if maps.shape[-1] == 3 else np.repeat(maps[..., :1], 3, axis=-1)
    channels = range(3) if maps.shape[-1] == 3 else (0, 0, 0)
    return np.stack([np.stack([heat(values[..., i])[..., 0] for i in channels], axis=-1) for values in maps])
