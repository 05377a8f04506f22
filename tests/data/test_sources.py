import io
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core import registered

from vqgan_jax.data import ImageError, open_source, spread

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


def test_tfds_reads_the_files_also_where_the_name_is_registered(tmp_path):
    write_tfds(tmp_path, dataset="mnist", version="0.1.0")
    source = open_colours(tmp_path, name="mnist")
    assert (len(source), source.class_names) == (12, tuple(COLOURS))


def test_tfds_in_another_format_says_how_to_prepare_it(tmp_path):
    write_tfds(tmp_path)
    info = tmp_path / "colours/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"found files in the format.*tfds build colours --file_format=array_record"):
        open_colours(tmp_path)


def test_tfds_without_labels_is_all_zero(tmp_path):
    write_tfds(tmp_path, labelled=False)
    source = open_colours(tmp_path)
    assert source.class_names == ()
    assert source[1]["label"] == 0


def test_tfds_takes_the_newest_version_unless_told(tmp_path):
    for version, copies in (("1.9.0", 1), ("1.10.0", 2)):
        write_tfds(tmp_path, version=version, copies=copies)
    assert len(open_colours(tmp_path)) == 6
    assert len(open_colours(tmp_path, name="colours:1.9.0")) == 3


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
from vqgan_jax.data import open_source, training_batches
source = open_source("tfds:colours", split="train", data_dir={colours!r}, image_size=8)
options = dict(image_size=8, resize=(8, 8), crop="random", flip=True, small="upscale")
batch = next(training_batches(source, batch_size=4, seed=0, **options))
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


@pytest.mark.parametrize(
    ("feature", "declared"),
    [("annotation", {}), ("segmentation", {"shape": (5, 6, 1)}), ("segmentation_label", {"shape": (None, None, 1)})],
)
def test_tfds_label_maps_are_the_stored_numbers(tmp_path, feature, declared):
    palette = Image.fromarray(LABELS)
    palette.putpalette([255 - i // 3 for i in range(768)])  # TFDS keeps the file as it is
    source = write_with(
        tmp_path, {feature: tfds.features.Image(encoding_format="png", **declared)}, {feature: png(palette)}
    )
    np.testing.assert_array_equal(source[0]["segmentation"], LABELS, strict=True)
    assert set(source[0]) == {"image", "label", "segmentation"}


def test_tfds_label_maps_may_have_16_bits(tmp_path):
    feature = tfds.features.Image(shape=(5, 6, 1), dtype=np.uint16, encoding_format="png")
    wide = png(Image.fromarray(LABELS.astype(np.uint16) * 200))
    source = write_with(tmp_path, {"segmentation": feature}, {"segmentation": wide})
    np.testing.assert_array_equal(source[0]["segmentation"], LABELS.astype(np.uint16) * 200, strict=True)


@pytest.mark.parametrize(("shape", "dtype"), [((5, 6), np.float16), ((5, 6, 1), np.float32), ((5, 6), np.float64)])
def test_tfds_depth_may_be_a_tensor(tmp_path, shape, dtype):
    metres = np.linspace(-0.5, 9.5, 30).reshape(shape).astype(dtype)
    source = write_with(tmp_path, {"depth": tfds.features.Tensor(shape=shape, dtype=dtype)}, {"depth": metres})
    np.testing.assert_array_equal(source[0]["depth"], metres.reshape(5, 6).astype(np.float32), strict=True)


def test_tfds_depth_may_be_an_image(tmp_path):
    feature = tfds.features.Image(shape=(5, 6, 1), dtype=np.uint16, encoding_format="png")
    millimetres = LABELS.astype(np.uint16) * 250
    source = write_with(tmp_path, {"depth": feature}, {"depth": png(Image.fromarray(millimetres))})
    np.testing.assert_array_equal(source[0]["depth"], millimetres.astype(np.float32), strict=True)


def objects_feature(*, names=("cat", "dog"), **more):
    return tfds.features.Sequence(
        {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=list(names)),
            "id": np.int64,
            **more,
        }
    )


def box(ymin, xmin, ymax, xmax):
    return tfds.features.BBox(ymin=ymin, xmin=xmin, ymax=ymax, xmax=xmax)


def test_tfds_objects_are_boxes_with_categories(tmp_path):
    objects = [
        {"bbox": box(0.25, 0.5, 0.5, 0.625), "label": "dog", "id": 7, "is_crowd": False},
        {"bbox": box(0.0, 0.0, 1.0, 1.0), "label": "cat", "id": 8, "is_crowd": True},
    ]
    source = write_with(tmp_path, {"objects": objects_feature(is_crowd=np.bool_)}, {"objects": objects})
    assert (source.category_names, source.class_names) == (("cat", "dog"), ())
    example = source[0]
    np.testing.assert_array_equal(example["boxes"], np.array([[0.5, 0.25, 0.125, 0.25], [0, 0, 1, 1.0]]), strict=True)
    np.testing.assert_array_equal(example["categories"], np.array([1, 0], np.int32), strict=True)
    np.testing.assert_array_equal(example["modifiers"], np.array([0, 1], np.int32), strict=True)


def test_tfds_images_may_be_without_objects_and_objects_never_groups(tmp_path):
    example = write_with(tmp_path, {"objects": objects_feature()}, {"objects": []})[0]
    assert example["boxes"].shape == (0, 4)
    assert example["categories"].shape == example["modifiers"].shape == (0,)


def test_tfds_features_of_these_names_but_another_kind_are_no_conditions(tmp_path):
    features = {
        "annotation": tfds.features.Text(),
        "depth": tfds.features.Text(),
        "objects": tfds.features.Sequence(tfds.features.Text()),
    }
    values = {"annotation": "a cat", "depth": "shallow", "objects": ["cat"]}
    assert set(write_with(tmp_path, features, values)[0]) == {"image", "label"}


def test_tfds_maps_that_do_not_fit_say_which(tmp_path):
    depth = np.ones((6, 5), np.float32)
    with pytest.raises(ImageError, match=r"6 x 5 pixels; `depth` of tfds:colours/train number 0 is 5 x 6"):
        write_with(tmp_path / "a", {"depth": tfds.features.Tensor(shape=(6, 5), dtype=np.float32)}, {"depth": depth})[0]
    colours = png(Image.new("RGB", (6, 5)))
    with pytest.raises(ImageError, match=r"one channel.*`annotation` of tfds:colours/train number 0 is of mode RGB"):
        write_with(tmp_path / "b", {"annotation": tfds.features.Image()}, {"annotation": colours})[0]


@pytest.mark.parametrize("kind", ["scenes", "categories"])
def test_what_is_spread_keeps_the_names_of_categories(kind, tmp_path):
    if kind == "scenes":
        source = open_source("scenes", split="train", image_size=32)
    else:
        source = write_with(tmp_path, {"objects": objects_feature()}, {"objects": []})
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
