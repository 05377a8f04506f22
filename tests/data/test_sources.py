import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vqgan_jax.data import ImageError, open_source

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def write_tfds(data_dir, *, dataset="colours", version="1.0.0", labelled=True, copies=4):
    """A dataset of one-coloured PNG images, prepared as a user would; its class is not registered in TFDS."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    def png(colour):
        buffer = io.BytesIO()
        Image.new("RGB", (6, 5), colour).save(buffer, "PNG")
        return io.BytesIO(buffer.getvalue())

    with registered.skip_registration():

        class Colours(tfds.core.GeneratorBasedBuilder):
            name = dataset
            VERSION = tfds.core.Version(version)

            def _info(self):
                label = {"label": tfds.features.ClassLabel(names=list(COLOURS))} if labelled else {}
                features = tfds.features.FeaturesDict({"image": tfds.features.Image(), **label})
                return tfds.core.DatasetInfo(builder=self, features=features)

            def _split_generators(self, dl_manager):
                return {"train": self._generate_examples(copies), "test": self._generate_examples(1)}

            def _generate_examples(self, copies):
                for number in range(copies):
                    for name, colour in COLOURS.items():
                        yield f"{name}{number}", {"image": png(colour)} | ({"label": name} if labelled else {})

    Colours(data_dir=data_dir, file_format="array_record").download_and_prepare()


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
@pytest.mark.parametrize("spec", ["photos", "scenes", "folder:{folder}", "tfds:colours"])
def test_all_sources_are_alike(spec, split, tmp_path, colours):
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (20, 30)).save(tmp_path / name / "a.png")
    split = "test" if spec.startswith("tfds") and split == "validation" else split
    source = open_source(spec.format(folder=tmp_path), split=split, data_dir=colours, image_size=32)
    assert source.name.startswith(spec.split(":")[0])
    example = source[len(source) - 1]
    assert example["image"].dtype == np.uint8
    assert example["image"].shape[2:] == (3,)
    assert example["label"].dtype == np.int32
    assert 0 <= example["label"] < max(1, len(source.class_names))


@pytest.mark.parametrize("spec", ["", "photo", "photos:astronaut", "folder", "folder:", "tfds:", "http://x"])
def test_unknown_sources_are_refused_with_the_known_ones(spec):
    with pytest.raises(ValueError, match="photos, scenes, folder:PATH, tfds:NAME"):
        open_source(spec, split="train", image_size=32)
