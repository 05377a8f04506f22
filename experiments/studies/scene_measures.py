"""How far samples of scenes obey what they were given, exactly: scenes can be read back by colour.

Each function takes images (uint8 b s s 3) and the truth of one condition, and gives one number in [0, 1] an image.
"""

import numpy as np
from jaxtyping import Float, Int, UInt8

from vqgan_jax.data.scenes import label_by_color, segment_by_color

Images = UInt8[np.ndarray, "b s s 3"]
Scores = Float[np.ndarray, "b"]


def of_segmentation(images: Images, segmentation: Int[np.ndarray, "b s s"]) -> Scores:
    """Mean over the categories of the map, ground among them, of intersection over union with what the colours say.

    Plain pixel accuracy would praise empty ground: two thirds of a scene are ground.
    """
    shown = segment_by_color(images)
    scores = []
    for seen, given in zip(shown, segmentation, strict=True):
        overlaps = [np.sum((seen == c) & (given == c)) / np.sum((seen == c) | (given == c)) for c in np.unique(given)]
        scores.append(np.mean(overlaps))
    return np.array(scores)


def pixel_accuracy(images: Images, segmentation: Int[np.ndarray, "b s s"]) -> Scores:
    """Share of pixels whose colour says the category of the map."""
    return np.mean(segment_by_color(images) == segmentation, axis=(1, 2))


def of_depth(images: Images, depth: Float[np.ndarray, "b s s 1"]) -> Scores:
    """Share of pairs of pixels, at different depths in the map, that the image orders as the map does.

    A scene's objects all have one true area, so that apparent size tells depth: a pixel is as near as the square root
    of the area of its colour, and ground is farthest. What the image leaves undecided counts half.
    """
    shown, scores = segment_by_color(images), []
    for seen, given in zip(shown, depth[..., 0], strict=True):
        areas = np.bincount(seen.reshape(-1), minlength=9).astype(float)
        areas[0] = 0.0
        pairs = np.random.default_rng(0).integers(given.size, size=(2, 20_000))
        near, far = np.sqrt(areas[seen.reshape(-1)])[pairs], given.reshape(-1)[pairs]
        asked = np.sign(far[0] - far[1])
        told = np.sign(near[0] - near[1])
        scores.append(np.mean((1 + asked * told)[asked != 0] / 2))
    return np.array(scores)


def of_label(images: Images, labels: Int[np.ndarray, "b"]) -> Scores:
    """1 where the most frequent colour is that of the class."""
    return (label_by_color(images) == labels).astype(float)


def of_boxes(images: Images, boxes: Float[np.ndarray, "b n 4"], categories: Int[np.ndarray, "b n"]) -> Scores:
    """Mean over the objects of intersection over union of the given box with the box around its colour's pixels.

    Given boxes are of whole shapes, hidden parts too, so that even the true image stays below 1.
    """
    shown, size = segment_by_color(images), images.shape[1]
    scores = []
    for seen, layout, kinds in zip(shown, boxes, categories, strict=True):
        overlaps = [
            overlap(np.argwhere(seen == kind + 1) / size, box, 1 / size)
            for box, kind in zip(layout, kinds, strict=True)
            if kind >= 0
        ]
        scores.append(np.mean(overlaps))
    return np.array(scores)


def overlap(pixels: Float[np.ndarray, "p 2"], box: Float[np.ndarray, "4"], side: float) -> float:
    """Intersection over union of a box (x y w h) with the one around pixels (y x, each `side` wide); 0 without any."""
    if not len(pixels):
        return 0.0
    low, high = pixels.min(0)[::-1], pixels.max(0)[::-1] + side
    corners = box[:2], box[:2] + box[2:]
    shared = np.prod(np.maximum(np.minimum(high, corners[1]) - np.maximum(low, corners[0]), 0.0))
    return float(shared / (np.prod(high - low) + box[2] * box[3] - shared))
