"""A source over a dataset that TensorFlow Datasets prepared, with the conditions that its features hold."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, SupportsIndex

import numpy as np

from vqgan_jax.data import images, maps

_LABEL_MAPS = ("annotation", "segmentation", "segmentation_label")

# What makes fields of an example of the value of a feature; the text names it in errors.
_Reader = Callable[[Any, str], Mapping[str, Any]]


class Tfds:
    """A dataset in TFDS's format, as ArrayRecord files, read at random and without TensorFlow.

    It needs a feature `image`. Labels come from the feature `label` where that is a class label; else they are 0.
    Other features of a known name and kind are conditions: label maps `annotation` (scene_parse150), `segmentation` or
    `segmentation_label`; `depth`, an image or a tensor (nyu_depth_v2); `objects`, a sequence of `bbox` and `label`
    (coco), whose names are `category_names`.
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
        self._readers = _readers(features)
        objects = features["objects"].feature["label"] if "objects" in self._readers else None
        self.category_names = (
            self.class_names if objects is None else tuple(objects.names if objects.num_classes else ())
        )
        # Images and maps are decoded here, like those of all sources; other images not at all.
        coded = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
        open_split = functools.partial(
            builder.as_data_source, decoders=dict.fromkeys(coded, tfds.decode.SkipDecoding())
        )
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
        """Example `index`: "image" (uint8 H W 3), "label" (int32), and the conditions that the dataset has.

        These are "segmentation" (uint8 or uint16 H W), "depth" (float32 H W), and "boxes" (float64 n 4) with
        "categories" and "modifiers" (int32 n).

        Raises:
          ImageError: if the image or a map cannot be decoded, or they are of different sizes.
        """
        record, name = self._records[index], f"{self.name} number {index.__index__()}"
        image = images.decode(record["image"], name=name)
        example = {"image": image, "label": np.int32(record["label"] if self._has_labels else 0)}
        for key, read in self._readers.items():
            example |= read(record[key], f"`{key}` of {name}")
        for field in example.keys() & {"segmentation", "depth"}:
            maps.check_size(example[field], image, name=f"`{field}` of {name}")
        return example


def _readers(features: Mapping[str, Any]) -> dict[str, _Reader]:
    """For every feature that holds a condition, what reads it."""
    import tensorflow_datasets as tfds

    of_kind = lambda key, kind: isinstance(features.get(key), kind)
    readers: dict[str, _Reader] = {key: _labels for key in _LABEL_MAPS if of_kind(key, tfds.features.Image)}
    if of_kind("depth", tfds.features.Image):
        readers["depth"] = _coded_depth
    elif of_kind("depth", tfds.features.Tensor) and len(features["depth"].shape) >= 2:  # texts and scalars are tensors
        readers["depth"] = _depth
    if of_kind("objects", tfds.features.Sequence):
        each = features["objects"].feature
        kinds = {key: type(kind) for key, kind in each.items()} if isinstance(each, tfds.features.FeaturesDict) else {}
        if (kinds.get("bbox"), kinds.get("label")) == (tfds.features.BBoxFeature, tfds.features.ClassLabel):
            readers["objects"] = _objects
    return readers


def _labels(data: bytes, name: str) -> Mapping[str, Any]:
    return {"segmentation": maps.decode_labels(data, name=name)}


def _coded_depth(data: bytes, name: str) -> Mapping[str, Any]:
    return {"depth": maps.decode_depth(data, name=name)}


def _depth(values: np.ndarray, name: str) -> Mapping[str, Any]:
    return {"depth": maps.to_depth(np.asarray(values), name=name)}


def _objects(objects: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Boxes of TFDS are ymin xmin ymax xmax."""
    top, left, bottom, right = np.asarray(objects["bbox"], np.float64).reshape(-1, 4).T
    categories = np.asarray(objects["label"], np.int32)
    groups = np.asarray(objects.get("is_crowd", np.zeros_like(categories)), np.int32)
    boxes = np.stack([left, top, right - left, bottom - top], axis=1)
    return {"boxes": boxes, "categories": categories, "modifiers": groups}


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
