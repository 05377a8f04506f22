"""Pictures for people: grids of images, as arrays and as PNG."""

import colorsys
import io
import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, Integer, Num, UInt8
from PIL import Image, ImageDraw, ImageFont

DARK, LIGHT = (40, 40, 40), (238, 238, 238)
_Rectangle: TypeAlias = tuple[int, int, int, int]  # left top right bottom, in pixels
_GOLDEN = (math.sqrt(5) - 1) / 2  # steps of this part of the circle never come near each other soon


def grid(images: UInt8[np.ndarray, "n H W c"], *, columns: int, gap: int = 2) -> UInt8[np.ndarray, "_H _W 3"]:
    """Images side by side, row by row, on white; a single channel is shown as grey."""
    n, height, width, channels = images.shape
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[y : y + height, x : x + width] = image if channels == 3 else np.repeat(image[..., :1], 3, axis=-1)
    return sheet


def pairs(
    originals: UInt8[np.ndarray, "n H W c"], recons: UInt8[np.ndarray, "n H W c"], *, columns: int = 8
) -> UInt8[np.ndarray, "_H _W 3"]:
    """Rows of originals, each with the row of their reconstructions below."""
    rows: list[np.ndarray] = []
    for start in range(0, len(originals), columns):
        for row in (originals[start : start + columns], recons[start : start + columns]):
            blank = np.full((columns - len(row), *row.shape[1:]), 255, np.uint8)
            rows += [row, blank]
    return grid(np.concatenate(rows), columns=columns)


def wall(
    sheets: Sequence[UInt8[np.ndarray, "_H _W 3"]], *, width: int = 1200, gap: int = 8
) -> UInt8[np.ndarray, "_H _W 3"]:
    """Pictures of any size from left to right, in as many lines as a sheet of about `width` pixels needs, on white."""
    lines: list[list[np.ndarray]] = [[]]
    for sheet in sheets:
        if lines[-1] and sum(s.shape[1] + gap for s in lines[-1]) + sheet.shape[1] > width:
            lines.append([])
        lines[-1].append(sheet)
    full = max(sum(s.shape[1] + gap for s in line) - gap for line in lines)
    canvas = np.full((sum(max(s.shape[0] for s in line) + gap for line in lines) - gap, full, 3), 255, np.uint8)
    y = 0
    for line in lines:
        x = 0
        for sheet in line:
            canvas[y : y + sheet.shape[0], x : x + sheet.shape[1]] = sheet
            x += sheet.shape[1] + gap
        y += max(sheet.shape[0] for sheet in line) + gap
    return canvas


def words(text: str, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """A square with a word or two in its middle, dark on light grey, as large as fits."""
    image = Image.new("RGB", (size, size), LIGHT)
    draw, lines = ImageDraw.Draw(image), text.replace("_", " ").replace(" ", "\n")
    for points in range(max(size // 4, 6), 5, -1):
        font = ImageFont.load_default(points)
        left, top, right, bottom = draw.multiline_textbbox((0, 0), lines, font=font)
        if right - left <= size * 0.92 and bottom - top <= size * 0.92:
            break
    middle = (size - left - right) / 2, (size - top - bottom) / 2
    draw.multiline_text(middle, lines, fill=DARK, font=font, align="center")
    return np.asarray(image)


def png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """The file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def colors(labels: Integer[np.ndarray, "*b H W"]) -> UInt8[np.ndarray, "*b H W 3"]:
    """Each category, a number that is not negative, in its own color: 0 dark grey, the same ones every time."""
    numbers, places = np.unique(labels, return_inverse=True)
    palette = np.array([_color(int(number)) for number in numbers], np.uint8).reshape(-1, 3)
    return palette[places.reshape(-1)].reshape(*labels.shape, 3)


def _color(number: int) -> tuple[int, int, int]:
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
    for points in range(largest, 7, -1):
        font = ImageFont.load_default(points)
        left, top, right, bottom = draw.textbbox((0, 0), name, font=font)
        place = (*room[:2], room[0] + math.ceil(right - left), room[1] + math.ceil(bottom - top))
        over = any(place[0] < t[2] and t[0] < place[2] and place[1] < t[3] and t[1] < place[3] for t in taken)
        if place[2] <= room[2] and place[3] <= room[3] and not over:
            draw.text((room[0] - left, room[1] - top), name, fill=DARK, font=font)
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
    """Pictures of maps: label maps in colours, floats in [-1, 1] in greys, pictures as they are."""
    if maps.ndim == 3:
        return colors(maps)
    return maps if maps.dtype == np.uint8 else np.stack([heat(values[..., 0]) for values in maps])
