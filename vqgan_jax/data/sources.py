"""Four kinds of images behind one interface, each named by a short text: photos, scenes, folder:PATH, tfds:NAME."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, SupportsIndex, cast, runtime_checkable

import numpy as np

from vqgan_jax.data import images
from vqgan_jax.data.folder import Folder
from vqgan_jax.data.photos import Photos
from vqgan_jax.data.scenes import Scenes


@runtime_checkable
class Source(Protocol):
    """Labelled images by number, in an order that never changes; safe to read from many threads."""

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
        """Example `index`: "image" (uint8 H W 3, RGB) and "label" (int32), and what else the source knows.

        Raises:
          ImageError: if the image cannot be decoded.
        """
        ...


def open_source(spec: str, *, split: str, data_dir: str = "", image_size: int) -> Source:
    """Opens the source that `spec` names; nothing is ever downloaded.

    Args:
      spec: "photos" (inside scikit-image), "scenes" (rendered), "folder:PATH" (any tree of image files) or "tfds:NAME"
        (a dataset prepared by TensorFlow Datasets as ArrayRecord files; NAME may carry /CONFIG and :VERSION).
      split: "train" or "validation", for a folder also "all"; for tfds any split text, such as "train[:90%]".
      data_dir: the folder that holds TFDS datasets; empty for TFDS's own, $TFDS_DATA_DIR or ~/tensorflow_datasets.
      image_size: height and width at which scenes are rendered; the other sources keep their images' sizes.

    Raises:
      ValueError: if spec or split is unknown, or the data is not there or not usable.
    """
    kind, _, argument = spec.partition(":")
    scheme = _SCHEMES.get(kind)
    if scheme is None or (":" in scheme.form) != bool(argument):
        forms = ", ".join(scheme.form for scheme in _SCHEMES.values())
        raise ValueError(f"a source must be one of {forms}; got {spec!r}. Write one of these.")
    return scheme.open(argument, split=split, data_dir=data_dir, image_size=image_size)


class _Scheme(NamedTuple):
    form: str
    open: Callable[..., Source]


def _open_photos(_: str, *, split: str, **unused) -> Source:
    return Photos(split=split)


def _open_scenes(_: str, *, split: str, image_size: int, **unused) -> Source:
    return cast(Source, Scenes(split=split, image_size=image_size))  # its ClassVars match no protocol's property


def _open_folder(path: str, *, split: str, **unused) -> Source:
    return Folder(path, split=split)


def _open_tfds(name: str, *, split: str, data_dir: str, **unused) -> Source:
    return Tfds(name, split=split, data_dir=data_dir)


_SCHEMES = {
    "photos": _Scheme("photos", _open_photos),
    "scenes": _Scheme("scenes", _open_scenes),
    "folder": _Scheme("folder:PATH", _open_folder),
    "tfds": _Scheme("tfds:NAME", _open_tfds),
}


class Tfds:
    """A dataset in TFDS's format, as ArrayRecord files, read at random and without TensorFlow.

    It needs a feature `image`. Labels come from the feature `label` where that is a class label; else they are 0.
    """

    def __init__(self, name: str, *, split: str, data_dir: str = ""):
        """Opens `split` of the dataset `name`, by its files alone: it need not be registered in TFDS.

        Raises:
          ValueError: if the dataset is not there, not ArrayRecord, or has no such split or no images.
        """
        import tensorflow_datasets as tfds  # half a second, which only those who use it should pay

        self.name = f"tfds:{name}/{split}"
        builder = _tfds_builder(name, data_dir)
        features = dict(builder.info.features.items())
        if "image" not in features:
            raise ValueError(
                f"{name!r} must have a feature `image`; it has {sorted(features)}. Choose another dataset."
            )
        label = features.get("label")
        label = label if isinstance(label, tfds.features.ClassLabel) else None
        self._has_labels = label is not None
        self.class_names: tuple[str, ...] = tuple(label.names) if label is not None and label.num_classes else ()
        # Images are decoded here, like those of all sources; other maps not at all.
        maps = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
        open_split = functools.partial(builder.as_data_source, decoders=dict.fromkeys(maps, tfds.decode.SkipDecoding()))
        try:
            self._records = open_split(split)
        except NotImplementedError as error:
            raise ValueError(
                _how_to_prepare(name, data_dir, f"files in the format {builder.info.file_format}")
            ) from error
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"`split` must be of {', '.join(builder.info.splits)} of {name!r}, or a part such as 'train[:90%]'; "
                f"got {split!r}. Choose one of these."
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> Mapping[str, Any]:
        """Image (uint8 H W 3) and label (int32) number `index`; `ImageError` if it cannot be decoded."""
        record = self._records[index]
        image = images.decode(record["image"], name=f"{self.name} number {index.__index__()}")
        return {"image": image, "label": np.int32(record["label"] if self._has_labels else 0)}


def _tfds_builder(name: str, data_dir: str) -> Any:
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    try:
        return builder_from_files(name, data_dir=data_dir or None)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(_how_to_prepare(name, data_dir, "none")) from error


def _how_to_prepare(name: str, data_dir: str, found: str) -> str:
    where, option = (repr(data_dir), f" --data_dir={data_dir}") if data_dir else ("TFDS's data folder", "")
    return (
        f"`tfds:{name}` must be prepared as ArrayRecord files in {where}; found {found}. Prepare it once: "
        f"`pip install 'vqgan-jax[prepare]'` and `tfds build {name} --file_format=array_record{option}`."
    )


class _Spread:
    """Some examples of a source, at even distances."""

    def __init__(self, source: Source, count: int):
        self.source, self.name, self.class_names = source, source.name, source.class_names
        self.indices = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: SupportsIndex) -> Mapping[str, Any]:
        """Example `index` of these."""
        return self.source[int(self.indices[index])]


def spread(source: Source, count: int) -> Source:
    """At most `count` examples at even distances: of all classes, where a source is sorted by class."""
    return _Spread(source, count)
