"""Whole runs by the command line, killed, stopped, spoilt and split: each must end as if nothing had happened."""

import json
import os

import numpy as np
import pytest
from drill import (
    SMALL,
    Job,
    arrays,
    check_identical,
    checkpoints,
    copy,
    kill_drill,
    pair,
    rows,
    run,
    terminate_at,
    tokenize_drill,
)

from vqgan_jax import data

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All drills share a compilation cache."""
    return tmp_path_factory.mktemp("drills")


@pytest.fixture(scope="module")
def reference(folder):
    """Ten steps that nobody disturbed."""
    return run(folder, "reference", *SMALL).workdir


KILLS = int(os.environ.get("VQGAN_JAX_KILLS", "3"))


@pytest.mark.parametrize("stage", [1, 2])
def test_killed_at_random_moments(folder, stage):
    for line in kill_drill(folder / f"kills{stage}", KILLS, stage=stage):
        print(line)
    assert line.startswith("identical: ")


def test_tokenizing_killed_at_random_moments(folder):
    for line in tokenize_drill(folder / "cache_kills", KILLS):
        print(line)
    assert line.startswith("identical: ")


def test_sigterm_saves_and_the_same_command_goes_on(folder):
    """It evaluates after each step, so that wherever it is stopped it owes an evaluation."""
    flags = (*SMALL, "--config.log.eval_every=1")
    whole, job = run(folder, "whole", *flags), Job(folder, "stopped", *flags)
    assert terminate_at(job, 4) == 0, job.output()
    stopped = rows(job.workdir)[-1]["step"]
    assert stopped < 10
    assert checkpoints(job.workdir)[-1] == stopped
    assert f"stopped at step {stopped}; saved" in job.output()
    assert f"resumed from step {stopped}" in run(folder, "stopped", *flags).output()
    check_identical(job.workdir, whole.workdir)


def test_truncated_checkpoint_gives_way_to_the_one_before(folder, reference):
    workdir = copy(reference, folder / "truncated")
    older, newest = checkpoints(workdir)[-2:]
    for file in (workdir / "checkpoints" / str(newest) / "state").rglob("*"):
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    output = run(folder, "truncated", *SMALL).output()
    assert f"checkpoint {newest} in {workdir}/checkpoints is not whole" in output
    assert f"resumed from step {older}" in output
    check_identical(workdir, reference)


def test_config_of_other_shapes_is_refused(folder, reference):
    workdir, before = copy(reference, folder / "reshaped"), (reference / "metrics.jsonl").read_bytes()
    job = Job(folder, "reshaped", *SMALL, "--config.quantizer.codebook_size=64")
    assert job.finish() == 1
    assert "quantizer.codebook_size: 32 -> 64" in job.output()
    assert "Traceback" not in job.output()
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert checkpoints(workdir) == checkpoints(reference)


def test_loss_that_is_not_finite_stops_and_the_good_checkpoint_stays(folder, reference):
    """The run goes well until a resume with an absurd learning rate."""
    workdir = copy(reference, folder / "diverged")
    job = Job(folder, "diverged", *SMALL, "--config.optimizer.learning_rate=1e30", "--config.steps=20")
    assert job.finish() == 1
    assert "Traceback" not in job.output()
    assert "must be finite; `" in job.output()
    assert "at step 1" in job.output()  # 11 or 12
    assert f"The last good checkpoint is step 10 in {workdir}/checkpoints" in job.output()
    assert checkpoints(workdir)[-1] == 10
    assert rows(workdir)[:10] == rows(reference)
    assert all(np.isfinite(array).all() for array in arrays(workdir).values() if array.dtype == np.float32)


def test_two_processes_train_like_one_and_one_goes_on(folder):
    flags = (
        *SMALL,
        "--config.loss.pixel=l2",
        "--config.steps=20",
        "--config.mesh.data=2",
        "--config.mesh.fsdp=4",
        "--config.log.eval_every=10",
    )
    alone = run(folder, "alone", *flags, JAX_NUM_CPU_DEVICES="8")
    first, second = pair(folder, "both", *flags)
    with first, second:
        assert terminate_at(second, 10) == 0, second.output()
        assert first.finish() == 0, first.output()
    workdir, expected = alone.workdir.with_name("both"), rows(alone.workdir)
    stopped = checkpoints(workdir)[-1]
    assert 10 <= stopped < 20
    assert f"stopped at step {stopped}; saved" in first.output()
    assert rows(workdir)[-1]["step"] == stopped
    check_same_data(workdir, stopped)
    assert f"resumed from step {stopped}" in run(folder, "both", *flags, JAX_NUM_CPU_DEVICES="8").output()
    assert len(rows(workdir)) == len(expected) == 20
    for ours, theirs in zip(rows(workdir), expected, strict=True):
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, err_msg=f"{name} at step {theirs['step']}")
    worst = max(
        abs(a[name] / b[name] - 1) for a, b in zip(rows(workdir), expected, strict=True) for name in b if b[name]
    )
    print(f"stopped at {stopped}; largest relative difference {worst:.1e}")


def check_same_data(workdir, step):
    """The saved position is the same for one process and for two, and their parts are one process's batch."""
    saved = workdir / "checkpoints" / str(step)
    state, config = (
        json.loads((saved / "data" / "metadata").read_text()),
        json.loads((workdir / "config.json").read_text()),
    )
    assert state == {"next_index": step}
    crops = {name: config["data"][name] for name in ("image_size", "crop", "flip", "small")}
    augmentation = data.Augmentation(**crops, resize=tuple(config["data"]["resize"]))
    options = {"augmentation": augmentation, "batch_size": config["batch_size"], "seed": config["seed"]}
    options |= {"num_threads": config["data"]["num_threads"]}
    source = data.open_source("scenes", split="train", data_dir="", image_size=config["data"]["image_size"])
    shares = [(0, 1), (0, 2), (1, 2)]
    readers = [data.training_batches(source, process_index=i, process_count=n, **options) for i, n in shares]
    for reader in readers:
        reader.set_state(state)
    for _ in range(2):
        whole, first, second = (next(reader)["image"] for reader in readers)
        np.testing.assert_array_equal(np.concatenate([first, second]), whole)
