"""Faults of machines: a process that dies, storage that hangs, a disk that is full."""

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from drill import SMALL, Job, arrays, check_identical, checkpoints, copy, newest, pair, rows, run

from vqgan_jax.train.watch import deadline, in_time

# One program for all of them: a schedule that does not know the last step, and no adversary.
SAME = (*SMALL, "--config.loss.disc_weight=0.0", "--config.optimizer.schedule=constant")
MESH = ("--config.mesh.data=2", "--config.mesh.fsdp=4")  # of a pair
FLAGS = (*SAME, "--config.steps=9", "--config.log.eval_every=100")

# The scenes as a page cannot spoil them: from some example on, none comes to a run alone, or to the second of two.
HANGS = """
import itertools, os, threading
from vqgan_jax.data.scenes import Scenes

read, count = Scenes.__getitem__, itertools.count()

def hanging(self, index):
    if next(count) > 150:
        threading.Event().wait()
    return read(self, index)

if os.environ.get("SLURM_PROCID") != "0":
    Scenes.__getitem__ = hanging
"""


def spoiled(folder, program: str = HANGS) -> dict[str, str]:
    """The environment of a Python that runs a program as it starts."""
    (folder / "sitecustomize.py").write_text(program)
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


# Data that do not come


def test_what_comes_in_time_leaves_nothing_behind():
    handler = signal.getsignal(signal.SIGALRM)
    with deadline(1, "batch of step 7", "scenes"):
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 1
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert signal.getsignal(signal.SIGALRM) == handler


def test_what_comes_too_late_is_an_error_that_says_whose_it_is(capfd):
    handler, began = signal.getsignal(signal.SIGALRM), time.perf_counter()
    with (
        pytest.raises(
            TimeoutError, match=r"batch of step 7 .*timeout_seconds = 1; process 0 of 1 got none from scenes"
        ),
        deadline(1, "batch of step 7", "scenes"),
    ):
        time.sleep(30)
    assert time.perf_counter() - began < 10
    assert signal.getsignal(signal.SIGALRM) == handler
    assert "test_faults.py" in capfd.readouterr().err, "where the threads are"


def test_without_a_timeout_it_waits():
    with deadline(0, "batch of step 7", "scenes"):
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_batches_in_time_come_as_they_are_and_the_late_one_is_named():
    def batches():
        yield from "ab"
        time.sleep(30)

    assert list(in_time("ab", 1, "held-out batch", "scenes")) == ["a", "b"]
    late = in_time(batches(), 1, "held-out batch", "scenes")
    assert [next(late), next(late)] == ["a", "b"]
    with pytest.raises(TimeoutError, match=r"the held-out batch 3 must come"):
        next(late)


def test_a_thread_waits_without_a_timeout():
    with ThreadPoolExecutor() as pool:
        assert pool.submit(list, in_time("ab", 1, "held-out batch", "scenes")).result() == ["a", "b"]


HUNG = (*SAME, "--config.steps=1000", "--config.log.eval_every=1000")


def check_message(job: Job, start: str = "vqgan train: the batch of step ") -> None:
    """It says what did not come, and shows the thread that waits for it."""
    *threads, message = [line for line in job.log.read_text().splitlines() if not line.startswith("step ")]
    assert message.startswith(start)
    assert any("in hanging" in line for line in threads)
    assert "Traceback" not in job.output()


@pytest.mark.slow
def test_a_worker_that_hangs_ends_the_run_and_not_its_checkpoints(tmp_path):
    job = Job(tmp_path, "hung", *HUNG, "--config.data.timeout_seconds=10", **spoiled(tmp_path))
    assert job.finish() == 1, job.output()
    check_message(job)
    saved = newest(job.workdir)
    assert saved >= 3
    assert f"resumed from step {saved}" in run(tmp_path, "hung", *FLAGS, f"--config.steps={saved + 3}").output()


@pytest.mark.slow
def test_so_does_one_that_hangs_in_an_evaluation(tmp_path):
    flags = (*SAME, "--config.steps=9", "--config.log.eval_every=6")
    held_out = HANGS.replace("if next(count) > 150:", "if self.split == 'validation':")
    assert held_out != HANGS
    job = Job(tmp_path, "hung", *flags, "--config.data.timeout_seconds=10", **spoiled(tmp_path, held_out))
    assert job.finish() == 1, job.output()
    check_message(job, "vqgan train: the held-out batch 1 must come within")
    saved = newest(job.workdir)
    assert saved == 3
    assert f"resumed from step {saved}" in run(tmp_path, "hung", *flags).output()


@pytest.mark.slow
def test_of_a_pair_a_worker_that_hangs_ends_both(tmp_path):
    flags = (*HUNG, *MESH, "--config.data.timeout_seconds=20")
    first, second = pair(tmp_path, "hung", *flags, **spoiled(tmp_path))
    with first, second:
        assert second.finish() == 1, second.output()
        began = time.perf_counter()
        assert first.finish(200) != 0, first.output()
        print(f"exit {first.process.returncode} of the other after {time.perf_counter() - began:.0f} s")
    check_message(second)
    assert "process 1 of 2" in second.output()


@pytest.mark.slow
def test_of_a_pair_an_error_ends_both_soon(tmp_path):
    """Without waiting for the other at the barrier of the interpreter's end."""
    broken = HANGS.replace("threading.Event().wait()", "raise OSError('this disk is broken')")
    assert broken != HANGS
    flags = (*HUNG, *MESH)
    first, second = pair(tmp_path, "broken", *flags, **spoiled(tmp_path, broken))
    with first, second:
        while "this disk is broken" not in second.output():
            assert time.perf_counter() - second.began < 600, second.output()
            time.sleep(0.2)
        began = time.perf_counter()
        assert second.finish(60) == 1, second.output()
        print(f"exit {second.process.returncode} after {time.perf_counter() - began:.0f} s")
        assert first.finish(200) != 0, first.output()
        print(f"exit {first.process.returncode} of the other after {time.perf_counter() - began:.0f} s")


# A disk that is full


@pytest.fixture
def small_disk(tmp_path):
    """A file system that holds one checkpoint of 9 MiB and not two; a function makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = lambda size, *more: subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *more]), "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = mount("15m")
    if told.returncode:
        pytest.skip(f"a full disk needs a small one, and mounting is refused here: {told.stderr.strip()}")
    try:
        yield folder, lambda: mount("400m", "remount").check_returncode()
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_checkpoint_before_stays_whole(tmp_path, small_disk):
    folder, enlarge = small_disk
    job = Job(tmp_path, "full", *FLAGS, inside=folder)  # what it says is written elsewhere
    assert job.finish() == 1, job.output()
    message = job.output()[job.output().index("vqgan train: ") :]
    assert "a checkpoint must be written whole; the newest that is, is step 3 in" in message
    assert "No space left on device" in message
    assert checkpoints(job.workdir) == [3]
    enlarge()
    assert "resumed from step 3" in run(tmp_path, "full", *FLAGS, inside=folder).output()
    reference = run(tmp_path, "reference", *FLAGS)
    check_identical(job.workdir, reference.workdir)


# A process that dies


@pytest.mark.slow
def test_of_a_pair_the_other_ends_too_and_both_go_on_as_if_nothing_had_happened(tmp_path):
    """The survivor ends as its collective finds the connection gone, or, blind to that, by the heartbeats it misses."""
    # No compilation cache: who finds more in it waits half a minute for the other, which may not be enough.
    flags = (*FLAGS, *MESH, "--compilation_cache=")
    first, second = pair(tmp_path, "killed", *flags)
    with first, second:
        second.wait_for(lambda: newest(second.workdir) >= 3)
        second.kill()
        began = time.perf_counter()
        status = first.finish(200)
        print(f"exit {status} of the survivor after {time.perf_counter() - began:.0f} s")
    said = {-signal.SIGABRT: "another task died", 1: "the same command goes on from the newest checkpoint"}
    assert said.get(status, "no other status") in first.output()
    saved = newest(second.workdir)
    assert 3 <= saved < 9
    for name in ("killed", "whole"):
        jobs = pair(tmp_path, name, *flags)
        with jobs[0], jobs[1]:
            assert [job.finish() for job in jobs] == [0, 0], jobs[0].output()
        assert (f"resumed from step {saved}" in jobs[0].output()) == (name == "killed")
    check_identical(tmp_path / "killed", tmp_path / "whole")


# A storage that fails one process of two


def unreadable(error: str, times: int) -> str:
    """A program under which the first reads of the newest checkpoint's state are an error, in process 1 only."""
    return f"""
import os
import orbax.checkpoint as ocp

read, left = ocp.PyTreeCheckpointHandler.restore, iter(range({times}))

def fails(self, directory, *arguments, **options):
    if "/6/" in str(directory) and next(left, None) is not None:
        raise {error}
    return read(self, directory, *arguments, **options)

if os.environ.get("SLURM_PROCID") == "1":
    ocp.PyTreeCheckpointHandler.restore = fails
"""


PAIR = (*FLAGS, *MESH, "--config.log.keep=5")


@pytest.fixture(scope="module")
def six_steps(tmp_path_factory):
    """What two processes saved at steps 3 and 6."""
    folder = tmp_path_factory.mktemp("pairs")
    for job in (jobs := pair(folder, "six", *PAIR, "--config.steps=6")):
        assert job.finish() == 0, jobs[0].output()
    assert checkpoints(jobs[0].workdir) == [3, 6]
    return jobs[0].workdir


def go_on(folder, six_steps, program: str) -> list[Job]:
    """Both processes, three steps more, under a program."""
    copy(six_steps, folder / "pair")
    return pair(folder, "pair", *PAIR, **spoiled(folder, program))


@pytest.mark.slow
def test_a_read_that_fails_once_in_one_of_two_is_tried_again_by_it(tmp_path, six_steps):
    first, second = go_on(tmp_path, six_steps, unreadable("OSError('503 Slow Down')", 1))
    with first, second:
        assert [first.finish(), second.finish()] == [0, 0], first.output() + second.output()
    assert "cannot be read and is tried again in 1 s: 503 Slow Down" in second.output()
    assert "resumed from step 6" in first.output()
    assert checkpoints(first.workdir) == [3, 6, 9]
    assert not list((first.workdir / "checkpoints").glob("*broken*"))


@pytest.mark.slow
def test_what_one_of_two_finds_broken_neither_uses(tmp_path, six_steps):
    first, second = go_on(tmp_path, six_steps, unreadable("ValueError('DATA_LOSS: cut')", 100))
    with first, second:
        assert [first.finish(), second.finish()] == [0, 0], first.output() + second.output()
    assert "is not whole and is set aside as 6.broken: DATA_LOSS: cut" in second.output()
    assert "is not whole and is set aside as 6.broken: process 1 found it broken" in first.output()
    assert "resumed from step 3" in first.output()
    assert checkpoints(first.workdir) == [3, 6, 9]
    alone = go_on_alone(tmp_path, six_steps)  # from step 6, which only it evaluated, as the last of six
    assert rows(first.workdir) == rows(alone)
    ours, theirs = arrays(first.workdir), arrays(alone)
    assert [name for name in theirs if ours[name].tobytes() != theirs[name].tobytes()] == []


def go_on_alone(folder, six_steps):
    """The same pair undisturbed."""
    copy(six_steps, folder / "alone")
    for job in pair(folder, "alone", *PAIR):
        assert job.finish() == 0, job.output()
    return folder / "alone"


@pytest.mark.slow
def test_a_storage_that_stays_away_from_one_of_two_ends_both(tmp_path, six_steps):
    first, second = go_on(tmp_path, six_steps, unreadable("OSError('503 Slow Down')", 100))
    with first, second:
        assert [first.finish(), second.finish()] == [1, 1], first.output() + second.output()
    for job in (first, second):
        assert "must be readable by every process; process 1 of 2 cannot, after 4 tries" in job.output()
    assert checkpoints(first.workdir) == [3, 6]
