import os

import numpy as np
import pytest
from PIL import Image

from vqgan_jax.data.folder import Folder


def fill(root, files):
    """Writes one-pixel images whose red value is their number."""
    for number, file in enumerate(files):
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1, 1), (number, 0, 0)).save(path)


def contents(source: Folder) -> list[int]:
    return [int(source[i]["image"][0, 0, 0]) for i in range(len(source))]


def labels(source: Folder) -> list[int]:
    return [int(source[i]["label"]) for i in range(len(source))]


def test_a_tree_is_listed_by_path_with_first_level_folders_as_classes(tmp_path):
    fill(tmp_path, ["dog/b.png", "cat/deep/er/a.PNG", "dog/a.bmp"])
    (tmp_path / "cat/notes.txt").write_text("no image")
    (tmp_path / "cat/._a.png").write_bytes(b"what macOS leaves behind")
    source = Folder(tmp_path, split="all")
    assert contents(source) == [1, 2, 0]
    assert labels(source) == [0, 1, 1]
    assert source.class_names == ("cat", "dog")
    assert source[0]["label"].dtype == np.int32


def test_a_flat_folder_has_no_classes(tmp_path):
    fill(tmp_path, ["b.png", "a.png"])
    source = Folder(tmp_path, split="all")
    assert (contents(source), labels(source), source.class_names) == ([1, 0], [0, 0], ())


def test_loose_images_beside_classes_have_the_empty_name(tmp_path):
    fill(tmp_path, ["cat/a.png", "z.png"])
    source = Folder(tmp_path, split="all")
    assert (labels(source), source.class_names) == ([1, 0], ("", "cat"))


@pytest.mark.parametrize("validation", ["validation", "val"])
def test_split_folders_are_the_splits_and_labels_agree(tmp_path, validation):
    fill(tmp_path, ["train/cat/a.png", "train/dog/a.png", f"{validation}/dog/a.png", "test/x.png"])
    train, valid, everything = (Folder(tmp_path, split=split) for split in ("train", "validation", "all"))
    assert (contents(train), labels(train)) == ([0, 1], [0, 1])
    assert (contents(valid), labels(valid)) == ([2], [1])
    assert contents(everything) == [0, 1, 2]
    assert train.class_names == valid.class_names == ("cat", "dog")


def test_without_them_the_hash_split_parts_the_images_and_is_stable(tmp_path):
    fill(tmp_path / "before", [f"{i:03}.png" for i in range(200)])
    train, valid = (contents(Folder(tmp_path / "before", split=split)) for split in ("train", "validation"))
    assert sorted(train + valid) == list(range(200))
    assert 2 <= len(valid) <= 20
    # Other images, another place: those that were there stay on their side.
    fill(tmp_path / "after", [f"{i:03}.png" for i in range(200)])
    for i in range(10):
        Image.new("RGB", (1, 1), (255, 0, 0)).save(tmp_path / f"after/1{i:02}b.png")
    assert set(valid) == set(contents(Folder(tmp_path / "after", split="validation"))) - {255}


def test_links_are_followed_once(tmp_path):
    fill(tmp_path / "elsewhere", ["a.png"])
    fill(tmp_path / "root", ["cat/b.png"])
    (tmp_path / "root/dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/cat/loop").symlink_to(tmp_path / "root")
    assert Folder(tmp_path / "root", split="all").class_names == ("cat", "dog")
    assert len(Folder(tmp_path / "root", split="all")) == 2


def test_odd_names_are_read(tmp_path):
    fill(tmp_path, ["späß [1] #.png", os.fsdecode(b"latin\xe9.png")])
    assert sorted(contents(Folder(tmp_path, split="all"))) == [0, 1]


def test_nothing_to_read_is_said(tmp_path):
    with pytest.raises(ValueError, match="has 0 in all"):
        Folder(tmp_path, split="all")
    with pytest.raises(ValueError, match="existing folder"):
        Folder(tmp_path / "none", split="all")
    fill(tmp_path, ["a.png"])
    with pytest.raises(ValueError, match="got 'test'"):
        Folder(tmp_path, split="test")
