"""A run that goes from four processes to two and to one, each time on another mesh, is the run that never stopped."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drill import PRIOR, TINY, Job, arrays, cluster, environment, flags_of_stage_2, newest, rows

pytestmark = pytest.mark.slow

FLAGS = (  # a schedule that does not know the last step, and little to compile
    "--config.optimizer.schedule=constant", "--config.log.eval_every=2", "--config.log.eval_examples=8",
    "--config.sampling.previews=1", "--config.sampling.guidance=1",
)  # fmt: skip
LEGS = {  # processes: the mesh of their eight devices
    4: ("--config.mesh.data=8",),
    2: ("--config.mesh.data=2", "--config.mesh.fsdp=4"),
    1: ("--config.mesh.data=4", "--config.mesh.tensor=2", "--config.mesh.zero1=True"),
}


def train(folder: Path, name: str, count: int, *flags: str, page: str = PRIOR) -> Path:
    """Trains to the end in so many processes; the workdir."""
    flags = (*(FLAGS if page == PRIOR else ()), *flags)
    jobs = [
        Job(folder, name, "--distributed", *flags, log=f"{name}{number}", page=page, **env)
        for number, env in enumerate(cluster(count))
    ]
    for job in jobs:
        assert job.finish() == 0, job.output()
    return jobs[0].workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def tokenizer(folder):
    return flags_of_stage_2(folder)


@pytest.fixture(scope="module")
def alone(folder, tokenizer):
    """Six steps of one process."""
    return train(folder, "alone", 1, *LEGS[4], *tokenizer, "--config.steps=6")


@pytest.fixture(scope="module")
def four(folder, tokenizer):
    """Two steps of four processes."""
    return train(folder, "legs", 4, *LEGS[4], *tokenizer, "--config.steps=2")


def check_rows(workdir: Path, alone: Path, steps: int) -> None:
    """Equal metrics of training and of each evaluation, which has its own shardings."""
    for prefix, every in (("train", 1), ("eval", 2)):
        ours, theirs = rows(workdir, prefix), rows(alone, prefix)[: steps // every]
        assert [row["step"] for row in ours] == list(range(every, steps + 1, every))
        for row, expected in zip(ours, theirs, strict=True):
            assert row.keys() == expected.keys()
            for name in row:
                np.testing.assert_allclose(row[name], expected[name], rtol=1e-5, err_msg=f"{name} at {row['step']}")


def test_four_processes_train_like_one(alone, four):
    check_rows(four, alone, 2)


def test_what_four_saved_two_and_one_restore_to_the_last_bit(folder, four):
    """On meshes of their own; what each restored it saves again, for the next."""
    saved, source = arrays(four), four
    for count in (2, 1):
        target = folder / f"restored{count}"
        command = [sys.executable, str(Path(__file__).with_name("restored.py")), str(source), str(target), *LEGS[count]]
        jobs = [subprocess.Popen(command, env=environment(**env)) for env in cluster(count)]
        assert [job.wait(200) for job in jobs] == [0] * count
        found = arrays(target)
        assert found.keys() == saved.keys()
        assert [name for name in found if found[name].tobytes() != saved[name].tobytes()] == []
        source = target
    assert newest(source) == 2


def test_two_and_then_one_go_on_as_if_nothing_had_happened(folder, tokenizer, alone, four):
    """The same images in the same order, the same chance: the metrics of the unbroken run."""
    assert four == folder / "legs"
    for count, steps in ((2, 4), (1, 6)):
        train(folder, "legs", count, *LEGS[count], *tokenizer, f"--config.steps={steps}")
        log = (folder / "legs0.log").read_text()
        assert f"resumed from step {steps - 2}" in " ".join(log.split())
    check_rows(four, alone, 6)


def test_four_processes_train_a_tokenizer_like_one_and_two_go_on(folder):
    """Codebook, discriminator with BatchNorm, adaptive weight and average, on another mesh from step 4 on."""
    flags = ("--config.log.eval_every=2", "--config.log.checkpoint_every=2", "--config.optimizer.schedule=constant")
    smooth = f"{TINY}:smooth"
    alone = train(folder, "tokenizer_alone", 1, *LEGS[4], *flags, "--config.steps=6", page=smooth)
    legs = train(folder, "tokenizer_legs", 4, *LEGS[4], *flags, "--config.steps=4", page=smooth)
    check_rows(legs, alone, 4)
    train(folder, "tokenizer_legs", 2, "--config.mesh.data=8", *flags, "--config.steps=6", page=smooth)
    check_rows(legs, alone, 6)
