"""W&B or trackio beside `metrics.jsonl` and TensorBoard: the same curves and pictures, one run over all lives."""

import importlib
import json
import os
import secrets
from types import ModuleType
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import UInt8

from vqgan_jax.data import storage

PROJECT = "vqgan_jax"  # $WANDB_PROJECT or $TRACKIO_PROJECT is another


def load(name: str) -> ModuleType | None:
    """Returns the package of `config.log.tracker`, None where that is empty; ValueError if it is not installed."""
    if not name:
        return None
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"`config.log.tracker` {name!r} needs that package: {error}. Run `pip install 'vqgan-jax[{name}]'`, or set "
            "the key to ''."
        ) from None


class Tracker:
    """A run of W&B or of trackio, which have one interface. Its id is kept in the workdir, so that later lives go on.

    Both drop or repeat what a killed life had logged after the checkpoint that is gone on from; `metrics.jsonl` has
    each step once.
    """

    def __init__(self, package: ModuleType, workdir: epath.Path, config: dict[str, Any]) -> None:
        """Begins the run, or goes on with it.

        Args:
          package: from `load`.
          workdir: of the run; gets `tracker.json`, and of W&B the folder `wandb`, unless it is in a bucket.
          config: nested values, to be shown.

        Raises:
          ValueError: the package refuses, as W&B does without a login.
        """
        self.package, name, path = package, package.__name__, workdir / "tracker.json"
        ids = json.loads(path.read_text()) if path.exists() else {}
        if name not in ids:
            ids[name] = secrets.token_hex(4)
            storage.write_json(path, ids)
        options = {"project": os.environ.get(f"{name.upper()}_PROJECT", PROJECT), "config": config, "resume": "allow"}
        options["name"] = f"{workdir.name}-{ids[name]}"  # by which trackio knows a run
        if name == "wandb":
            options |= {"id": ids[name], "dir": None if storage.in_bucket(workdir) else os.fspath(workdir)}
        try:
            self.run = package.init(**options)
        except Exception as error:  # each package has exceptions of its own
            raise ValueError(
                f"`config.log.tracker` {name!r} does not start: {error}. Log in, set WANDB_MODE=offline for W&B, or "
                "set the key to ''."
            ) from error

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Logs values by name."""
        self.run.log(values, step=step)

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "H W 3"]) -> None:
        """Logs a picture."""
        self.run.log({name: self.package.Image(image)}, step=step)

    def close(self) -> None:
        """Sends the rest."""
        self.run.finish()
