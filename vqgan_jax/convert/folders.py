"""Converted models as folders of runs, which `load_tokenizer`, `load_prior` and `vqgan train` take; and back."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from vqgan_jax import build, models, stored
from vqgan_jax.config import Frozen, Stage1, Stage2
from vqgan_jax.convert import native, trees
from vqgan_jax.convert.trees import Converted, Report
from vqgan_jax.convert.weights import ConvertError
from vqgan_jax.train.checkpoint import Checkpoints, write_json
from vqgan_jax.train.state import TrainState


def write(planned: Converted, folder: Path) -> None:
    """Writes a run's folder: config, and one checkpoint of parameters and optimisers.

    A prior's tokenizers become runs within it. Training can go on in the folder, with the file's optimisers or, where
    it had none, with new ones. At any time no more than one of the models is in memory.

    Args:
      planned: as the `plan` of a format gives it; its arrays are read here.
      folder: local, and not there yet; it appears when all is written, or not at all.

    Raises:
      ConvertError: the folder is there already, or the file has changed meanwhile.
      OSError: the disk is full or cannot be written.
    """
    trees.whole(planned)
    if folder.exists():
        raise ConvertError(
            f"a converted model needs a folder of its own; {folder} is there. Name another, or delete it."
        )
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # of a conversion that was killed
    try:
        _write(planned, part, folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(planned: Converted, part: Path, final: Path) -> None:
    config = planned.config
    if isinstance(config, Stage2):
        marks = {name: _write_tokenizer(below, part / name, final / name) for name, below in _below(planned)}
        config = _naming(config, final, marks)
    converted = trees.read(planned._replace(tokenizer=None, condition=None))
    part.mkdir(parents=True, exist_ok=True)
    settings = stored.to_json(config)
    data = {"next_index": 0} if converted.moments else {}  # by which the loop knows whether there are optimisers
    with Checkpoints(epath.Path(part)) as checkpoints:
        checkpoints.save(converted.step, _state(converted), data, settings, None)
    write_json(epath.Path(part / "config.json"), settings)


def _below(planned: Converted) -> Iterator[tuple[str, Converted]]:
    return ((name, below) for name in native.PARTS if (below := getattr(planned, name)) is not None)


def _write_tokenizer(planned: Converted, part: Path, final: Path) -> str:
    """Writes a tokenizer, and gives its fingerprint."""
    _write(planned, part, final)
    return models.fingerprint(models.load_tokenizer(part))


def _naming(config: Stage2, folder: Path, marks: dict[str, str]) -> Stage2:
    """The config with the places of its tokenizers and what they are."""
    replace = dataclasses.replace
    first = replace(config.tokenizer, workdir=str(folder / "tokenizer"), fingerprint=marks["tokenizer"])
    config = replace(config, tokenizer=first)
    if "condition" not in marks:
        return config
    named = config.condition.tokenizer
    second = replace(named, workdir=str(folder / "condition"), fingerprint=marks["condition"])
    return replace(config, condition=replace(config.condition, tokenizer=second))


def read(path: epath.PathLike, *, step: int | str = "newest", weights: str = "") -> Converted:
    """Reads a run's checkpoint: every network, and a prior's tokenizers; the optimisers are left out.

    Args:
      path: the `--workdir` of a run, or a converted model's folder.
      step: of the checkpoint: a number, "newest" or "best"; see `models.load_tokenizer`.
      weights: "ema" or "raw"; "" takes the averaged parameters of the networks that have them.

    Raises:
      FileNotFoundError: no such folder, no whole checkpoint in it, or no tokenizer.
      ValueError: a tokenizer is another than the one that the prior was trained with, or there are no such weights or
        no such step.
    """

    def networks(state: TrainState) -> dict[str, Any]:
        main = "generator" if "generator" in state.params else "transformer"
        averaged = models.parameters(main, weights)(state)
        return {"stats": state.stats} | averaged | {"params": state.params}

    restored, config = models.restore(path, (Stage1, Stage2), networks, step=step)
    state = jax.tree.map(np.asarray, restored.state)
    params = state["params"] | state.get("ema", {})
    main = params["transformer" if isinstance(config, Stage2) else "generator"]
    stats = state["stats"] if isinstance(state["stats"], dict) else {}  # where empty, Orbax has a leaf of its own
    found = Converted(config, main, params.get("discriminator"), stats, None, {}, restored.step, None, None, Report())
    if not isinstance(config, Stage2):
        return found
    tokenizer = _tokenizer(config.tokenizer, "tokenizer", path)
    own = config.condition.kind in build.MAPS and config.condition.tokenizer.workdir
    condition = _tokenizer(config.condition.tokenizer, "condition", path) if own else None
    return found._replace(tokenizer=tokenizer, condition=condition)


def _tokenizer(wanted: Frozen, role: str, near: epath.PathLike) -> Converted:
    """One of a prior's tokenizers, as the prior was trained with: with averaged parameters where there are any."""
    place = models.find_tokenizer(wanted.workdir, role, near)
    loaded = models.load_marked(place, wanted.fingerprint)
    models.check_tokenizer(wanted, loaded, role)
    return read(place, step=loaded.step)


def _state(converted: Converted) -> dict[str, Any]:
    """The state of a run at the checkpoint's step; without optimisers where the file had none."""
    config = converted.config
    if isinstance(config, Stage2):
        params, abstract = {"transformer": converted.params}, models.prior_state(config)
    else:
        params, abstract = {"generator": converted.params}, models.tokenizer_state(config)
        params |= {"discriminator": converted.discriminator} if converted.discriminator is not None else {}
    state = {
        "step": np.asarray(converted.step, np.int32),
        "params": params,
        "ema": {name: params[name] for name in abstract.ema},
        "stats": converted.stats | _hits(config, converted),
    }
    if converted.moments:
        optimizer = lambda name: _optimizer(abstract.opt_state[name], converted.moments.get(name))
        state["opt_state"] = {name: optimizer(name) for name in params}
    cast = lambda wanted, array: np.asarray(array, wanted.dtype)
    return {name: jax.tree.map(cast, getattr(abstract, name), part) for name, part in state.items()}


def _optimizer(abstract: Any, moments: trees.Moments | None) -> Any:
    """An optimiser's state: Adam's averages if there are any, else that of no step."""
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)  # no memory before it is written to
    if moments is None:
        return fresh
    return optax.tree_utils.tree_set(fresh, count=np.asarray(moments.count, np.int32), mu=moments.mu, nu=moments.nu)


def _hits(config: Stage1 | Stage2, converted: Converted) -> dict[str, Any]:
    """Hits of the codes as of uniform ones, for a run that counts them, where the file did not."""
    if isinstance(config, Stage2) or "codebook" in converted.stats:
        return {}
    quantizer: Any = build.vqgan(config).quantizer
    if not getattr(quantizer, "refreshes", False):
        return {}
    latents = config.batch_size * (config.data.image_size // 2 ** (len(config.model.channel_multipliers) - 1)) ** 2
    return {"codebook": quantizer.initial_stats(jnp.asarray(converted.params["quantizer"]["codebook"]), latents)}
