"""A folder of pictures: the dial of its pages, the classes of its prior, and what a bad folder gets."""

import json
from pathlib import Path

import numpy as np
import pytest
import untrained
from PIL import Image
from verbs import refused, succeeds

from vqgan_jax.cli import load_config, plan
from vqgan_jax.plan import report, topology
from vqgan_jax.plan.lowering import Outcome
from vqgan_jax.train import program

TRAIN = Path(__file__).parents[1] / "train"
PRIOR = str(TRAIN / "tiny_prior.py")
OPEN = ["--config.condition.num_classes=0", "--config.sampling.guidance=1.0"]


def fill(folder, count):
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(np.full((20, 24, 3), number, np.uint8)).save(folder / f"{number}.png")
    return folder


# The dial


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_a_size_of_the_prior_reads_the_codes_of_the_same_size_of_the_tokenizer(size):
    first, second = load_config(f"own:{size}"), load_config(f"own_prior:{size}")
    codes = second.tokenizer.codebook_size, second.tokenizer.downsample_factor, second.data.image_size
    assert codes == (first.quantizer.codebook_size, first.model.downsample_factor, first.data.image_size)
    assert second.grid == (16, 16)
    assert first.loss.in_steps(first.steps).disc_start == first.loss.disc_start * first.steps


def test_the_largest_size_that_fits_is_named(capsys, monkeypatch):
    """The compiler needs a GiB for each of the batch's images; v5e has 15.75 of them."""

    def one(spec, config, flags, name, batch, console):
        target = topology.Topology(name, (None,), topology.CHIPS["v5e"], "a compiler")
        return report.Plan(
            spec, "step", target, {}, config.batch_size, 0, 0, 1e12, 1, Outcome(True, config.batch_size * 2.0**30)
        )

    monkeypatch.setattr(plan, "one", one)
    succeeds("plan", "--config=own", "--fit", "--topology=v5e:1x1")
    assert "--config=own:tiny is the largest that fits" in " ".join(capsys.readouterr().out.split())
    assert "needs a page with a dial" in refused(
        capsys, "plan", "--config=stage1_photos", "--fit", "--topology=v5e:1x1"
    )


def test_memory_that_is_told_decides_where_no_datasheet_does():
    target = topology.Topology("cpu:1", (None,), None, "a compiler")
    fits = lambda memory: report.Plan(
        "own", "step", target, {}, 1, 0, 0, 1.0, 1, Outcome(True, 8.0), memory_bytes=memory
    )
    assert [fits(memory).fits for memory in (None, 9.0, 7.0)] == [True, True, False]


# Its classes


def test_sub_folders_are_the_classes_and_without_them_there_is_no_condition(tmp_path):
    def condition(folder, *flags):
        config = load_config(PRIOR, [f"--config.data.source=folder:{folder}", *OPEN, *flags])
        return program.of_data(config).condition

    fill(tmp_path / "plain", 60)
    fill(tmp_path / "classes/cat", 30)
    fill(tmp_path / "classes/dog", 30)
    plain, classes = condition(tmp_path / "plain"), condition(tmp_path / "classes")
    assert (plain.kind, plain.drop) == ("none", 0.0)
    assert (classes.kind, classes.num_classes, classes.drop) == ("class", 2, 0.2)
    assert condition("nowhere", "--config.condition.num_classes=7").num_classes == 7
    with pytest.raises(ValueError, match="guidance"):
        condition(tmp_path / "plain", "--config.sampling.guidance=2.0")


@pytest.mark.slow
def test_a_run_goes_on_with_the_classes_that_it_began_with(capsys, tmp_path):
    tokenizer, pictures = untrained.save_tokenizer(tmp_path / "tokenizer"), fill(tmp_path / "pictures", 60)
    flags = [f"--config={PRIOR}", f"--workdir={tmp_path / 'prior'}", f"--config.tokenizer.workdir={tokenizer}"]
    flags += [f"--config.data.source=folder:{pictures}", "--config.steps=2", *OPEN]
    succeeds("train", *flags)
    assert json.loads((tmp_path / "prior/config.json").read_text())["condition"]["kind"] == "none"
    fill(pictures / "cat", 3)
    assert "condition.kind: none -> class" in refused(capsys, "train", *flags, "--config.steps=3")


# Bad folders


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: [file.unlink() for file in folder.glob("?*.png") if int(file.stem) > 2], "has 3 in all"),
        (lambda folder: [(folder / f"{i}.png").write_bytes(b"no image") for i in (3, 4)], "1 of 57 already are"),
        (lambda folder: [large(folder / f"{i}.png") for i in (3, 4)], "at most 100,000 pixels"),
    ],
    ids=["three pictures", "broken ones", "enormous ones"],
)
def test_a_bad_folder_gets_one_clear_line(capsys, tmp_path, monkeypatch, spoil, message):
    folder = fill(tmp_path / "pictures", 60)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # a test draws no 20,000 pixels
    spoil(folder)
    flags = [f"--config={TRAIN / 'tiny.py'}", f"--workdir={tmp_path / 'run'}", f"--config.data.source=folder:{folder}"]
    assert message in refused(capsys, "train", *flags)


def large(path):
    Image.new("RGB", (2000, 300)).save(path)
