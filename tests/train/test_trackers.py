"""What a tracker is given, by a fake of both packages and, where they are installed, by the packages themselves."""

import json
import sys
import types

import numpy as np
import pytest
from etils import epath
from verbs import refused

from vqgan_jax.train import trackers
from vqgan_jax.train.metrics import Writer


class Fake(types.ModuleType):
    """The part of W&B and trackio that is used."""

    def __init__(self, name):
        super().__init__(name)
        self.began, self.logged, self.finished = [], [], 0

    def init(self, **options):
        self.began.append(options)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1

    def Image(self, array):
        return "picture", array.shape


def life(workdir, package, step):
    """A life of a run that logs one step."""
    workdir.mkdir(exist_ok=True)
    tracker = trackers.Tracker(package, workdir, {"seed": 1})
    writer = Writer(workdir, resume_from=step - 1, enabled=True, tracker=tracker)
    writer.scalars(step, "train", {"loss": 0.5})
    writer.picture(step, "samples", np.zeros((4, 6, 3), np.uint8))
    writer.close()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_all_and_later_lives_go_on_with_its_run(tmp_path, name):
    workdir, package = epath.Path(tmp_path / "run"), Fake(name)
    life(workdir, package, 1)
    life(workdir, package, 2)
    pictures = {"samples": ("picture", (4, 6, 3))}
    assert package.logged == [(step, values) for step in (1, 2) for values in ({"train/loss": 0.5}, pictures)]
    assert package.finished == 2
    first, second = package.began
    assert first == second
    assert (first["resume"], first["config"]) == ("allow", {"seed": 1})
    assert first["name"] == f"run-{json.loads((workdir / 'tracker.json').read_text())[name]}"
    assert ("id" in first) == (name == "wandb")


def test_no_tracker_is_none_and_a_missing_package_is_one_line(monkeypatch, capsys, tmp_path):
    assert trackers.load("") is None
    monkeypatch.setitem(sys.modules, "trackio", None)  # as if it were not installed
    flags = ["--config=stage1_photos", f"--workdir={tmp_path / 'run'}", "--config.batch_size=8"]
    message = refused(capsys, "train", *flags, "--config.log.tracker=trackio")
    assert "pip install 'vqgan-jax[trackio]'" in message
    assert "must be one of , wandb, trackio; got 'mlflow'" in refused(
        capsys, "train", *flags, "--config.log.tracker=mlflow"
    )


def test_a_package_that_refuses_is_one_line(tmp_path):
    package = Fake("wandb")
    package.init = lambda **options: 1 / 0
    with pytest.raises(ValueError, match="does not start: division by zero"):
        trackers.Tracker(package, epath.Path(tmp_path), {})


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wandb_itself_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (1, 2):
        life(epath.Path(tmp_path), wandb, step)
    (number,) = json.loads((tmp_path / "tracker.json").read_text()).values()
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{number}"))) >= 1


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_trackio_itself_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    for step in (1, 2):
        life(epath.Path(tmp_path / "run"), trackio, step)
    runs = trackio.Api().runs("vqgan_jax")
    assert len(list(runs)) == 1
