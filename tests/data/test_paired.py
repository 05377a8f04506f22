import numpy as np
import pytest
from PIL import Image

from vqgan_jax.data import ImageError, open_source
from vqgan_jax.data.folder import Folder
from vqgan_jax.data.paired import Paired


def fill(root, names, *, maps=("segmentations",), size=(6, 4)):
    """Images whose red value is their number, and maps of that number; the names have no suffix."""
    for number, name in enumerate(names):
        for folder in ("images", *maps):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number, 0, 0)).save(root / f"images/{name}.bmp")
        if "segmentations" in maps:
            Image.new("L", size, number).save(root / f"segmentations/{name}.png")
        if "depth" in maps:
            np.save(root / f"depth/{name}.npy", np.full(size[::-1], number + 0.5, np.float32))
        if "keypoints" in maps:
            Image.new("RGB", size, (0, number, 0)).save(root / f"keypoints/{name}.png")


def contents(source: Paired) -> list[int]:
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


def test_every_image_comes_with_its_own_maps(tmp_path):
    names = ["b", "nested/deep/c", "a"]
    fill(tmp_path, names, maps=("segmentations", "depth", "keypoints"))
    source = Paired(tmp_path, split="all")
    assert contents(source) == [2, 0, 1]  # sorted by path
    assert source.class_names == ()
    for number, example in zip([2, 0, 1], (source[i] for i in range(3)), strict=True):
        assert set(example) == {"image", "label", "segmentation", "depth", "keypoints"}
        assert example["label"] == 0
        assert example["label"].dtype == np.int32
        np.testing.assert_array_equal(example["segmentation"], np.full((4, 6), number, np.uint8), strict=True)
        np.testing.assert_array_equal(example["depth"], np.full((4, 6), number + 0.5, np.float32), strict=True)
        np.testing.assert_array_equal(example["keypoints"], np.full((4, 6, 3), [0, number, 0], np.uint8), strict=True)


def test_the_scheme_opens_it(tmp_path):
    fill(tmp_path, ["a"])
    source = open_source(f"paired:{tmp_path}", split="all", image_size=8)
    assert source.name == f"paired:{tmp_path}/all"
    assert set(source[0]) == {"image", "label", "segmentation"}


def test_splits_are_those_of_a_plain_folder(tmp_path):
    fill(tmp_path, [f"{i:03}" for i in range(100)])
    for split in ("train", "validation"):
        plain = Folder(tmp_path / "images", split=split)
        assert contents(Paired(tmp_path, split=split)) == [int(plain[i]["image"][0, 0, 0]) for i in range(len(plain))]
    assert len(Paired(tmp_path, split="all")) == 100


@pytest.mark.parametrize(("train", "validation"), [("train", "val"), ("training", "validation")])
def test_folders_of_the_splits_are_the_splits(tmp_path, train, validation):
    fill(tmp_path, [f"{train}/a", f"{validation}/b", f"{train}/c"])
    assert contents(Paired(tmp_path, split="train")) == [0, 2]
    assert contents(Paired(tmp_path, split="validation")) == [1]
    assert sorted(contents(Paired(tmp_path, split="all"))) == [0, 1, 2]


def test_lonely_files_are_named(tmp_path):
    fill(tmp_path, [f"x/{i}" for i in range(8)])
    (tmp_path / "segmentations/x/3.png").rename(tmp_path / "segmentations/x/stray.png")
    with pytest.raises(ValueError, match=r"image must have a map in .*segmentations.*; x/3.bmp have none"):
        Paired(tmp_path, split="all")
    (tmp_path / "images/x/3.bmp").unlink()
    with pytest.raises(ValueError, match=r"map in .*segmentations must have an image.*; x/stray.png have none"):
        Paired(tmp_path, split="all")
    for i in (0, 1, 2, 4, 5, 6):
        (tmp_path / f"images/x/{i}.bmp").unlink()
    with pytest.raises(ValueError, match=r"x/0.png, x/1.png, x/2.png, x/4.png, x/5.png, ... \(7 in all\)"):
        Paired(tmp_path, split="all")


def test_two_images_of_one_name_are_refused(tmp_path):
    fill(tmp_path, ["a"])
    Image.new("RGB", (6, 4)).save(tmp_path / "images/a.png")
    with pytest.raises(ValueError, match=r"differ in more than their suffix; a\.bmp"):
        Paired(tmp_path, split="all")


def test_a_map_of_another_size_is_an_image_error_that_names_it(tmp_path):
    fill(tmp_path, ["a"])
    Image.new("L", (4, 6)).save(tmp_path / "segmentations/a.png")
    with pytest.raises(ImageError, match=r"6 x 4 pixels; .*segmentations/a.png is 4 x 6"):
        Paired(tmp_path, split="all")[0]


def test_what_is_no_such_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="folder `images`"):
        Paired(tmp_path, split="all")
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match="0 in all and none for 'train'"):
        Paired(tmp_path, split="train")
    with pytest.raises(ValueError, match="got 'test'"):
        Paired(tmp_path, split="test")
