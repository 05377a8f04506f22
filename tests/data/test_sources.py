import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import registered

from vqgan_jax.data import ImageError, open_source, spread
from vqgan_jax.data.tfds import _maps_in, _objects_in

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return io.BytesIO(buffer.getvalue())


def prepare(data_dir, dataset, features, splits, *, version="1.0.0"):
    """Prepares a dataset as a user would; its class is not registered in TFDS."""
    with registered.skip_registration():

        class Prepared(tfds.core.GeneratorBasedBuilder):
            name = dataset
            VERSION = tfds.core.Version(version)

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(examples) for split, examples in splits.items()}

            def _generate_examples(self, examples):
                yield from ((str(number), example) for number, example in enumerate(examples))

    Prepared(data_dir=data_dir, file_format="array_record").download_and_prepare()


def write_tfds(data_dir, *, dataset="colours", version="1.0.0", labelled=True, copies=4):
    """A dataset of one-coloured PNG images."""
    features = {"image": tfds.features.Image()} | (
        {"label": tfds.features.ClassLabel(names=list(COLOURS))} if labelled else {}
    )
    examples = lambda: (
        {"image": png(Image.new("RGB", (6, 5), colour))} | ({"label": name} if labelled else {})
        for name, colour in COLOURS.items()
    )
    many = [example for _ in range(copies) for example in examples()]
    prepare(data_dir, dataset, features, {"train": many, "test": examples()}, version=version)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("tfds")
    write_tfds(data_dir)
    return str(data_dir)


def open_colours(data_dir, split="train", name="colours"):
    return open_source(f"tfds:{name}", split=split, data_dir=str(data_dir), image_size=8)


def test_tfds_gives_decoded_images_with_their_labels(colours):
    source = open_colours(colours)
    assert source.class_names == tuple(COLOURS)
    assert len(source) == 12
    for example in (source[i] for i in range(12)):
        expected = list(COLOURS.values())[example["label"]]
        np.testing.assert_array_equal(example["image"], np.broadcast_to(np.uint8(expected), (5, 6, 3)))
        assert example["label"].dtype == np.int32


def test_tfds_split_texts_part_the_examples(colours):
    assert [len(open_colours(colours, split)) for split in ("test", "train[:75%]", "train[75%:]")] == [3, 9, 3]


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    """Two versions of a dataset whose name is registered in TFDS; the older one has no labels."""
    data_dir = tmp_path_factory.mktemp("versions")
    write_tfds(data_dir, dataset="mnist", version="1.9.0", copies=1, labelled=False)
    write_tfds(data_dir, dataset="mnist", version="1.10.0", copies=2)
    return data_dir


def test_tfds_reads_the_files_of_the_newest_version_also_where_the_name_is_registered(mnist):
    source = open_colours(mnist, name="mnist")
    assert (len(source), source.class_names) == (6, tuple(COLOURS))


def test_tfds_reads_another_version_and_without_labels_all_are_zero(mnist):
    source = open_colours(mnist, name="mnist:1.9.0")
    assert (len(source), source.class_names, source[1]["label"]) == (3, (), 0)


def test_tfds_in_another_format_says_how_to_prepare_it(colours, tmp_path):
    shutil.copytree(colours, tmp_path / "copy")
    info = tmp_path / "copy/colours/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"found files in the format.*tfds build colours --file_format=array_record"):
        open_colours(tmp_path / "copy")


def test_tfds_that_is_missing_says_how_to_prepare_it(tmp_path):
    with pytest.raises(ValueError, match=r"found none.*tfds build colours --file_format=array_record"):
        open_colours(tmp_path)


def test_tfds_damage_is_an_image_error_that_says_where(colours, monkeypatch):
    source = open_colours(colours)
    monkeypatch.setattr(source, "_records", [{"image": b"damaged", "label": 0}])
    with pytest.raises(ImageError, match="tfds:colours/train number 0"):
        source[0]


@pytest.mark.parametrize("split", ["validation", "train[", "train[:1%"])
def test_tfds_unknown_split_names_the_known(colours, split):
    with pytest.raises(ValueError, match="train"):
        open_colours(colours, split)


def test_tfds_needs_no_tensorflow(colours):
    program = f"""
import sys
from vqgan_jax.data import Augmentation, open_source, training_batches
source = open_source("tfds:colours", split="train", data_dir={colours!r}, image_size=8)
augmentation = Augmentation(image_size=8, resize=(8, 8), crop="random", flip=True, small="upscale")
batch = next(training_batches(source, augmentation=augmentation, batch_size=4, seed=0))
assert batch["image"].shape == (4, 8, 8, 3)
assert "tensorflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def write_with(data_dir, features, values):
    """A dataset of a single image, 6 x 5, with other features."""
    example = {"image": png(Image.new("RGB", (6, 5)))} | values
    prepare(data_dir, "colours", {"image": tfds.features.Image(), **features}, {"train": [example]})
    return open_colours(data_dir)


LABELS = np.arange(30, dtype=np.uint8).reshape(5, 6) * np.uint8(8)
METRES = np.linspace(-0.5, 9.5, 30).reshape(5, 6).astype(np.float16)


def image_feature(**declared):
    return tfds.features.Image(encoding_format="png", **declared)


def objects_feature(**more):
    each = {"bbox": tfds.features.BBoxFeature(), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
    return tfds.features.Sequence({**each, "id": np.int64, **more})


def box(ymin, xmin, ymax, xmax):
    return tfds.features.BBox(ymin=ymin, xmin=xmin, ymax=ymax, xmax=xmax)


@pytest.fixture(scope="module")
def conditions(tmp_path_factory):
    """Two datasets of one image that hold every condition, in one way each."""
    palette = Image.fromarray(LABELS)
    palette.putpalette([255 - i // 3 for i in range(768)])  # TFDS keeps the file as it is
    objects = [
        {"bbox": box(0.25, 0.5, 0.5, 0.625), "label": "dog", "id": 7, "is_crowd": False},
        {"bbox": box(0.0, 0.0, 1.0, 1.0), "label": "cat", "id": 8, "is_crowd": True},
    ]
    plain = write_with(
        tmp_path_factory.mktemp("plain"),
        {
            "annotation": image_feature(),
            "depth": tfds.features.Tensor(shape=(5, 6), dtype=np.float16),
            "objects": objects_feature(is_crowd=np.bool_),
        },
        {"annotation": png(palette), "depth": METRES, "objects": objects},
    )
    wide = {"shape": (5, 6, 1), "dtype": np.uint16}
    numbers = lambda factor: png(Image.fromarray(LABELS.astype(np.uint16) * factor))
    coded = write_with(
        tmp_path_factory.mktemp("coded"),
        {"segmentation": image_feature(**wide), "depth": image_feature(**wide), "objects": objects_feature()},
        {"segmentation": numbers(200), "depth": numbers(250), "objects": []},
    )
    return plain, coded


def test_tfds_label_maps_are_the_stored_numbers_of_8_or_16_bits(conditions):
    plain, coded = (source[0]["segmentation"] for source in conditions)
    np.testing.assert_array_equal(plain, LABELS, strict=True)
    np.testing.assert_array_equal(coded, LABELS.astype(np.uint16) * 200, strict=True)


def test_tfds_depth_may_be_a_tensor_or_an_image(conditions):
    plain, coded = (source[0]["depth"] for source in conditions)
    np.testing.assert_array_equal(plain, METRES.astype(np.float32), strict=True)
    np.testing.assert_array_equal(coded, LABELS.astype(np.float32) * 250, strict=True)


def test_tfds_objects_are_boxes_with_categories(conditions):
    plain, coded = conditions
    assert (plain.category_names, plain.class_names) == (("cat", "dog"), ())
    example = plain[0]
    assert set(example) == {"image", "label", "segmentation", "depth", "boxes", "categories", "modifiers"}
    np.testing.assert_array_equal(example["boxes"], np.array([[0.5, 0.25, 0.125, 0.25], [0, 0, 1, 1.0]]), strict=True)
    np.testing.assert_array_equal(example["categories"], np.array([1, 0], np.int32), strict=True)
    np.testing.assert_array_equal(example["modifiers"], np.array([0, 1], np.int32), strict=True)
    example = coded[0]  # an image without objects, of a dataset without groups
    assert example["boxes"].shape == (0, 4)
    assert example["categories"].shape == example["modifiers"].shape == (0,)


@pytest.mark.parametrize(
    ("features", "fields"),
    [
        ({"annotation": image_feature(), "label": tfds.features.Text()}, {"annotation": "segmentation"}),
        ({"segmentation": image_feature(shape=(5, 6, 1))}, {"segmentation": "segmentation"}),
        ({"segmentation_label": image_feature(shape=(None, None, 1))}, {"segmentation_label": "segmentation"}),
        ({"depth": tfds.features.Tensor(shape=(5, 6, 1), dtype=np.float32)}, {"depth": "depth"}),
        ({"depth": tfds.features.Scalar(np.float32), "annotation": tfds.features.Text()}, {}),
        ({"depth": tfds.features.Text(), "objects": tfds.features.Sequence(tfds.features.Text())}, {}),
    ],
)
def test_tfds_maps_are_features_of_known_names_and_kinds(features, fields):
    assert {key: field for key, (field, _) in _maps_in(features).items()} == fields
    assert _objects_in(features) is None


def test_tfds_maps_that_do_not_fit_say_which(tmp_path):
    depth = np.ones((6, 5), np.float32)
    source = write_with(tmp_path, {"depth": tfds.features.Tensor(shape=(6, 5), dtype=np.float32)}, {"depth": depth})
    with pytest.raises(ImageError, match=r"6 x 5 pixels; `depth` of tfds:colours/train number 0 is 5 x 6"):
        source[0]


@pytest.mark.parametrize("kind", ["scenes", "categories"])
def test_what_is_spread_keeps_the_names_of_categories(kind, conditions):
    source = open_source("scenes", split="train", image_size=32) if kind == "scenes" else conditions[0]
    assert spread(source, 1).category_names == source.category_names


@pytest.mark.skipif("VQGAN_JAX_DATA" not in os.environ, reason="VQGAN_JAX_DATA names no folder with tfds/ in it")
@pytest.mark.parametrize(
    ("name", "split", "classes"), [("cifar10", "test", 10), ("imagenet_sample", "validation", 1000)]
)
def test_real_tfds(name, split, classes):
    data_dir = os.path.join(os.environ["VQGAN_JAX_DATA"], "tfds")
    source = open_source(f"tfds:{name}", split=split, data_dir=data_dir, image_size=32)
    assert len(source.class_names) == classes
    assert source[len(source) - 1]["image"].std() > 5


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("spec", ["photos", "scenes", "folder:{folder}", "paired:{folder}", "tfds:colours"])
def test_all_sources_are_alike(spec, split, tmp_path, colours):
    for name in ("train", "val"):
        for folder in (tmp_path, tmp_path / "images"):
            (folder / name).mkdir(parents=True)
            Image.new("RGB", (20, 30)).save(folder / name / "a.png")
    split = "test" if spec.startswith("tfds") and split == "validation" else split
    source = open_source(spec.format(folder=tmp_path), split=split, data_dir=colours, image_size=32)
    assert source.name.startswith(spec.split(":")[0])
    example = source[len(source) - 1]
    assert example["image"].dtype == np.uint8
    assert example["image"].shape[2:] == (3,)
    assert example["label"].dtype == np.int32
    assert 0 <= example["label"] < max(1, len(source.class_names))


@pytest.mark.parametrize(
    "spec", ["", "photo", "photos:astronaut", "folder", "folder:", "paired", "coco:", "tfds:", "http://x"]
)
def test_unknown_sources_are_refused_with_the_known_ones(spec):
    with pytest.raises(ValueError, match="photos, scenes, folder:PATH, paired:PATH, coco:PATH, tfds:NAME"):
        open_source(spec, split="train", image_size=32)
