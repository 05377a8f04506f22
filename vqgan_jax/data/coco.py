"""COCO as it is distributed: photos with boxes and categories of objects, label maps, and limbs of people."""

import colorsys
import functools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Float, Float64, Int32, UInt8
from PIL import Image, ImageDraw

from vqgan_jax.data import images
from vqgan_jax.data.images import ImageError
from vqgan_jax.data.paired import named

SPLITS = {"train": "train2017", "validation": "val2017"}

# The objects and images that the published scene priors were trained on.
MIN_AREA = 1e-5
MIN_OBJECTS, MAX_OBJECTS = 2, 30

# Pairs of joints, counted from 0 as in COCO's own skeleton.
LEGS = ((15, 13), (13, 11), (16, 14), (14, 12))
TRUNK = ((11, 12), (5, 11), (6, 12), (5, 6))
ARMS = ((5, 7), (6, 8), (7, 9), (8, 10))
HEAD = ((1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6))
LIMBS = LEGS + TRUNK + ARMS + HEAD
_COLOURS = [tuple(round(255 * v) for v in colorsys.hsv_to_rgb(i / len(LIMBS), 1.0, 1.0)) for i in range(len(LIMBS))]

Document = Mapping[str, Any]  # an annotation file


class Record(NamedTuple):
    """What is known of one image without looking at it."""

    file_name: str
    size: tuple[int, int]  # width, height
    boxes: Float64[np.ndarray, "n 4"]  # x0 y0 w h, in [0, 1] of the image
    categories: Int32[np.ndarray, "n"]
    modifiers: Int32[np.ndarray, "n"]  # 1 for a group of objects


class Coco:
    """COCO's photos with their objects; categories are those of things and, where there is such a file, of stuff.

    Below PATH lie `annotations/instances_SPLIT.json` and perhaps `stuff_SPLIT.json`, `person_keypoints_SPLIT.json` and
    `captions_SPLIT.json`, the photos in `SPLIT/` or `images/SPLIT/`, and perhaps label maps in `segmentations/SPLIT/`.
    There are no classes; `category_names` name the categories. Examples are in the order of the file.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, path: str | os.PathLike[str], *, split: str):
        """Reads the annotations; `split` is "train2017" or such, and "train" and "validation" are those of 2017.

        Raises:
          ValueError: if annotations, photos or label maps are missing, a box lies outside its image, or no image has
            from 2 to 30 objects.
        """
        root, split = Path(path).expanduser(), SPLITS.get(split, split)
        self.name = f"coco:{os.fspath(path)}/{split}"
        documents = objects_files(root, split)
        self.category_names = tuple(_ranked(documents).values())
        self.records = read_records(documents)
        if not self.records:
            raise ValueError(
                f"{self.name} must hold images of {MIN_OBJECTS} to {MAX_OBJECTS} objects; it holds none. Correct the "
                "annotation files, or choose another split."
            )
        files = [record.file_name for record in self.records]
        self._photos = next((f for f in (root / split, root / "images" / split) if f.is_dir()), root / split)
        _check_there(self._photos, files)
        self._segmentations = root / "segmentations" / split
        self._has_segmentations = self._segmentations.is_dir()
        if self._has_segmentations:
            _check_there(self._segmentations, [_label_map(file) for file in files])
        self._captions_file = root / "annotations" / f"captions_{split}.json"
        self._people, people = None, root / "annotations" / f"person_keypoints_{split}.json"
        if people.exists():
            joints = _by_file(_read(people), "keypoints").items()
            self._people = {file: np.array(values, np.float64).reshape(-1, 17, 3) for file, values in joints}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: SupportsIndex) -> Mapping[str, Any]:
        """Example `index`.

        Returns:
          "image" (uint8 H W 3), "label" (int32, 0), "boxes" (float64 n 4, x0 y0 w h in [0, 1]), "categories" and
          "modifiers" (int32 n); where there are files for them also "segmentation" (uint8 H W) and "keypoints" (uint8
          H W 3, see `draw_limbs`) and, in a function, "text" (captions).

        Raises:
          ImageError: if a file cannot be decoded, or is not as large as annotated.
        """
        record = self.records[index]
        image = images.decode(self._photos / record.file_name)
        if image.shape[1::-1] != record.size:
            raise ImageError(
                f"an image must be as large as annotated, {record.size[0]} x {record.size[1]} pixels; "
                f"{record.file_name} is {image.shape[1]} x {image.shape[0]}. Replace it by the original."
            )
        example = {"image": image, "label": np.int32(0), "boxes": record.boxes}
        example |= {"categories": record.categories, "modifiers": record.modifiers}
        if self._captions_file.exists():
            example["text"] = lambda: [caption.strip() for caption in self._captions.get(record.file_name, [])]
        if self._has_segmentations:
            file = self._segmentations / _label_map(record.file_name)
            example["segmentation"] = images.decode_labels(file)
            images.check_size(example["segmentation"], image, name=os.fspath(file))
        if self._people is not None:
            example["keypoints"] = draw_limbs(self._people.get(record.file_name, np.zeros((0, 17, 3))), record.size)
        return example

    @functools.cached_property
    def _captions(self) -> dict[str, list[str]]:
        """Of each image by its file name; read when the first one is asked for."""
        return _by_file(_read(self._captions_file), "caption")


def objects_files(root: Path, split: str) -> list[Document]:
    """Things and, where annotated, stuff."""
    things, stuff = (root / "annotations" / f"{kind}_{split}.json" for kind in ("instances", "stuff"))
    if not things.exists():
        others = ", ".join(sorted(file.name for file in things.parent.glob("instances_*.json"))) or "none"
        raise ValueError(
            f"`coco:PATH` must name a folder with annotations/{things.name}; {os.fspath(root)!r} has {others} of the "
            "kind. Correct the path, or choose another split."
        )
    return [_read(file) for file in (things, stuff) if file.exists()]


def _read(path: Path) -> Document:
    """An annotation file without its outlines of objects, which are nine tenths of it."""
    without_outline = lambda fields: {key: value for key, value in fields.items() if key != "segmentation"}
    with path.open(encoding="utf-8") as file:
        return json.load(file, object_hook=without_outline)


def _ranked(documents: Iterable[Document]) -> dict[int, str]:
    """From id to name of the categories, in the order of their numbers."""
    names = {entry["id"]: entry["name"] for document in documents for entry in document["categories"]}
    return {key: names[key] for key in sorted(names, key=str) if names[key] != "other"}


def read_records(documents: list[Document]) -> list[Record]:
    """The objects of COCO's images; very small ones, and images with too few or many, are left out.

    The number of a category is the rank of its id among those of things and stuff together, sorted as texts; stuff's
    "other" is left out. That is how the published checkpoints number them.

    Raises:
      ValueError: a box reaches more than a pixel out of its image; less is cut off.
    """
    numbers = {key: number for number, key in enumerate(_ranked(documents))}
    headers = {header["id"]: header for document in documents for header in document["images"]}
    annotations: dict[int, list[Document]] = {key: [] for key in headers}
    for document in documents:
        for annotation in document["annotations"]:
            if annotation["category_id"] in numbers:
                annotations[annotation["image_id"]].append(annotation)
    records = (_record(header, annotations[key], numbers) for key, header in headers.items())
    return [record for record in records if MIN_OBJECTS <= len(record.boxes) <= MAX_OBJECTS]


def _record(header: Document, annotations: list[Document], numbers: Mapping[int, int]) -> Record:
    size = (header["width"], header["height"])
    boxes = _relative_boxes(header["file_name"], size, annotations)
    kept = boxes[:, 2] * boxes[:, 3] > MIN_AREA
    categories = np.array([numbers[a["category_id"]] for a in annotations], np.int32)
    crowds = np.array([a["iscrowd"] for a in annotations], np.int32)
    return Record(header["file_name"], size, boxes[kept], categories[kept], crowds[kept])


def _relative_boxes(file_name: str, size: tuple[int, int], annotations: list[Document]) -> Float64[np.ndarray, "n 4"]:
    boxes = np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4)
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    good = (low >= -1).all(1) & (high <= np.add(size, 1)).all(1) & (low <= high).all(1)
    if not good.all():
        first = annotations[int(np.argmin(good))]
        raise ValueError(
            f"boxes must lie within their image, to a pixel; annotation {first['id']} of {file_name} has x, y, width, "
            f"height {first['bbox']} in an image of {size[0]} x {size[1]}. Correct the annotation file."
        )
    low, high = low.clip(0, size), high.clip(0, size)
    return np.concatenate([low, high - low], axis=1) / (*size, *size)


def _by_file(document: Document, key: str) -> dict[str, list[Any]]:
    """The annotations' values of `key`, by the file name of their image."""
    names = {header["id"]: header["file_name"] for header in document["images"]}
    values: dict[str, list[Any]] = {}
    for annotation in document["annotations"]:
        values.setdefault(names[annotation["image_id"]], []).append(annotation[key])
    return values


def draw_limbs(people: Float[np.ndarray, "p 17 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """Each limb of each person as a line of the limb's own colour, on black.

    Args:
      people: x and y in pixels and visibility of the joints, in COCO's order; where visibility is 0 there is no joint,
        and a limb without both is not drawn.
      size: width and height of the picture; lines are a 64th of the height wide.
    """
    picture = Image.new("RGB", size)
    draw, width = ImageDraw.Draw(picture), max(1, round(size[1] / 64))
    for joints in people:
        for (start, end), colour in zip(LIMBS, _COLOURS, strict=True):
            if joints[start, 2] > 0 and joints[end, 2] > 0:
                draw.line([*joints[start, :2].tolist(), *joints[end, :2].tolist()], fill=colour, width=width)
    return np.asarray(picture)


def _label_map(file_name: str) -> str:
    return os.path.splitext(file_name)[0] + ".png"


def _check_there(folder: Path, files: Iterable[str]) -> None:
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    if missing := [file for file in files if file not in there]:
        raise ValueError(f"{folder} must hold a file for every image; {named(missing)} are missing. Add them.")
