"""What a source of examples is, and the kinds of images that are one, each named by a short text."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, SupportsIndex, cast, runtime_checkable

import numpy as np

from vqgan_jax.data.coco import Coco
from vqgan_jax.data.folder import Folder
from vqgan_jax.data.paired import Paired
from vqgan_jax.data.photos import Photos
from vqgan_jax.data.scenes import Scenes
from vqgan_jax.data.tfds import Tfds


@runtime_checkable
class Source(Protocol):
    """Examples by number, in an order that never changes; safe to read from many threads."""

    @property
    def name(self) -> str:
        """What the source is called in messages."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels 0, 1, ...; empty where there are no classes, and every label is 0."""
        ...

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def __getitem__(self, index: SupportsIndex, /) -> Mapping[str, Any]:
        """Example `index`.

        Returns:
          "image" (uint8 H W 3, RGB; float32 H W c in [-1, 1] of a folder with a range of values) and "label" (int32),
          and what else the source knows, all of the whole image: "segmentation" (uint8 or uint16 H W, categories),
          "depth" (float32 H W, as stored), "keypoints" (uint8 H W 3, a picture of limbs); "boxes" (float64 n 4, x0 y0
          w h in [0, 1]) with "categories" (int32 n) and perhaps "modifiers" (int32 n, a sum of 1 group-of, 2 occluded,
          4 depiction, 8 inside); "text", a function that reads its captions when they are asked for (texts, or
          integers n t, ids of a tokenizer). Of a token cache "tokens" (int32 t) alone.

        Raises:
          ImageError: if the image or one of its maps cannot be decoded, or they are of different sizes.
        """
        ...


def open_source(
    spec: str, *, split: str, data_dir: str = "", image_size: int, value_range: tuple[float, ...] = ()
) -> Source:
    """Opens the source that `spec` names; nothing is ever downloaded.

    Args:
      spec: "photos" (inside scikit-image), "scenes" (rendered), "folder:PATH" (any tree of image files), "paired:PATH"
        (images and maps of them, see `Paired`), "coco:PATH" (COCO as it is distributed, see `Coco`) or "tfds:NAME" (a
        dataset prepared by TensorFlow Datasets as ArrayRecord files; NAME may carry /CONFIG and :VERSION).
      split: "train" or "validation", for folder and paired also "all", for coco also "train2014" and the like; for
        tfds any split text, such as "train[:90%]".
      data_dir: the folder that holds TFDS datasets; empty for TFDS's own, $TFDS_DATA_DIR or ~/tensorflow_datasets.
      image_size: height and width at which scenes are rendered; the other sources keep their images' sizes.
      value_range: of a folder alone: the values of its files that become -1 and 1, see `Folder`.

    Raises:
      ValueError: if spec or split is unknown, or the data is not there or not usable.
    """
    kind, _, argument = spec.partition(":")
    forms = {
        "photos": lambda: Photos(split=split),
        "scenes": lambda: cast(Source, Scenes(split=split, image_size=image_size)),  # its ClassVars are no properties
        "folder:PATH": lambda: Folder(argument, split=split, value_range=value_range),
        "paired:PATH": lambda: Paired(argument, split=split),
        "coco:PATH": lambda: Coco(argument, split=split),
        "tfds:NAME": lambda: Tfds(argument, split=split, data_dir=data_dir),
    }
    if value_range and kind != "folder":
        raise ValueError(f"`config.data.value_range` is for a source folder:PATH; got {spec!r}. Leave it out.")
    for form, open_form in forms.items():
        if form.partition(":")[0] == kind and (":" in form) == bool(argument):
            return open_form()
    raise ValueError(f"a source must be one of {', '.join(forms)}; got {spec!r}. Write one of these.")


class Subset:
    """Some examples of a source, by their numbers in it."""

    def __init__(self, source: Source, numbers: Sequence[int]):
        self.source, self.name, self.class_names = source, source.name, source.class_names
        self.category_names: tuple[str, ...] = getattr(source, "category_names", source.class_names)
        self.numbers = np.asarray(numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: SupportsIndex) -> Mapping[str, Any]:
        """Example `index` of these."""
        return self.source[int(self.numbers[index])]


def spread(source: Source, count: int) -> Source:
    """Returns at most `count` examples at even distances: of all classes, where a source is sorted by class."""
    return Subset(source, np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int).tolist())
