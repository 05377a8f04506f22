import json
import time

import numpy as np
import pytest
from etils import epath
from PIL import Image

from vqgan_jax.train.metrics import Window, Writer, code_statistics

# Histograms


@pytest.mark.parametrize(("used", "k"), [(8, 8), (4, 8), (1, 8), (512, 1024)])
def test_uniform_use_of_some_codes_has_their_number_as_perplexity(used, k):
    hits = np.where(np.arange(k) < used, 7, 0)
    statistics = code_statistics(hits)
    assert statistics["perplexity"] == pytest.approx(used)
    assert statistics["codebook_usage"] == used / k


def test_perplexity_by_hand():
    """exp(-(3/4 log 3/4 + 1/4 log 1/4)); usage counts a single hit in full."""
    statistics = code_statistics(np.array([3, 1, 0, 0]))
    assert statistics["perplexity"] == pytest.approx(np.exp(0.75 * np.log(4 / 3) + 0.25 * np.log(4)))
    assert statistics["codebook_usage"] == 0.5


def test_no_hits_at_all_are_no_usage():
    assert code_statistics(np.zeros(4, np.int64)) == {"codebook_usage": 0.0, "perplexity": 1.0}


# Windows


def test_a_window_is_over_the_union_of_its_batches():
    """Each batch alone uses half of the codes; the window used them all."""
    window = Window()
    window.add({"code_hits": np.array([4, 4, 0, 0])})
    window.add({"code_hits": np.array([0, 0, 4, 4])})
    means = window.take(8)
    assert means["codebook_usage"] == 1.0
    assert means["perplexity"] == pytest.approx(4.0)


def test_a_window_takes_means_and_starts_again():
    window = Window()
    for value in (1.0, 2.0, 6.0):
        window.add({"rec_loss": np.array(value, np.float32)})
    assert window.take(1)["rec_loss"] == 3.0
    window.add({"rec_loss": np.array(10.0, np.float32)})
    assert window.take(1)["rec_loss"] == 10.0


def test_many_small_values_are_summed_in_float64():
    window = Window()
    for _ in range(20_000):
        window.add({"rec_loss": np.array(0.1, np.float32)})
    assert window.take(1)["rec_loss"] == pytest.approx(float(np.float32(0.1)), rel=1e-9)


def test_hits_do_not_overflow_32_bits():
    window = Window()
    for _ in range(4):
        window.add({"code_hits": np.array([2**30, 2**30], np.int32)})
    assert window.take(1)["perplexity"] == pytest.approx(2.0)


def test_images_per_second_is_the_rate_between_steps_without_pauses(monkeypatch):
    clock = iter([10.0, 12.0, 14.0, 100.0, 102.0, 103.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    window = Window()
    for _ in range(3):
        window.add({"loss": np.array(1, np.float32)})
    window.pause()
    for _ in range(2):
        window.add({"loss": np.array(1, np.float32)})
    assert window.take(16)["images_per_second"] == 3 * 16 / 6
    window.add({"loss": np.array(1, np.float32)})
    assert window.take(16)["images_per_second"] == 16.0


# Files


def steps(workdir: epath.Path) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def workdir(tmp_path):
    """A run of three lines."""
    workdir = epath.Path(tmp_path)
    writer = Writer(workdir, resume_from=0, enabled=True)
    for step in (10, 20, 30):
        writer.scalars(step, "train", {"rec_loss": step / 10})
    writer.close()
    return workdir


def test_lines_are_json_with_prefixed_names(workdir):
    first = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[0])
    assert (first["step"], first["train/rec_loss"]) == (10, 1.0)
    assert abs(first["time"] - time.time()) < 3600


@pytest.mark.parametrize(("resume_from", "kept"), [(30, [10, 20, 30]), (20, [10, 20]), (0, [])])
def test_lines_after_the_checkpoint_are_dropped(workdir, resume_from, kept):
    writer = Writer(workdir, resume_from=resume_from, enabled=True)
    assert steps(workdir) == kept
    writer.scalars(resume_from + 5, "eval", {"psnr": 1.0})
    writer.close()
    assert steps(workdir) == [*kept, resume_from + 5]


@pytest.mark.parametrize("cut", ['{"step": 40, "time"', '{"step": 40, "train/rec_', "{", "\n"])
def test_a_last_line_cut_off_by_a_kill_is_left_out(workdir, cut):
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(cut)
    writer = Writer(workdir, resume_from=1000, enabled=True)
    writer.scalars(50, "train", {"rec_loss": 5.0})
    writer.close()
    assert steps(workdir) == [10, 20, 30, 50]


def test_pictures_are_png_files_of_these_pixels(workdir):
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    writer = Writer(workdir, resume_from=30, enabled=True)
    writer.picture(40, "reconstructions", image)
    writer.close()
    np.testing.assert_array_equal(np.asarray(Image.open(workdir / "images" / "reconstructions_0000040.png")), image)
    assert any((workdir / "tensorboard").iterdir())


def test_other_processes_write_nothing(tmp_path):
    writer = Writer(epath.Path(tmp_path), resume_from=0, enabled=False)
    writer.scalars(1, "train", {"rec_loss": 1.0})
    writer.picture(1, "x", np.zeros((2, 2, 3), np.uint8))
    writer.close()
    assert not list(tmp_path.iterdir())
