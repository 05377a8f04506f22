"""A study that is killed at random moments ends in the same results as one that is left alone."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from drill import environment

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("VQGAN_JAX_KILLS", "3"))
PAGE = str(Path(__file__).parents[1] / "studies" / "tiny_study.py")
APART = ("minutes", "cpu_minutes", "peak_gib", "commit")  # the working tree may change while a drill runs


def start(workdir: Path) -> subprocess.Popen:
    flags = [f"--workdir={workdir}", "--seeds=0", "--only=long,raster"]  # and what these need
    command = [sys.executable, "-m", "vqgan_jax", "study", PAGE, *flags]
    with workdir.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment())


def finish(workdir: Path) -> dict:
    """Runs a study to its end; its results without times."""
    process = start(workdir)
    try:
        assert process.wait(3_600) == 0, workdir.with_suffix(".log").read_text()
    finally:
        process.kill()
    whole = json.loads((workdir / "tiny_study" / "results.json").read_text())
    for row in whole["runs"]:
        for name in APART:
            row.pop(name)
    return whole


def test_killed_at_random_moments_it_ends_in_the_same_results(tmp_path):
    """SIGKILL of the study alone leaves its child at work, that of both leaves a run in the middle of a step."""
    began = time.monotonic()
    reference = finish(tmp_path / "reference")
    took, rng = time.monotonic() - began, random.Random(int(os.environ.get("VQGAN_JAX_KILL_SEED", "0")))
    for number in range(KILLS):
        process = start(tmp_path / "killed")
        time.sleep(rng.uniform(0.0, 1.5 * took / (KILLS + 1)))
        children = descendants(process.pid)
        process.kill()
        process.wait()
        for pid in children if number % 2 else ():
            subprocess.run(["kill", "-9", str(pid)], check=False, capture_output=True)
    assert finish(tmp_path / "killed") == reference
    calls = (tmp_path / "killed.log").read_text()
    assert calls.count("failed") == 0, calls


def descendants(pid: int) -> list[int]:
    """The processes that a process started and that still run."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []
