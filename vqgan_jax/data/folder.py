"""A source over any tree of image files on disk."""

import bisect
import contextlib
import functools
import hashlib
import io
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float32, Integer

from vqgan_jax.data import images

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
VALUE_EXTENSIONS = EXTENSIONS | {".npy"}
CAPTIONS = (".txt", ".npy")  # what files of captions end in
SPLITS = ("train", "validation", "all")
VALIDATION_FRACTION = 0.05

# The names under which a folder may carry its own splits.
_SPLIT_FOLDERS = {"train": "train", "val": "validation", "validation": "validation"}


class Folder:
    """The images below a folder, sorted by path; the label is the first-level sub-folder.

    Where the folder has sub-folders `train` and `validation` (or `val`) these are the splits, "all" is both of them,
    and labels come from the sub-folders within. Otherwise about 5% of the images are for validation, chosen by a hash
    of the path below the folder: adding images moves none of the others. Labels number the class names of all splits
    together, sorted, so that they agree between splits. Images outside any sub-folder have the class name ""; if there
    are no sub-folders at all, there are no class names and every label is 0. Links are followed; names that begin with
    a dot are skipped. Captions of an image lie beside it, in a file of its name that ends in .txt or .npy.
    """

    def __init__(self, path: str | os.PathLike[str], *, split: str, value_range: tuple[float, ...] = ()):
        """Lists the images of `split` ("train", "validation" or "all") below `path`.

        With a `value_range`, which `images.decode_values` brings to [-1, 1], files .npy are images, too, and all have
        the number of channels of the first.

        Raises:
          ValueError: if the split is unknown, `path` is no folder, or it holds no image for the split.
        """
        if split not in SPLITS:
            raise ValueError(f"a folder's `split` must be one of {', '.join(SPLITS)}; got {split!r}. Choose one.")
        root = Path(path).expanduser()
        if not root.is_dir():
            raise ValueError(f"`folder:PATH` must name an existing folder; got {os.fspath(path)!r}. Correct the path.")
        self.name = f"folder:{os.fspath(path)}/{split}"
        roots = {part: root / name for name, part in _SPLIT_FOLDERS.items() if (root / name).is_dir()}
        if len(roots) < 2:  # the folder has no splits of its own
            roots = {"": root}
        extensions = VALUE_EXTENSIONS if value_range else EXTENSIONS
        files = [(part, base, file) for part, base in roots.items() for file in image_files(base, extensions)]
        names = sorted({_class_name(file) for _, _, file in files})
        self.class_names = () if names == [""] else tuple(names)
        chosen = [(base, file) for part, base, file in files if split in ("all", part or hash_split(file))]
        if not chosen:
            raise ValueError(
                f"a folder must hold images ({', '.join(sorted(extensions))}) for every split; {os.fspath(path)!r} "
                f"has {len(files)} in all and none for {split!r}. Add images, of which one in twenty is for "
                "validation; or make folders train and validation; or choose 'all' by --config.data.train_split and "
                "--config.data.eval_split."
            )
        self._paths = [os.path.join(base, file) for base, file in chosen]
        self._value_range, self._first = value_range, os.path.join(*files[0][1:])
        self._labels = np.array([bisect.bisect_left(names, _class_name(file)) for _, file in chosen], np.int32)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: SupportsIndex) -> Mapping[str, Any]:
        """Image (uint8 H W 3, or float32 H W c), label (int32) and, in a function, the captions of number `index`.

        Raises:
          ImageError: the image cannot be decoded.
        """
        path = self._paths[index]
        image = self._values(path) if self._value_range else images.decode(path)
        return {"image": image, "label": self._labels[index], "text": functools.partial(captions_beside, path)}

    def _values(self, path: str) -> Float32[np.ndarray, "H W c"]:
        image = images.decode_values(path, self._value_range)
        if image.shape[-1] != self._channels:
            raise images.ImageError(
                f"images of a folder must have equally many channels; {path} has {image.shape[-1]}, and the first, "
                f"{self._first}, has {self._channels}. Convert or remove it."
            )
        return image

    @functools.cached_property
    def _channels(self) -> int:
        return images.decode_values(self._first, self._value_range).shape[-1]


def captions_beside(path: str) -> Sequence[str] | Integer[np.ndarray, "n t"]:
    """Captions of an image, from the file of its name that ends in .txt or .npy; see `read_captions`.

    Raises:
      ValueError: there is no such file, or there are both, or it holds no captions.
    """
    stem = os.path.splitext(path)[0]
    files = [file for file in (stem + ending for ending in CAPTIONS) if file != path and os.path.exists(file)]
    if len(files) != 1:
        raise ValueError(
            f"an image's captions must be in one file beside it, {stem}.txt or .npy; there are {len(files)}. Write one."
        )
    return read_captions(files[0])


def read_captions(path: str | os.PathLike[str]) -> Sequence[str] | Integer[np.ndarray, "n t"]:
    """Captions in a file: the lines of a UTF-8 text that are not empty, or an array of token ids, t or n t.

    Raises:
      ValueError: the file holds none, or something else.
      OSError: the file cannot be read.
    """
    data, captions = Path(path).read_bytes(), []
    with contextlib.suppress(ValueError):  # of bytes that are no array, or no UTF-8
        if os.fspath(path).endswith(".npy"):
            ids = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
            captions = np.atleast_2d(ids) if ids.dtype.kind in "iu" and ids.ndim in (1, 2) else []
        else:
            captions = [line.strip() for line in data.decode().splitlines() if line.strip()]
    if not len(captions):
        raise ValueError(
            f"captions must be lines of UTF-8 text, or an array t or n t of integers by `numpy.save`; {path} holds "
            "neither. Write it anew."
        )
    return captions


def image_files(root: Path, extensions: Collection[str] = EXTENSIONS) -> list[str]:
    """Paths below `root` of all files that look like images, with forward slashes, sorted."""
    paths, visited = [], set()
    for folder, below, files in os.walk(root, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        if (real := os.path.realpath(folder)) in visited:  # a link to a folder above would go round for ever
            below.clear()
            continue
        visited.add(real)
        prefix = f"{os.path.relpath(folder, root)}/".replace(os.sep, "/").removeprefix("./")
        visible = [file for file in files if not file.startswith(".")]
        paths += [prefix + file for file in visible if os.path.splitext(file)[1].lower() in extensions]
    return sorted(paths)


def _class_name(file: str) -> str:
    return file.split("/")[0] if "/" in file else ""


def hash_split(file: str) -> str:
    """The split of a file, "train" or "validation", by nothing but its path below the folder."""
    digest = hashlib.blake2b(os.fsencode(file), digest_size=8).digest()
    return "validation" if int.from_bytes(digest, "big") < VALIDATION_FRACTION * 2**64 else "train"
