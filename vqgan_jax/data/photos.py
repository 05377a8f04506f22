"""A source without a download: the colour photographs and textures that scikit-image ships in its wheel."""

import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import UInt8

from vqgan_jax.data import images

FILES = (
    "astronaut.png",
    "brick.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
NAMES = tuple(file.split(".")[0] for file in FILES)


class Photos:
    """Eleven photographs, whose rightmost fifth is for validation only; the label is the photograph.

    Training examples are the left four fifths, one a photograph: random crops make many of it. Validation examples are
    the held-out strip cut from top to bottom into squares that do not overlap.
    """

    class_names = NAMES

    def __init__(self, *, split: str):
        """Decodes the photographs of `split`, "train" or "validation"; they stay in memory (about 15 MB)."""
        if split not in PARTS:
            raise ValueError(f"the photos' `split` must be one of {', '.join(PARTS)}; got {split!r}. Choose one.")
        self.name, part = f"photos/{split}", PARTS[split]
        self._examples = [(image, np.int32(i)) for i, name in enumerate(NAMES) for image in part(photograph(name))]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: SupportsIndex) -> Mapping[str, Any]:
        """Image (uint8 H W 3, read-only) and label (int32) number `index`."""
        image, label = self._examples[index]
        return {"image": image, "label": label}


@functools.cache
def photograph(name: str) -> UInt8[np.ndarray, "H W 3"]:
    """The whole photograph, both of its parts."""
    file = FILES[NAMES.index(name)]
    # The package's own folder, not `skimage.data.NAME()`, which may go to the network.
    return images.decode(resources.files("skimage").joinpath("data", file).read_bytes(), name=f"skimage/data/{file}")


def training_part(photograph: UInt8[np.ndarray, "H W 3"]) -> list[np.ndarray]:
    """The left four fifths."""
    return [photograph[:, : photograph.shape[1] * 4 // 5]]


def validation_tiles(photograph: UInt8[np.ndarray, "H W 3"]) -> list[np.ndarray]:
    """Squares of the rightmost fifth, from top to bottom."""
    strip = photograph[:, photograph.shape[1] * 4 // 5 :]
    side = strip.shape[1]
    return [strip[top : top + side] for top in range(0, strip.shape[0] - side + 1, side)]


PARTS = {"train": training_part, "validation": validation_tiles}
