"""Captions: where they come from, the tokens that they become, and a prior that is trained and sampled with them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import untrained
from PIL import Image

import vqgan_jax as vq
from vqgan_jax import cli
from vqgan_jax.__main__ import main
from vqgan_jax.conditions.text import Text
from vqgan_jax.data import Augmentation, evaluation_batches, open_source, open_tokens, training_batches
from vqgan_jax.data.scenes import Scenes
from vqgan_jax.evaluate import drawing, of_prior

KEY = jax.random.key(0)
PAGE = Path(__file__).parents[1] / "train" / "tiny_prior.py"
TEXT = Text(max_tokens=6)


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    """Four images of each split, two captions beside each."""
    root = tmp_path_factory.mktemp("captions")
    for split in ("train", "validation"):
        (root / split).mkdir()
        scenes = Scenes(split=split, image_size=16)
        for i in range(4):
            Image.fromarray(scenes[i]["image"]).save(root / split / f"{i}.png")
            (root / split / f"{i}.txt").write_text(f"scene {i}\n\n  é {i}  \n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def prior():
    return untrained.prior("text", condition__max_tokens=6)


def said(ids):
    return TEXT.words(np.asarray(ids))


def test_a_caption_is_its_bytes_and_padding():
    row = TEXT.row("é a")
    np.testing.assert_array_equal(row, [0xC3, 0xA9, 32, 97, 256, 256])
    assert (TEXT.length, TEXT.vocab_size, Text(drop=0.0).vocab_size) == (6, 258, 257)
    assert said(row) == "é a"
    assert said(np.full(6, TEXT.vocab_size - 1)) == ""


def test_ids_of_another_tokenizer_are_padded_behind_them():
    text = Text(max_tokens=4, num_ids=1000, drop=0.0)
    np.testing.assert_array_equal(text.row(np.array([999, 0])), [999, 0, 1000, 1000])
    np.testing.assert_array_equal(text.tokens({}, np.array([[5, 7]]), (1, 1), None), [[5, 7, 1000, 1000]])
    assert (text.vocab_size, text.words(text.row(np.array([5, 7])))) == (1001, "5 7")


def test_a_caption_of_the_data_is_drawn_by_chance_and_cut(captions):
    source, fields = open_source(f"folder:{captions}", split="train", image_size=16), TEXT.views(None)
    options = {"batch_size": 4, "fields": fields, "num_threads": 1}
    crops = Augmentation(image_size=16, resize=(16, 16), crop="center", flip=False, small="upscale")
    batches = training_batches(source, augmentation=crops, seed=0, **options)
    seen = {said(row) for _ in range(8) for row in next(batches)["text"]}
    assert seen == {"scene "} | {f"é {i}" for i in range(4)}
    first, again = (next(evaluation_batches(source, image_size=16, **options))["text"] for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_an_array_beside_an_image_holds_ids(captions, tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.array([[3, 4, 5], [3, 4, 5]], np.uint16))
    source = open_source(f"folder:{tmp_path}", split="all", image_size=16)
    fields = Text(max_tokens=4, num_ids=9).views(None)
    (batch,) = evaluation_batches(source, image_size=16, batch_size=1, fields=fields)
    np.testing.assert_array_equal(batch["text"], [[3, 4, 5, 9]])
    for name, values, message in (
        ("a.npy", np.zeros((2, 2)), "array t or n t of integers by `numpy.save`; .*a.npy holds neither"),
        ("a.npy", b"", "array t or n t of integers by `numpy.save`; .*a.npy holds neither"),
        ("a.npy", np.array([10]), r"must be in \[0, 10\); got values in \[10, 10\]"),
        ("a.txt", b"\xff", "one file beside it, .*a.txt or .npy; there are 2"),
    ):
        (tmp_path / name).write_bytes(values) if isinstance(values, bytes) else np.save(tmp_path / name, values)
        with pytest.raises(ValueError, match=message):
            list(evaluation_batches(source, image_size=16, batch_size=1, fields=fields))
    (tmp_path / "a.npy").unlink()
    with pytest.raises(ValueError, match=r"lines of UTF-8 text.*a\.txt holds neither"):
        list(evaluation_batches(source, image_size=16, batch_size=1, fields=TEXT.views(None)))


def test_coco_has_captions(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "val2017" / "7.png")
    images = [{"id": 7, "file_name": "7.png", "width": 20, "height": 10}]
    box = {"image_id": 7, "category_id": 1, "bbox": [1, 1, 5, 5], "iscrowd": 0}
    documents = {
        "instances": {"categories": [{"id": 1, "name": "dog"}], "annotations": [box | {"id": i} for i in range(2)]},
        "captions": {"annotations": [{"image_id": 7, "caption": "a dog \n"}, {"image_id": 7, "caption": "dogs"}]},
    }
    for name, document in documents.items():
        (tmp_path / f"annotations/{name}_val2017.json").write_text(json.dumps(document | {"images": images}))
    source = open_source(f"coco:{tmp_path}", split="validation", image_size=16)
    assert source[0]["text"]() == ["a dog", "dogs"]
    scenes = open_source("scenes", split="train", image_size=16)
    with pytest.raises(ValueError, match="must have `text`"):
        list(evaluation_batches(scenes, image_size=16, batch_size=1, num_examples=1, fields=TEXT.views(None)))


@pytest.mark.slow
def test_captions_of_a_caller_are_their_ids_in_every_window(prior):
    texts = ["a cube", "é"]
    rows = np.stack([TEXT.row(text) for text in texts])
    draw = lambda condition, **options: np.asarray(vq.sample_indices(prior, KEY, condition=condition, **options))
    own = draw(texts, guidance=2.0)
    np.testing.assert_array_equal(draw(rows, guidance=2.0), own)
    np.testing.assert_array_equal(draw(jnp.asarray(rows), guidance=2.0), own)
    assert np.any(own != draw(texts[::-1], guidance=2.0))
    wide = draw(texts, size=(8, 12), stride=2)
    np.testing.assert_array_equal(wide, draw(rows, size=(8, 12), stride=2))
    assert wide.shape == (2, 4, 6)
    likely = lambda condition: np.asarray(vq.log_likelihood(prior, own, condition=condition))
    assert np.all(likely(texts) != likely(texts[::-1]))


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("a cube", "a list of captions or integers of shape .*, s up to 6; got str"),
        ([], "got list of shape"),
        (["a cube", "a red cube"], "at most 6 tokens, condition.max_tokens; got 10 of 'a red cube'"),
        (np.zeros((2, 7), int), r"got ndarray of shape \(2, 7\)"),
        (np.zeros((2, 4)), r"got ndarray of shape \(2, 4\)"),
        (np.full((2, 4), 257), r"must be in \[0, 257\); got values in \[257, 257\]"),
        (None, "this prior's condition is 'text': it needs `condition`, the text of each image"),
    ],
)
def test_what_is_no_caption_is_refused(prior, condition, message):
    with pytest.raises(ValueError, match=message):
        vq.sample_indices(prior, KEY, condition=condition)


def test_words_are_refused_where_ids_are_learned():
    with pytest.raises(ValueError, match=r"token ids in \[0, 9\), as condition.num_ids says; got the text 'a'"):
        Text(num_ids=9).row("a")
    with pytest.raises(ValueError, match="max_tokens` must be positive"):
        cli.load_config(f"{PAGE}:text", ["--config.condition.max_tokens=0"])


def test_what_ends_like_a_file_is_one(tmp_path):
    (tmp_path / "more.txt").write_text("b\nc\n")
    np.save(tmp_path / "ids.npy", np.array([100]))
    names = ["a cube", str(tmp_path / "more.txt"), str(tmp_path / "ids.npy")]
    assert [said(row) for row in TEXT.read(names, (8, 8), None)] == ["a cube", "b", "c", "d"]
    (tmp_path / "map.png").touch()
    with pytest.raises(ValueError, match=r"must end in .txt or .npy; .*map.png does not"):
        TEXT.read([str(tmp_path / "map.png")], (8, 8), None)
    with pytest.raises(FileNotFoundError):
        TEXT.read(["there_is_none.txt"], (8, 8), None)


@pytest.mark.slow
def test_a_prior_learns_captions_and_draws_what_they_say(captions, tmp_path):
    """Images or a token cache, a sheet while training, samples of captions and of held-out ones, and their pictures."""
    tokenizer = untrained.save_tokenizer(tmp_path / "tokenizer")
    page = [f"--config={PAGE}:text", f"--config.tokenizer.workdir={tokenizer}"]
    images = f"--config.data.source=folder:{captions}"
    runs = lambda verb, *argv: main([verb, *map(str, argv)])
    assert runs("train", *page, images, f"--workdir={tmp_path / 'prior'}", "--config.steps=2") == 0
    prior = vq.load_prior(tmp_path / "prior")
    rows = drawing.held_out(prior, 4).rows["condition"]
    text = prior.module.condition
    assert all(text.words(row)[-1] == str(i) for i, row in enumerate(rows))
    *_, drawn = of_prior.subjects_of(prior, 6)
    np.testing.assert_array_equal(drawn["condition"], rows[[0, 1, 2, 3, 0, 1]])
    out = [f"--workdir={tmp_path / 'prior'}", f"--output={tmp_path / 'out'}", "--count=2"]
    assert runs("sample", *out, "--condition", "a cube", "a dog", "--size=16x24") == 0
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.size == (3 * 24 + 2 * 2, 2 * 16 + 2)  # the words and two samples
    assert runs("tokenize", *page, images, f"--workdir={tmp_path / 'cache'}") == 0
    cached = open_tokens(tmp_path / "cache", split="validation")
    np.testing.assert_array_equal(np.stack([cached[i]["tokens"][: text.length] for i in range(4)]), rows)
    source = f"--config.data.source=tokens:{tmp_path / 'cache'}"
    assert runs("train", *page, source, f"--workdir={tmp_path / 'again'}", "--config.steps=2") == 0
