"""`vqgan evaluate` on models that nobody trained, against the same computed in the open."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sets
import untrained
from verbs import refused, succeeds

import vqgan_jax as vq
from vqgan_jax import data
from vqgan_jax.convert.lpips import load_lpips
from vqgan_jax.evaluate.distances import add, empty, frechet_distance
from vqgan_jax.nn.perceptual import LPIPS
from vqgan_jax.nn.pixels import to_float

pytestmark = pytest.mark.slow

COUNT = 37  # of 8 devices and batches of 16, no multiple


def run(output, *argv) -> dict:
    """Results by metric."""
    succeeds("evaluate", f"--output={output}", *argv)
    return {row["metric"]: row for row in json.loads((output / "evaluation.json").read_text())["results"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer of 16 px, and images of 20 by 24 in folders of both splits."""
    folder = tmp_path_factory.mktemp("evaluate")
    untrained.save_tokenizer(folder / "tokenizer")
    (folder / "images").mkdir()
    wide = lambda images: np.concatenate([images, images[:, :, :4]], axis=2)
    sets.write(folder / "images" / "validation", wide(sets.blobs(COUNT, size=20)))
    sets.write(folder / "images" / "train", wide(sets.blobs(9, size=20, seed=1)))
    return folder


@pytest.fixture(scope="module")
def flags(folder):
    return f"--workdir={folder / 'tokenizer'}", f"--config.data.source=folder:{folder / 'images'}", "--batch_size=16"


@pytest.fixture(scope="module")
def results(folder, flags):
    return run(folder / "out", *flags)


@pytest.fixture(scope="module")
def pairs(folder):
    """All crops at once, and what comes back."""
    source = data.open_source(f"folder:{folder / 'images'}", split="validation", image_size=16)
    (batch,) = data.evaluation_batches(source, image_size=16, batch_size=COUNT, num_threads=1)
    tokenizer = vq.load_tokenizer(folder / "tokenizer")
    indices = vq.encode(tokenizer, batch["image"])
    return batch["image"], np.asarray(vq.to_uint8(vq.decode(tokenizer, indices))), np.asarray(indices)


def test_the_distance_of_perturbed_codes_stands_beside_that_of_the_reconstructions(folder, flags, results):
    rows = run(folder / "perturbed", *flags, "--metrics=fd_vgg,pfd_vgg")
    ours, plain = (rows[f"{name}{COUNT}"] for name in ("pfd_vgg", "fd_vgg"))
    assert plain["value"] == pytest.approx(results[f"fd_vgg{COUNT}"]["value"], rel=1e-6)
    assert ours["value"] > 0
    assert ours["subject_fingerprint"] != plain["subject_fingerprint"]
    assert ours["reference_fingerprint"] == plain["reference_fingerprint"]
    assert "50%" in ours["variant"]
    assert (ours["network"], ours["network_hash"]) == (plain["network"], plain["network_hash"])


def test_values_of_pixels_are_those_of_all_crops(results, pairs):
    originals, recons, indices = pairs
    mse = np.mean(np.square(originals / 255.0 - recons / 255.0), axis=(1, 2, 3))
    assert results["psnr"]["value"] == pytest.approx(np.mean(-10 * np.log10(mse)), rel=1e-6)
    assert results["l1"]["value"] == pytest.approx(2 * np.mean(np.abs(originals / 255.0 - recons / 255.0)), rel=1e-9)
    lpips = jax.jit(lambda p, x, y: LPIPS().apply({"params": p}, to_float(x), to_float(y)))(
        load_lpips(), *map(jnp.asarray, pairs[:2])
    )
    assert results["lpips_vgg"]["value"] == pytest.approx(float(np.mean(lpips)), rel=1e-5)
    hits = np.bincount(indices.reshape(-1), minlength=32)
    assert results["codebook_usage"]["value"] == np.count_nonzero(hits) / 32
    p = hits[hits > 0] / hits.sum()
    assert results["perplexity"]["value"] == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-9)


def test_the_frechet_distance_is_of_the_same_crops(results, pairs):
    from vqgan_jax.evaluate.features import vgg_features

    lpips = load_lpips()
    of = lambda images: add(empty(512), np.asarray(vgg_features(lpips, jnp.asarray(images))))
    expected = frechet_distance(of(pairs[0]), of(pairs[1]))
    assert results[f"fd_vgg{COUNT}"]["value"] == pytest.approx(expected, rel=1e-4)


def test_a_record_says_all_of_it(results, folder, pairs):
    row = results["psnr"]
    assert (row["subject_count"], row["reference_count"], row["step"], row["weights"]) == (COUNT, COUNT, 1, "ema")
    assert row["resize"] == "from 20x24: short side to 16 by antialiased bicubic (Pillow), centre crop 16x16"
    assert row["reference"].endswith("/images/validation, the same crops")
    assert results["lpips_vgg"]["network"] == "vgg16.ckpt"
    assert len(results["lpips_vgg"]["network_hash"]) == 16
    assert row["network"] == "none"
    assert row["versions"]["jax"] == jax.__version__
    page = (folder / "out" / "evaluation.html").read_text()
    assert "<script" not in page
    assert page.count("<img") == 1 + 2 * 3 * 4
    assert all(row["metric"] in page for row in results.values())


def test_the_reference_is_a_function_of_the_crop(results, pairs, folder, flags):
    """Not the files: the fingerprint is that of the crops, and another split or size has another (E9)."""
    crops = sets.archive(folder / "crops.npz", pairs[0])
    raw = folder / "images" / "validation"
    same = run(folder / "same", f"--reference={crops}", f"--samples_from={raw}", "--size=16", "--metrics=fd_vgg")
    (row,) = same.values()
    assert row["value"] < 1e-3
    assert row["reference_fingerprint"] == row["subject_fingerprint"] == results["psnr"]["reference_fingerprint"]
    other = run(folder / "train", *flags, "--reference=train", "--metrics=psnr")["psnr"]
    assert other["reference_count"] == 9
    assert other["reference"].endswith("/images/train, the same crops")
    assert other["reference_fingerprint"] != row["reference_fingerprint"]


def test_raw_and_averaged_weights_are_both_there_and_named(results, folder, flags):
    raw = run(folder / "raw", *flags, "--metrics=psnr", "--weights=raw")["psnr"]
    averaged = run(folder / "ema", *flags, "--metrics=psnr", "--weights=ema")["psnr"]
    assert (raw["weights"], averaged["weights"]) == ("raw", "ema")
    assert averaged["value"] == results["psnr"]["value"] != raw["value"]


def test_statistics_of_a_reference_serve_again(results, folder):
    """What the tokenizer's evaluation left is the reference for its images elsewhere."""
    statistics, raw = folder / "out" / "reference_vgg.npz", folder / "images" / "validation"
    again = run(folder / "again", f"--reference={statistics}", f"--samples_from={raw}", "--size=16", "--metrics=fd_vgg")
    (row,) = again.values()
    assert row["value"] < 1e-3
    assert row["reference_count"] == COUNT


def test_two_sets_that_are_one_and_two_that_are_none(tmp_path):
    one, other = sets.blobs(40), 255 - sets.blobs(24, seed=2) // 4
    flags = [f"--reference={sets.archive(tmp_path / 'one.npz', one)}", "--batch_size=8"]
    same = run(tmp_path / "same", *flags, f"--samples_from={tmp_path / 'one.npz'}")
    assert same["fd_vgg40"]["value"] < 1e-3
    assert [same[f"{name}_vgg40"]["value"] for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    apart = run(tmp_path / "apart", *flags, f"--samples_from={sets.write(tmp_path / 'other', other)}")
    assert apart["fd_vgg24"]["value"] > 1
    assert apart["precision_vgg24"]["value"] == apart["coverage_vgg24"]["value"] == 0


def test_what_cannot_be_measured_is_refused_before_any_work(capsys, flags, tmp_path, monkeypatch):
    monkeypatch.setenv("VQGAN_JAX_CACHE", str(tmp_path))
    assert "must be one of psnr, ssim, l1" in refused(capsys, "evaluate", *flags, "--metrics=psnr,psrn")
    assert "'nll' is for a prior" in refused(capsys, "evaluate", *flags, "--metrics=nll")
    assert "'fid' is for a prior or two sets of images" in refused(capsys, "evaluate", *flags, "--metrics=fid")
    assert "2015-12-05" in refused(capsys, "evaluate", *flags, "--metrics=rfid")
    assert "must be validation or train" in refused(capsys, "evaluate", *flags, "--reference=test")
    assert "give a run by --workdir, or two sets" in refused(capsys, "evaluate", "--metrics=fid")
    assert "neither" in refused(capsys, "evaluate", "--reference=nowhere", f"--samples_from={tmp_path / 'none.npz'}")
    few = sets.archive(tmp_path / "few.npz", sets.blobs(4))
    message = refused(capsys, "evaluate", f"--reference={few}", f"--samples_from={few}", "--metrics=coverage_vgg")
    assert "`coverage_vgg` needs at least 6 images in each set; --samples_from has 4" in message
