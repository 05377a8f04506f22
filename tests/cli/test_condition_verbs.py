"""Conditioned synthesis from first to last: two tokenizers, a prior, a cache, and every way to sample."""

import json
from pathlib import Path

import numpy as np
import pytest
import untrained
from PIL import Image
from verbs import refused, succeeds

import vqgan_jax as vq
from vqgan_jax.data import open_tokens
from vqgan_jax.data.scenes import Scenes

pytestmark = pytest.mark.slow

TRAIN = Path(__file__).parents[1] / "train"
PRIOR = f"--config={TRAIN / 'tiny_prior.py'}:segmentation"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("conditions")


@pytest.fixture(scope="module")
def flags(folder):
    """The tokenizers of images and of label maps, the second one trained for a few steps."""
    tokenizer = untrained.save_tokenizer(folder / "tokenizer")
    succeeds("train", f"--config={TRAIN / 'tiny.py'}:segmentation", f"--workdir={folder / 'maps'}", "--config.steps=6")
    return [f"--config.tokenizer.workdir={tokenizer}", f"--config.condition.tokenizer.workdir={folder / 'maps'}"]


@pytest.fixture(scope="module")
def prior(folder, flags):
    succeeds("train", PRIOR, *flags, f"--workdir={folder / 'prior'}", "--config.steps=3", "--config.log.eval_every=3")
    return folder / "prior"


@pytest.fixture(scope="module")
def label_map(folder):
    """A wide one: the left and the right half of two scenes."""
    scenes = Scenes(split="validation", image_size=16)
    path = folder / "map.png"
    Image.fromarray(np.hstack([scenes[0]["segmentation"], scenes[1]["segmentation"]])).save(path)
    return path


def test_label_maps_are_learned_as_categories(folder, prior):
    lines = [json.loads(line) for line in (folder / "maps" / "metrics.jsonl").read_text().splitlines()]
    errors = [line["eval/error"] for line in lines if "eval/error" in line]
    assert errors
    assert 0 < errors[-1] < 0.9
    tokenizer = vq.load_tokenizer(folder / "maps")
    maps = Scenes(split="train", image_size=16)[0]["segmentation"][None].astype(np.int32)
    assert vq.decode(tokenizer, vq.encode(tokenizer, maps)).shape == (1, 16, 16, 9)


def test_a_cache_holds_the_codes_of_the_map_before_those_of_the_image(folder, flags, tmp_path):
    for split in ("train", "validation"):
        scenes = Scenes(split=split, image_size=16)
        for i in range(4):
            for name, field in (("images", "image"), ("segmentations", "segmentation")):
                path = tmp_path / "pairs" / name / split / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(scenes[i][field]).save(path)
    source = f"--config.data.source=paired:{tmp_path / 'pairs'}"
    succeeds("tokenize", PRIOR, *flags, source, f"--workdir={tmp_path / 'cache'}")
    rows = open_tokens(tmp_path / "cache", split="validation")
    assert (len(rows), rows.plan.prefix) == (4, 64)
    scene = Scenes(split="validation", image_size=16)[0]
    condition = vq.encode(vq.load_tokenizer(folder / "maps"), scene["segmentation"][None].astype(np.int32))
    image = vq.encode(vq.load_tokenizer(folder / "tokenizer"), scene["image"][None])
    np.testing.assert_array_equal(rows[0]["tokens"], np.concatenate([condition.reshape(-1), image.reshape(-1)]))
    cached = f"--config.data.source=tokens:{tmp_path / 'cache'}"
    succeeds("train", PRIOR, *flags, cached, f"--workdir={tmp_path / 'prior'}", "--config.steps=2")


def sampled(prior, output, *argv):
    succeeds("sample", f"--workdir={prior}", f"--output={output}", *argv)
    with np.load(output / "samples.npz") as arrays:
        return dict(arrays)


def test_held_out_conditions_are_shown_beside_their_samples(prior, tmp_path):
    found = sampled(prior, tmp_path, "--examples=2", "--count=3", "--animate=gif")
    np.testing.assert_array_equal(found["subjects"], [0, 0, 0, 1, 1, 1])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (6 * 16 + 5 * 2, 2 * 16 + 2)  # map, its reconstruction, the image, three samples
    with Image.open(tmp_path / "0001.gif") as film:
        assert film.n_frames > 8
        film.seek(film.n_frames - 1)
        last = np.asarray(film.convert("RGB")).astype(int)
    assert np.abs(last - found["images"][3]).mean() < 8  # but for the colours that a GIF merges


def test_a_wide_map_gives_a_wide_image(prior, label_map, tmp_path):
    argv = ("--condition", label_map, "--size=16x32", "--count=2")
    found = sampled(prior, tmp_path / "one", *argv)
    assert found["images"].shape == (2, 16, 32, 3)
    again = sampled(prior, tmp_path / "other", *argv, "--batch_size=1")
    np.testing.assert_array_equal(again["indices"], found["indices"])


def test_a_wide_picture_gives_a_wide_image_where_maps_are_brought_to_another_size(folder, flags, tmp_path):
    page = f"--config={TRAIN / 'tiny_prior.py'}:half"
    succeeds("train", page, flags[0], f"--workdir={tmp_path / 'prior'}", "--config.steps=1")
    picture = tmp_path / "wide.png"
    Image.fromarray(np.hstack([Scenes(split="validation", image_size=18)[i]["image"] for i in range(2)])).save(picture)
    found = sampled(
        tmp_path / "prior", tmp_path / "out", "--condition", picture, "--size=18x36", "--count=2", "--stride=4"
    )
    assert found["images"].shape == (2, 18, 36, 3)
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.size == (4 * 36 + 3 * 2, 18)  # edges, what their windows see of them, two samples


def test_only_what_is_white_is_drawn_anew(prior, label_map, tmp_path):
    scene = Scenes(split="validation", image_size=16)[0]
    Image.fromarray(scene["image"]).save(tmp_path / "photo.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 6:12] = 255  # rows 2 to 4 and columns 3 to 5 of the codes
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(scene["segmentation"]).save(tmp_path / "map.png")
    found = sampled(
        prior, tmp_path / "out", "--condition", tmp_path / "map.png", "--complete", tmp_path / "photo.png",
        f"--mask={tmp_path / 'mask.png'}", "--count=2",
    )  # fmt: skip
    codes = np.asarray(vq.encode(vq.load_prior(prior).tokenizer, scene["image"][None]))
    same = (found["indices"] == codes).all(0)
    drawn = np.zeros((8, 8), bool)
    drawn[2:5, 3:6] = True
    assert same[~drawn].all()
    assert not same[drawn].all()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--labels=1"], "`--labels` are for a class-conditional prior"),
        (["--size=16"], "`--size` must look like 512x2048"),
        (["--size=16x32"], "held-out examples have the training size"),
        (["--mask=mask.png"], "give the picture by --complete"),
        (["--condition", "map.png", "--size=14x32"], "must be at least"),
        (["--condition", "map.png", "--size=17x32"], "multiples of 2 pixels; got (17, 32)"),
    ],
)
def test_flags_that_cannot_be_are_refused(capsys, prior, label_map, tmp_path, argv, message):
    argv = [str(label_map) if argument == "map.png" else argument for argument in argv]
    assert message in refused(capsys, "sample", f"--workdir={prior}", f"--output={tmp_path / 'out'}", *argv)
