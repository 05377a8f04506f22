"""The verbs of stage 2 one after the other: a cache, a prior trained on it, its samples; and what they refuse."""

import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import untrained
from flax import serialization
from PIL import Image
from verbs import refused, succeeds, told

import vqgan_jax as vq
from vqgan_jax import ordering
from vqgan_jax.data import open_tokens
from vqgan_jax.evaluate import classifier

pytestmark = pytest.mark.slow

PAGE = f"--config={Path(__file__).parents[1] / 'train' / 'tiny_prior.py'}"
ORDER = ordering.order("spiral_out", 8, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("verbs")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return untrained.save_tokenizer(folder / "tokenizer")


@pytest.fixture(scope="module")
def stranger(folder):
    """Another tokenizer of the same sizes."""
    return untrained.save_tokenizer(folder / "stranger", scale=0.2)


@pytest.fixture(scope="module")
def cache(folder, tokenizer):
    succeeds("tokenize", PAGE, f"--config.tokenizer.workdir={tokenizer}", f"--workdir={folder / 'cache'}")
    return folder / "cache"


@pytest.fixture(scope="module")
def prior(folder, tokenizer, cache):
    flags = [f"--config.tokenizer.workdir={tokenizer}", f"--config.data.source=tokens:{cache}"]
    succeeds("train", PAGE, *flags, f"--workdir={folder / 'prior'}", "--config.steps=4")
    return folder / "prior"


def train(workdir, tokenizer, source, *flags) -> list:
    return [
        "train", PAGE, f"--workdir={workdir}", f"--config.tokenizer.workdir={tokenizer}",
        f"--config.data.source={source}", *flags,
    ]  # fmt: skip


# In order


def test_a_cache_holds_the_codes_that_its_tokenizer_gives(capsys, tokenizer, cache):
    """Forty held-out photographs, each encoded alone by the verb for Python."""
    from vqgan_jax.data import evaluation_batches, open_source

    assert len(open_tokens(cache, split="train")) == 22
    held_out = open_tokens(cache, split="validation")
    assert len(held_out) == 40
    source = open_source("photos", split="validation", data_dir="", image_size=16)
    (batch,) = evaluation_batches(source, image_size=16, batch_size=40)
    codes = vq.encode(vq.load_tokenizer(tokenizer), batch["image"])
    rows = np.stack([held_out[i]["tokens"] for i in range(40)])
    np.testing.assert_array_equal(rows[:, 0], batch["label"])
    np.testing.assert_array_equal(rows[:, 1:], np.reshape(codes, (40, 64)))


def test_tokenizing_again_finds_everything_done(capsys, tokenizer, cache):
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    argv = ["tokenize", PAGE, f"--config.tokenizer.workdir={tokenizer}", f"--workdir={cache}"]
    assert "22 of train, 40 of validation" in told(capsys, *argv)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before


def test_a_prior_knows_its_tokenizer_and_starts_as_good_as_guessing(prior, tokenizer):
    lines = [json.loads(line) for line in (prior / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 4
    assert losses[0] == pytest.approx(np.log(32), abs=0.05)
    loaded = vq.load_prior(prior)
    assert (
        json.loads((prior / "config.json").read_text())["tokenizer"]["fingerprint"]
        == loaded.config.tokenizer.fingerprint
    )
    assert loaded.step == 4
    (nll,) = [line["eval/nll"] for line in lines if "eval/nll" in line]
    held_out = open_tokens(prior.parent / "cache", split="validation")
    rows = np.stack([held_out[i]["tokens"] for i in np.linspace(0, 39, 16).round().astype(int)])
    nats = vq.log_likelihood(loaded, rows[:, 1:].reshape(16, 8, 8), labels=rows[:, 0])
    assert nll == pytest.approx(-float(np.mean(nats)) / 64, rel=1e-5)


def test_samples_are_the_same_for_any_batch(capsys, prior, tmp_path):
    drawn = []
    for name, size in (("a", 4), ("b", 100)):
        argv = ["sample", f"--workdir={prior}", f"--output={tmp_path / name}", "--labels=3,7", "--count=9"]
        assert "18 images" in told(capsys, *argv, f"--batch_size={size}", "--seed=5")
        drawn.append(np.load(tmp_path / name / "samples.npz"))
    for name in ("images", "indices", "labels", "numbers"):
        np.testing.assert_array_equal(drawn[0][name], drawn[1][name])
    np.testing.assert_array_equal(drawn[0]["labels"], [3] * 9 + [7] * 9)
    assert len(np.unique(drawn[0]["indices"].reshape(18, -1), axis=0)) == 18
    files = sorted(path.name for path in (tmp_path / "a").glob("*_*.png"))
    assert files == [f"{label:04d}_{number:06d}.png" for label in (3, 7) for number in range(9)]
    np.testing.assert_array_equal(Image.open(tmp_path / "a" / files[11]), drawn[0]["images"][11])
    assert (tmp_path / "a" / "sheet.png").stat().st_size > 0


def test_a_completion_keeps_the_first_tokens_of_its_file(capsys, prior, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "given.png")
    argv = ["sample", f"--workdir={prior}", f"--output={tmp_path / 'out'}", f"--complete={tmp_path / 'given.png'}"]
    assert "3 images" in told(capsys, *argv, "--labels=2", "--count=3", "--keep=0.25", "--temperature=2")
    codes = np.load(tmp_path / "out" / "samples.npz")["indices"].reshape(3, 64)[:, ORDER]
    given = np.reshape(vq.encode(vq.load_prior(prior).tokenizer, pixels[None]), 64)[ORDER]
    np.testing.assert_array_equal(codes[:, :16], np.broadcast_to(given[:16], (3, 16)))
    assert len(np.unique(codes, axis=0)) == 3


def test_rejection_keeps_the_best_of_more(capsys, prior, tmp_path):
    """Two of five a class, by brightness."""
    (tmp_path / "scorer.py").write_text("def bright(images, labels):\n    return images.mean((1, 2, 3)) + 0 * labels\n")
    common = ["sample", f"--workdir={prior}", "--labels=1,4", "--batch_size=8"]
    told(capsys, *common, f"--output={tmp_path / 'all'}", "--count=5")
    scorer = f"--scorer={tmp_path / 'scorer.py'}:bright"
    told(capsys, *common, f"--output={tmp_path / 'best'}", "--count=2", "--accept_rate=0.4", scorer)
    every, best = (np.load(tmp_path / name / "samples.npz") for name in ("all", "best"))
    scores = every["images"].mean((1, 2, 3))
    wanted = [*np.sort(np.argsort(-scores[:5])[:2]), *(5 + np.sort(np.argsort(-scores[5:])[:2]))]
    np.testing.assert_array_equal(best["indices"], every["indices"][wanted])
    np.testing.assert_array_equal(best["numbers"], every["numbers"][wanted])


def test_rejection_by_a_classifier_keeps_the_likeliest_of_the_class(capsys, prior, tmp_path):
    """Two of five, by a classifier that nobody trained."""
    network, classes = classifier.Network(11), np.full(5, 4)
    params = network.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    (tmp_path / classifier.WEIGHTS).write_bytes(serialization.to_bytes(untrained.randomised(params, 0.2)))
    (tmp_path / classifier.RECORD).write_text(json.dumps({"image_size": 16}))
    common = ["sample", f"--workdir={prior}", "--labels=4"]
    succeeds(*common, f"--output={tmp_path / 'all'}", "--count=5")
    flags = ["--count=2", "--accept_rate=0.4", f"--classifier={tmp_path}"]
    succeeds(*common, f"--output={tmp_path / 'best'}", *flags)
    every, best = (np.load(tmp_path / name / "samples.npz") for name in ("all", "best"))
    scores = classifier.load(tmp_path).scores(every["images"], classes)
    np.testing.assert_array_equal(best["numbers"], np.sort(np.argsort(-scores)[:2]))
    assert "must hold classifier.json" in refused(capsys, *common, *flags[:2], f"--classifier={prior}", "--output=no")


def test_reconstruct_names_a_broken_image_and_does_the_rest(capsys, tokenizer, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    images = {
        name: rng.integers(0, 256, shape, dtype=np.uint8) for name, shape in (("a", (16, 24, 3)), ("c", (9, 8, 3)))
    }
    for name, image in images.items():
        Image.fromarray(image).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "b.png").write_bytes((tmp_path / "in" / "a.png").read_bytes()[:100])
    argv = ["reconstruct", f"--workdir={tokenizer}", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
    out = told(capsys, *argv)
    assert "2 of 3 images" in out
    assert re.search(r"skipped .*b\.png", out)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "a.npy", "c.png", "c.npy", "sheet.png"}
    loaded = vq.load_tokenizer(tokenizer)
    for name, image in images.items():
        cut = image[: image.shape[0] // 2 * 2]
        codes = np.load(tmp_path / "out" / f"{name}.npy")
        np.testing.assert_array_equal(codes, vq.encode(loaded, cut[None])[0])
        np.testing.assert_array_equal(
            Image.open(tmp_path / "out" / f"{name}.png"), vq.to_uint8(vq.decode(loaded, codes[None]))[0]
        )
    few = [*argv[:-1], f"--output={tmp_path / 'few'}"]
    assert "1 of 1 images" in told(capsys, *few, "--count=1")
    assert {path.name for path in (tmp_path / "few").iterdir()} == {"a.png", "a.npy", "sheet.png"}
    assert "`--count` must be at least 1; got 0" in refused(capsys, *few, "--count=0")


# Mistakes


def test_a_prior_with_another_tokenizer_is_refused(capsys, prior, stranger, cache, tmp_path):
    argv = ["sample", f"--workdir={prior}", f"--output={tmp_path / 'out'}", f"--tokenizer={stranger}"]
    assert "the prior's tokenizer must have fingerprint" in refused(capsys, *argv)
    assert "was made with" in refused(capsys, *train(prior, stranger, f"tokens:{cache}"))  # a cache of the other
    message = refused(capsys, *train(prior, stranger, "photos"))  # a resume with the other
    assert "would change tokenizer.fingerprint: " in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["train", "tokenize"])
def test_a_tokenizer_that_is_not_there_is_named(capsys, verb, tmp_path):
    argv = [verb, PAGE, f"--workdir={tmp_path / 'run'}", f"--config.tokenizer.workdir={tmp_path / 'nothing'}"]
    assert str(tmp_path / "nothing") in refused(capsys, *argv)
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not list(tmp_path.rglob("plan.json"))


def test_a_prior_that_lost_its_tokenizer_finds_it_beside_itself_or_names_it(capsys, prior, tokenizer, tmp_path):
    moved = tmp_path / "moved"
    tokenizer.rename(tmp_path / "away")
    try:
        argv = ["sample", f"--workdir={prior}", "--output", tmp_path / "out", "--labels=0", "--count=1"]
        assert str(tokenizer) in refused(capsys, *argv)
        moved.mkdir()
        (moved / "prior").symlink_to(prior)
        (moved / "tokenizer").symlink_to(tmp_path / "away")
        assert vq.load_prior(moved / "prior").step == 4
    finally:
        (tmp_path / "away").rename(tokenizer)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.tokenizer.codebook_size=64", "must have codebook_size 64; the one given has 32"),
        ("--config.tokenizer.downsample_factor=4", "must have downsample_factor 4; the one given has 2"),
        ("--config.condition.num_classes=10", "must cover the labels of photos, which has 11 classes; got 10"),
    ],
)
def test_a_config_that_does_not_fit_the_tokenizer_or_the_images_is_refused(
    capsys, tokenizer, tmp_path, override, message
):
    assert message in refused(capsys, *train(tmp_path / "run", tokenizer, "photos", override))
    argv = ["tokenize", PAGE, f"--workdir={tmp_path / 'run'}", f"--config.tokenizer.workdir={tokenizer}", override]
    assert message in refused(capsys, *argv)


def test_an_empty_and_a_half_written_cache_are_refused(capsys, tokenizer, cache, tmp_path):
    source = f"tokens:{tmp_path / 'cache'}"
    assert "is none" in refused(capsys, *train(tmp_path / "run", tokenizer, source))
    (tmp_path / "cache").mkdir()
    assert "it has no tokens.json" in refused(capsys, *train(tmp_path / "run", tokenizer, source))
    for path in cache.iterdir():
        if path.name not in ("tokens.json", "train-00001-of-00003.array_record"):
            (tmp_path / "cache" / path.name).symlink_to(path)
    message = refused(capsys, *train(tmp_path / "run", tokenizer, source))
    assert re.search(r"is half-written: (\d+) of (\d+) shards", message)
    (tmp_path / "cache" / "tokens.json").symlink_to(cache / "tokens.json")
    assert "must be a file of 8 records; got none" in refused(capsys, *train(tmp_path / "run", tokenizer, source))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.condition.num_classes=12", "the token cache must have condition"),
        ("--config.data.image_size=8", "the token cache must have grid (4, 4)"),
    ],
)
def test_a_cache_for_another_prior_is_refused(capsys, tokenizer, cache, tmp_path, override, message):
    argv = train(tmp_path / "run", tokenizer, f"tokens:{cache}", override, "--config.data.resize=(16,16)")
    assert message in refused(capsys, *argv)


def test_a_cache_is_not_continued_by_another_tokenizer(capsys, stranger, cache):
    argv = ["tokenize", PAGE, f"--config.tokenizer.workdir={stranger}", f"--workdir={cache}"]
    message = refused(capsys, *argv)
    assert "a folder holds one token cache" in message
    assert "fingerprint: " in message


def test_a_cache_is_made_of_images(capsys, tokenizer, cache, tmp_path):
    argv = ["tokenize", PAGE, f"--config.tokenizer.workdir={tokenizer}", f"--workdir={tmp_path}"]
    assert "is made of images" in refused(capsys, *argv, f"--config.data.source=tokens:{cache}")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels=3,11"], "`labels` must be in [0, 11)"),
        (["--labels=-1"], "`labels` must be in [0, 11)"),
        (["--labels=cat"], "`--labels` must be numbers with commas between; got 'cat'"),
        (["--top_k=33"], "`top_k` must be in 1 .. 32, the vocabulary; got 33"),
        (["--schedule=sine"], "`schedule` must be one of"),
        (["--temperature=0"], "`temperature` must be above 0"),
        (["--count=0"], "`--count` positive"),
        (["--accept_rate=0.5"], "`--accept_rate` below 1 and `--scorer` belong together"),
        (["--accept_rate=0.5", "--scorer=scorer"], "must look like FILE.py:NAME"),
        (["--complete=none.png", "--keep=1.5", "--labels=1"], "`--keep` must be a share"),
    ],
)  # fmt: skip
def test_flags_of_sample_that_cannot_be_are_refused(capsys, prior, tmp_path, flags, message):
    argv = ["sample", f"--workdir={prior}", f"--output={tmp_path / 'out'}", *flags]
    assert message in refused(capsys, *argv)
    assert not (tmp_path / "out").exists()


def test_a_file_to_complete_needs_its_class(capsys, prior, tmp_path):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "a.png")
    argv = ["sample", f"--workdir={prior}", f"--output={tmp_path / 'out'}", "--complete", tmp_path / "a.png"]
    assert "`--labels` must give the class of the files" in refused(capsys, *argv)
    assert "one for each of 1 files; got 2" in refused(capsys, *argv, "--labels=1,2")


def test_a_run_of_the_other_stage_is_refused(capsys, prior, tokenizer, tmp_path):
    assert "must be a run of Stage2; it is one of stage 1" in refused(
        capsys, "sample", f"--workdir={tokenizer}", f"--output={tmp_path}"
    )
    assert "must be a run of Stage1; it is one of stage 2" in refused(
        capsys, "reconstruct", f"--workdir={prior}", "--input=photos", f"--output={tmp_path}"
    )
