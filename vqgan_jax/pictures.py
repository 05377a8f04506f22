"""Pictures for people: grids of images, as arrays and as PNG."""

import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont


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
    image = Image.new("RGB", (size, size), (238, 238, 238))
    draw, lines = ImageDraw.Draw(image), text.replace("_", " ").replace(" ", "\n")
    for points in range(max(size // 4, 6), 5, -1):
        font = ImageFont.load_default(points)
        left, top, right, bottom = draw.multiline_textbbox((0, 0), lines, font=font)
        if right - left <= size * 0.92 and bottom - top <= size * 0.92:
            break
    middle = (size - left - right) / 2, (size - top - bottom) / 2
    draw.multiline_text(middle, lines, fill=(40, 40, 40), font=font, align="center")
    return np.asarray(image)


def png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """The file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()
