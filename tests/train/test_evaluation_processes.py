"""`vqgan evaluate` by one process of eight devices and by two of four: the same statistics to 1e-10 (E3)."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import untrained
from drill import PRIOR, cluster, environment
from etils import epath

from vqgan_jax import cli, models
from vqgan_jax.train import stored
from vqgan_jax.train.checkpoint import Checkpoints

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer and a prior that nobody trained."""
    folder = tmp_path_factory.mktemp("processes")
    tokenizer = models.load_tokenizer(untrained.save_tokenizer(folder / "tokenizer"))
    config = models.with_fingerprints(
        cli.load_config(PRIOR, [f"--config.tokenizer.workdir={folder / 'tokenizer'}"]), tokenizer, None
    )
    state = untrained.randomised(models.state_shapes(config), 0.4)
    with Checkpoints(epath.Path(folder / "prior"), best="nll") as checkpoints:
        checkpoints.save(1, state, {"next_index": 1}, stored.to_json(config), {"nll": 1.0})
    return folder


def start(folder: Path, name: str, flags: tuple[str, ...], **env: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "vqgan_jax", "evaluate", f"--output={folder / name}", "--batch_size=16", *flags]
    with (folder / f"{name}{env.get('SLURM_PROCID', '')}.log").open("w") as out:
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment(**env))


def finish(folder: Path, name: str, *jobs: subprocess.Popen) -> list[dict]:
    try:
        assert all(job.wait(400) == 0 for job in jobs), "".join(log.read_text() for log in folder.glob(f"{name}*.log"))
    finally:
        for job in jobs:
            job.kill()
    return json.loads((folder / name / "evaluation.json").read_text())["results"]


def both(folder: Path, *flags: str) -> tuple[list[dict], list[dict]]:
    """Results of one process, and of two."""
    one = finish(folder, "one", start(folder, "one", flags, JAX_NUM_CPU_DEVICES="8"))
    flags = (*flags, "--distributed")
    return one, finish(folder, "two", *(start(folder, "two", flags, **env) for env in cluster(2)))


@pytest.mark.parametrize(
    ("name", "count", "flags"),
    [
        ("tokenizer", 40, ["--config.data.source=photos"]),
        ("prior", 21, ["--samples=21", "--metrics=nll,own_class,fd_vgg,kid_vgg,recall_vgg", "--guidance=1"]),
    ],
)
def test_two_processes_find_what_one_finds(folder, name, count, flags):
    """40 held-out photographs in batches of 16: at the end the second process has none."""
    one, two = both(folder, f"--workdir={folder / name}", *flags)
    assert [row["metric"] for row in one] == [row["metric"] for row in two]
    for ours, theirs in zip(one, two, strict=True):
        # A Frechet distance takes roots of eigenvalues, near 0 where there are few images.
        tolerance = 1e-8 if ours["metric"].startswith("fd_vgg") else 1e-10
        assert theirs["value"] == pytest.approx(ours["value"], rel=tolerance), ours["metric"]
        assert {**ours, "value": 0} == {**theirs, "value": 0}
    assert one[-1]["subject_count"] == count
    first, second = (np.load(folder / run / "reference_vgg.npz") for run in ("one", "two"))
    for field in ("count", "mean", "scatter"):
        np.testing.assert_allclose(second[field], first[field], rtol=1e-10, atol=1e-10)
