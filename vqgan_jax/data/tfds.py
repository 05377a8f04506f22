"""A source over a dataset that TensorFlow Datasets prepared, with the conditions that its features hold."""

from collections.abc import Callable, Mapping
from typing import Any, SupportsIndex

import numpy as np

from vqgan_jax.data import images


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
        from tensorflow_datasets.core.read_only_builder import builder_from_files

        self.name = f"tfds:{name}/{split}"
        try:
            builder: Any = builder_from_files(name, data_dir=data_dir or None)
        except tfds.core.DatasetNotFoundError as error:
            raise ValueError(_how_to_prepare(name, data_dir, "none")) from error
        features = dict(builder.info.features.items())
        if "image" not in features:
            raise ValueError(
                f"{name!r} must have a feature `image`; it has {sorted(features)}. Choose another dataset."
            )
        label, objects = features.get("label"), _objects_in(features)
        self._has_labels = isinstance(label, tfds.features.ClassLabel)
        self.class_names = _names(label) if self._has_labels else ()
        self._has_objects = objects is not None
        self.category_names = self.class_names if objects is None else _names(objects["label"])
        self._maps = _maps_in(features)
        # Images and maps are decoded here, like those of all sources; other images not at all.
        coded = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
        try:
            self._records = builder.as_data_source(split, decoders=dict.fromkeys(coded, tfds.decode.SkipDecoding()))
        except NotImplementedError as error:
            found = f"files in the format {builder.info.file_format}"
            raise ValueError(_how_to_prepare(name, data_dir, found)) from error
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
        for key, (field, decode) in self._maps.items():
            example[field] = decode(record[key], name=f"`{key}` of {name}")
            images.check_size(example[field], image, name=f"`{key}` of {name}")
        return example | (_read_objects(record["objects"]) if self._has_objects else {})


def _names(label: Any) -> tuple[str, ...]:
    return tuple(label.names) if label.num_classes else ()


def _maps_in(features: Mapping[str, Any]) -> dict[str, tuple[str, Callable[..., np.ndarray]]]:
    """Of every feature that holds a map: the field of an example that it becomes, and what decodes it."""
    import tensorflow_datasets as tfds

    image, tensor = tfds.features.Image, tfds.features.Tensor
    known = [
        ("annotation", image, "segmentation", images.decode_labels),
        ("segmentation", image, "segmentation", images.decode_labels),
        ("segmentation_label", image, "segmentation", images.decode_labels),
        ("depth", tensor, "depth", images.to_depth),
        ("depth", image, "depth", images.decode_depth),
    ]
    # Texts and numbers are tensors, too.
    is_map = lambda feature, kind: isinstance(feature, kind) and len(feature.shape) >= 2
    return {key: (field, decode) for key, kind, field, decode in known if is_map(features.get(key), kind)}


def _objects_in(features: Mapping[str, Any]) -> Any:
    """The features of an object; None where there are no objects, or they are not boxes with labels."""
    import tensorflow_datasets as tfds

    objects = features.get("objects")
    each = objects.feature if isinstance(objects, tfds.features.Sequence) else None
    if not isinstance(each, tfds.features.FeaturesDict):
        return None
    kinds = {key: type(feature) for key, feature in each.items()}
    fits = (kinds.get("bbox"), kinds.get("label")) == (tfds.features.BBoxFeature, tfds.features.ClassLabel)
    return each if fits else None


def _read_objects(objects: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Boxes of TFDS are ymin xmin ymax xmax."""
    top, left, bottom, right = np.asarray(objects["bbox"], np.float64).reshape(-1, 4).T
    categories = np.asarray(objects["label"], np.int32)
    groups = np.asarray(objects.get("is_crowd", np.zeros_like(categories)), np.int32)
    boxes = np.stack([left, top, right - left, bottom - top], axis=1)
    return {"boxes": boxes, "categories": categories, "modifiers": groups}


def _how_to_prepare(name: str, data_dir: str, found: str) -> str:
    where, option = (repr(data_dir), f" --data_dir={data_dir}") if data_dir else ("TFDS's data folder", "")
    return (
        f"`tfds:{name}` must be prepared as ArrayRecord files in {where}; found {found}. Prepare it once: "
        f"`pip install 'vqgan-jax[prepare]'` and `tfds build {name} --file_format=array_record{option}`."
    )
