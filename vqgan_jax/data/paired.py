"""A source over a folder of images with maps beside them: label maps, depth, pictures of limbs."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from vqgan_jax.data import folder, images

NAMED_IN_ERRORS = 5

# First-level folders of these names are the splits, where both splits have one.
_SPLIT_FOLDERS = {"train": "train", "training": "train", "val": "validation", "validation": "validation"}


# Folders of maps: the field of an example that each becomes, what decodes a file, and what files end in.
_MAPS = {
    "segmentations": ("segmentation", images.decode_labels, folder.EXTENSIONS),
    "depth": ("depth", images.decode_depth, folder.EXTENSIONS | {".npy"}),
    "keypoints": ("keypoints", images.decode, folder.EXTENSIONS),
}


class Paired:
    """Images below `images/` and their maps below any of `segmentations/`, `depth/` and `keypoints/`.

    An image and its maps have the same path below their folders but for the suffix: `images/training/a.jpg` belongs
    to `segmentations/training/a.png`. Where `images/` has sub-folders `train` (or `training`) and `validation` (or
    `val`) these are the splits; otherwise about 5% of the images are for validation, chosen as `Folder` does. The
    split "all" is everything. Examples are sorted by path; there are no classes.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, path: str | os.PathLike[str], *, split: str):
        """Lists the images of `split` ("train", "validation" or "all") below `path`, and their maps.

        Raises:
          ValueError: if the split is unknown, there is no folder `images`, it holds no image for the split, or an
            image has no partner in a folder of maps that exists, or a map has none.
        """
        if split not in folder.SPLITS:
            raise ValueError(
                f"a paired folder's `split` must be one of {', '.join(folder.SPLITS)}; got {split!r}. Choose one."
            )
        self._root = Path(path).expanduser()
        if not (self._root / "images").is_dir():
            raise ValueError(
                f"`paired:PATH` must name a folder with a folder `images`; {os.fspath(path)!r} has none. Correct the "
                "path, or move the images there."
            )
        self.name = f"paired:{os.fspath(path)}/{split}"
        files = _by_stem(self._root / "images", folder.EXTENSIONS)
        self._maps = {name: _partners(self._root, name, files) for name in _MAPS if (self._root / name).is_dir()}
        by_folder = {file: _SPLIT_FOLDERS.get(file.partition("/")[0]) for file in files.values() if "/" in file}
        split_of = by_folder.get if {"train", "validation"} <= set(by_folder.values()) else folder.hash_split
        self._images = [(stem, file) for stem, file in files.items() if split in ("all", split_of(file))]
        if not self._images:
            raise ValueError(
                f"`images` must hold images for every split; {os.fspath(path)!r} has {len(files)} in all and none for "
                f"{split!r}. Add images, or choose the split 'all'."
            )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: SupportsIndex) -> Mapping[str, Any]:
        """Example `index`: "image" (uint8 H W 3), "label" (int32, 0), and a field for each folder of maps.

        These are "segmentation" (uint8 or uint16 H W), "depth" (float32 H W) and "keypoints" (uint8 H W 3).

        Raises:
          ImageError: if a file cannot be decoded, or a map's size is not its image's.
        """
        stem, file = self._images[index]
        example: dict[str, Any] = {"image": images.decode(self._root / "images" / file), "label": np.int32(0)}
        for name, files in self._maps.items():
            path, (field, decode, _) = os.path.join(self._root, name, files[stem]), _MAPS[name]
            example[field] = decode(path)
            images.check_size(example[field], example["image"], name=path)
        return example


def _by_stem(root: Path, extensions: Collection[str]) -> dict[str, str]:
    """From paths without suffix to paths, sorted by path; ValueError for two files of one stem."""
    files = folder.image_files(root, extensions)
    by_stem = {os.path.splitext(file)[0]: file for file in files}
    if twins := set(files) - set(by_stem.values()):
        raise ValueError(
            f"files of {root} must differ in more than their suffix; {named(twins)} and others do not. Rename or "
            "remove them."
        )
    return by_stem


def _partners(root: Path, name: str, files: Mapping[str, str]) -> dict[str, str]:
    """The maps by stem; ValueError unless they fit the images one to one."""
    maps = _by_stem(root / name, _MAPS[name][2])
    if lonely := [file for stem, file in files.items() if stem not in maps]:
        raise ValueError(
            f"every image must have a map in {root / name}, of the same path but for the suffix; {named(lonely)} have "
            "none. Add the maps, or remove the images."
        )
    if lonely := [file for stem, file in maps.items() if stem not in files]:
        raise ValueError(
            f"every map in {root / name} must have an image, of the same path but for the suffix; {named(lonely)} have "
            "none. Add the images, or remove the maps."
        )
    return maps


def named(files: Collection[str]) -> str:
    """The first few of some files, and how many there are in all."""
    first = ", ".join(sorted(files)[:NAMED_IN_ERRORS])
    return first if len(files) <= NAMED_IN_ERRORS else f"{first}, ... ({len(files)} in all)"
