"""A tokenizer of images of any channels through both stages, from Python and from the shell."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from verbs import refused, succeeds

import vqgan_jax as vq
from vqgan_jax import cli
from vqgan_jax.data.images import decode_values

TRAIN = Path(__file__).parents[1] / "train"
RANGE = "--config.data.value_range=(0,65535)"


def load(*flags):
    return cli.load_config(str(TRAIN / "tiny.py"), [RANGE, *flags])


def test_perceptual_losses_see_one_channel_or_three():
    grey = load("--config.model.image_channels=1", "--config.loss.perceptual_weight=1.0")
    many = load("--config.model.image_channels=5")
    assert (grey.best, many.best) == ("lpips", "l1")
    with pytest.raises(ValueError, match=r"is 5\. Set loss.perceptual_weight and semantic_weight to 0"):
        load("--config.model.image_channels=5", "--config.loss.perceptual_weight=1.0")
    with pytest.raises(ValueError, match=r"need data.value_range"):
        cli.load_config(str(TRAIN / "tiny.py"), ["--config.model.image_channels=5"])
    with pytest.raises(ValueError, match=r"for data.field 'image'"):
        load("--config.data.field=edges")
    with pytest.raises(ValueError, match=r"smaller one first.*got \(3\.0, 1\.0\)"):
        load("--config.data.value_range=(3,1)")


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    """Five channels of 16 bits, as arrays and as TIFF."""
    folder = tmp_path_factory.mktemp("stacks")
    for number in range(60):
        stack = np.random.default_rng(number).integers(0, 65536, (20, 24, 5), np.uint16)
        if number % 2:
            np.save(folder / f"{number}.npy", stack)
        else:
            tifffile.imwrite(folder / f"{number}.tif", stack, photometric="minisblack", planarconfig="contig")
    return folder


@pytest.fixture(scope="module")
def tokenizer(stacks, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "tokenizer"
    flags = [f"--config={TRAIN / 'tiny.py'}", f"--workdir={workdir}", f"--config.data.source=folder:{stacks}", RANGE]
    succeeds("train", *flags, "--config.model.image_channels=5", "--config.steps=2")
    return workdir


@pytest.mark.slow
def test_five_channels_pass_from_files_to_codes_and_back(capsys, stacks, tokenizer, tmp_path):
    succeeds("reconstruct", f"--workdir={tokenizer}", f"--input={stacks / '1.npy'}", f"--output={tmp_path}")
    loaded = vq.load_tokenizer(tokenizer)
    images = decode_values(stacks / "1.npy", loaded.config.data.value_range)[None]
    indices = vq.encode(loaded, images)
    np.testing.assert_array_equal(np.load(tmp_path / "1.npy"), indices[0])
    values = tifffile.imread(tmp_path / "1.tif")
    expected = (np.asarray(vq.decode(loaded, indices))[0].clip(-1, 1) + 1) / 2 * 65535
    np.testing.assert_allclose(values, expected, atol=0.1)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (24, 42)
    with pytest.raises(ValueError, match=r"must have shape \(b, H, W, 5\)"):
        vq.encode(loaded, images[..., :3])
    assert "RGB pictures of 8 bits" in refused(capsys, "evaluate", f"--workdir={tokenizer}", f"--output={tmp_path}")


@pytest.mark.slow
def test_a_prior_reads_images_as_its_tokenizer_does(capsys, stacks, tokenizer, tmp_path):
    flags = [f"--config={TRAIN / 'tiny_prior.py'}:unconditional", f"--workdir={tmp_path / 'prior'}"]
    flags += [f"--config.tokenizer.workdir={tokenizer}", f"--config.data.source=folder:{stacks}"]
    succeeds("train", *flags, "--config.steps=2")
    assert vq.load_prior(tmp_path / "prior").config.data.value_range == (0.0, 65535.0)
    succeeds("sample", f"--workdir={tmp_path / 'prior'}", "--count=2", f"--output={tmp_path / 'out'}")
    assert np.load(tmp_path / "out/samples.npz")["images"].shape == (2, 16, 16, 5)
    message = refused(capsys, "train", *flags, "--config.data.value_range=(0,255)")
    assert "must be that of the tokenizer" in message
