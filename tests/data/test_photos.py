import numpy as np
import pytest

from vqgan_jax.data import photos
from vqgan_jax.data.photos import Photos


@pytest.fixture(scope="module")
def whole():
    return [photos.photograph(name) for name in photos.NAMES]


def test_training_is_the_left_four_fifths(whole):
    source = Photos(split="train")
    assert len(source) == len(source.class_names) == 11
    for label, photograph in enumerate(whole):
        example = source[label]
        assert example["label"] == label
        kept = example["image"].shape[1]
        assert 0.79 < kept / photograph.shape[1] <= 0.8
        np.testing.assert_array_equal(example["image"], photograph[:, :kept])


def test_validation_tiles_make_up_the_strip_that_training_never_sees(whole):
    train, validation = (Photos(split=split) for split in ("train", "validation"))
    examples = [validation[i] for i in range(len(validation))]
    for label, photograph in enumerate(whole):
        tiles = [example["image"] for example in examples if example["label"] == label]
        kept = train[label]["image"].shape[1]
        side = photograph.shape[1] - kept
        assert {tile.shape for tile in tiles} == {(side, side, 3)}
        column = np.concatenate(tiles)
        assert photograph.shape[0] - side < len(column) <= photograph.shape[0]
        np.testing.assert_array_equal(column, photograph[: len(column), kept:])


def test_there_is_colour(whole):
    assert sum(np.ptp(photograph.astype(int), axis=-1).mean() > 5 for photograph in whole) >= 7


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="train, validation; got 'test'"):
        Photos(split="test")
