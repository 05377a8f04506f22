"""Trained models as pytrees: parameters are leaves, modules are static; and how a run's folder becomes one."""

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from etils import epath

from vqgan_jax import config as configs
from vqgan_jax import prior
from vqgan_jax.conditions import Frozen
from vqgan_jax.data import storage
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.train import sharding, stage_of, stored
from vqgan_jax.train.checkpoint import Checkpoints, Restored
from vqgan_jax.train.state import TrainState

WEIGHTS = {"params": "raw", "ema": "ema"}  # names for people, by field of the state
ROLES = {"tokenizer": "tokenizer", "condition": "condition's tokenizer"}

# By scheme, what makes a run's folder of a name that is no path. The package fills it: what fetches stands above.
FETCHERS: dict[str, Callable[[str], Path]] = {}

Config = TypeVar("Config", configs.Stage1, configs.Stage2)


@dataclasses.dataclass(frozen=True)
class Run(Generic[Config]):
    """The run that made a model.

    Attributes:
      config: of the run.
      step: of its training.
      weights: "ema" if the model's parameters are the averaged ones, else "raw".
    """

    config: Config
    step: int
    weights: str = "raw"


@dataclasses.dataclass(frozen=True)
class Model(Generic[Config]):
    """What tokenizers and priors have in common: the run they come from, beside their tree.

    The tree of a model is its parameters (leaves) and its module (static). `run` is no part of it: all checkpoints of a
    run have one tree structure and share every compilation, and whatever JAX makes of a model (`jax.tree.map`,
    `jax.device_put`, the argument inside of `jax.jit`) has `run` None. `dataclasses.replace(model, run=...)` sets it.

    Attributes:
      run: None unless the model was loaded.
    """

    run: Run[Config] | None = dataclasses.field(default=None, kw_only=True)

    @property
    def config(self) -> Config:
        """The config of the run; AttributeError without a run."""
        return self._known().config

    @property
    def step(self) -> int:
        """The step of the training; AttributeError without a run."""
        return self._known().step

    @property
    def weights(self) -> str:
        """ "ema" or "raw"; AttributeError without a run."""
        return self._known().weights

    def _known(self) -> Run[Config]:
        if self.run is None:
            raise AttributeError(
                "`config`, `step` and `weights` are known of a model that was loaded; this one has `run` None, as all "
                "have that JAX returns. Ask the loaded model, or give this one its `run` by `dataclasses.replace`."
            )
        return self.run


@dataclasses.dataclass(frozen=True)
class Tokenizer(Model[configs.Stage1]):
    """A trained VQGAN; a pytree.

    Attributes:
      params: the generator's parameters.
      module: what they belong to; static.
    """

    params: dict[str, Any]
    module: VQGAN

    @property
    def downsample_factor(self) -> int:
        """Side of an image over the side of its grid of indices."""
        return self.module.downsample_factor

    @property
    def codebook_size(self) -> int:
        """Indices are below this."""
        return self.module.quantizer.codebook_size


@dataclasses.dataclass(frozen=True)
class Prior(Model[configs.Stage2]):
    """A trained prior and the tokenizer whose codes it knows; a pytree.

    Attributes:
      params: the transformer's parameters.
      tokenizer: decodes what the prior draws.
      module: transformer, condition, grid and order; static.
      condition: the tokenizer of its condition, where that is a map with one of its own.
    """

    params: dict[str, Any]
    tokenizer: Tokenizer
    module: prior.CodePrior
    condition: Tokenizer | None = None

    @property
    def frozen(self) -> dict[str, Any]:
        """Parameters of its tokenizers, as conditions take them."""
        return frozen(self.tokenizer, self.condition)

    @property
    def image_size(self) -> int:
        """Side of the training images, in pixels."""
        return self.module.grid[0] * self.tokenizer.downsample_factor


register = functools.partial(jax.tree_util.register_dataclass, meta_fields=["module"], drop_fields=["run"])
register(Tokenizer, data_fields=["params"])
register(Prior, data_fields=["params", "tokenizer", "condition"])


def load_tokenizer(path: epath.PathLike, *, step: int | str = "newest", weights: str = "") -> Tokenizer:
    """Loads the tokenizer of a run: the averaged parameters where there are any.

    Args:
      path: the `--workdir` of a stage-1 run; local, gs:// or s3://. Or hf://OWNER/NAME, a repository of the Hugging
        Face hub that holds a model of ours or of any format that `vqgan_jax.convert` knows.
      step: of the checkpoint: its number; "newest", the last whole one; or "best", which training keeps for its
        held-out figure: lpips, or of segmentations error. A converted folder has one checkpoint, with the number of
        steps that its file tells, or 0, and no held-out figure: it is the newest, and there is no best.
      weights: "ema" for the averaged parameters only, "raw" for the plain ones.

    Raises:
      FileNotFoundError: no such folder, or no whole checkpoint in it.
      ValueError: the run is not one of stage 1, has no such step, or no averaged parameters where these are wanted.
    """
    params, run = load_network(path, configs.Stage1, "generator", step=step, weights=weights)
    return Tokenizer(params, run.config.make_vqgan(), run=run)


def load_prior(
    path: epath.PathLike,
    *,
    tokenizer: epath.PathLike | Tokenizer | None = None,
    condition: epath.PathLike | Tokenizer | None = None,
    step: int | str = "newest",
    weights: str = "",
) -> Prior:
    """Loads the prior of a run, with its tokenizers.

    Args:
      path: the `--workdir` of a stage-2 run; local, gs:// or s3://; or hf://OWNER/NAME, see `load_tokenizer`.
      tokenizer: the one it was trained with, or that one's folder; by default what the run's config names, or a folder
        of that name beside the run or in it. Of a folder it is the newest checkpoint, or, where that is another than
        the prior was trained with, the one that it was.
      condition: likewise that of its condition, where it has one of its own.
      step: of the prior's checkpoint: a number, "newest" or "best", which has the lowest held-out nll; see
        `load_tokenizer`.
      weights: of the prior, "ema" or "raw"; see `load_tokenizer`.

    Raises:
      FileNotFoundError: no such folder, no whole checkpoint in it, or no tokenizer.
      ValueError: the run is not one of stage 2, has no such step, or a tokenizer is another than the one that it was
        trained with.
    """
    params, run = load_network(path, configs.Stage2, "transformer", step=step, weights=weights)
    tokenizers = load_frozen(run.config, tokenizer=tokenizer, condition=condition, near=path)
    module = prior.from_config(run.config, condition_module(*tokenizers))
    return Prior(params, tokenizers[0], module, tokenizers[1], run=run)


def load_network(
    path: epath.PathLike, stage: type, network: str, *, step: int | str, weights: str
) -> tuple[dict[str, Any], Run[Any]]:
    """The parameters of a run's network, and the run; arguments and errors: `load_tokenizer`."""
    restored, config = restore(path, stage, parameters(network, weights), step=step)
    ((name, params),) = restored.state.items()
    return params[network], Run(config, restored.step, WEIGHTS[name])


def load_frozen(
    config: configs.Stage2, *, tokenizer: Any = None, condition: Any = None, near: Any = None, step: int | str = ""
) -> tuple[Tokenizer, Tokenizer | None]:
    """The tokenizers of a prior's codes and, where it has one of its own, of its condition; see `load_prior`.

    `step` is of the former, where it is a folder; by default it is the one that the config's fingerprint names.
    """

    def load(expected: Frozen, source: Any, role: str, step: int | str = "") -> Tokenizer:
        source = source or find_tokenizer(expected.workdir, role, near)
        if isinstance(source, Tokenizer):
            loaded = source
        else:
            loaded = load_tokenizer(source, step=step) if step != "" else load_marked(source, expected.fingerprint)
        check_tokenizer(expected, loaded, role)
        return loaded

    first = load(config.tokenizer, tokenizer, "tokenizer", step)
    own = config.condition.own_tokenizer
    return first, load(own, condition, "condition") if own else None


def load_marked(path: epath.PathLike, mark: str) -> Tokenizer:
    """The newest tokenizer of a run; or the one with the fingerprint `mark`, if that is another and still there."""
    newest = load_tokenizer(path)
    if mark in ("", fingerprint(newest)):
        return newest
    with Checkpoints(folder_of(path), read_only=True) as checkpoints:
        others = [step for step in checkpoints.steps if step != newest.step]
    loaded = (load_tokenizer(path, step=step) for step in reversed(others))
    return next((tokenizer for tokenizer in loaded if fingerprint(tokenizer) == mark), newest)


def load_start(config: configs.Stage1) -> Tokenizer:
    """The tokenizer that a stage-1 run begins with.

    Raises:
      FileNotFoundError: no such folder, or no whole checkpoint in it.
      ValueError: its parameters are not those that the config has, or it is another one than the config names.
    """
    start = config.start
    tokenizer = load_marked(start.workdir, start.fingerprint)
    mark = fingerprint(tokenizer)
    if start.fingerprint not in ("", mark):
        raise ValueError(
            f"`config.start` must name the tokenizer with fingerprint {start.fingerprint}; {start.workdir} has {mark}. "
            "Give its folder, or begin in a new --workdir."
        )
    if leaf := sharding.differing_leaf(tokenizer.params, state_shapes(config).params["generator"]):
        name, theirs, ours = leaf
        raise ValueError(
            f"a run must have the model of the tokenizer that it begins with; in {start.workdir} `{name}` is {theirs}, "
            f"in this run {ours}. Take over its sections `config.model` and `config.quantizer`."
        )
    return tokenizer


def condition_module(tokenizer: Tokenizer, condition: Tokenizer | None) -> VQGAN:
    """Of the tokenizer that encodes the condition's maps, if it has any."""
    return (condition or tokenizer).module


def frozen(tokenizer: Tokenizer, condition: Tokenizer | None) -> dict[str, Any]:
    """Their parameters by role."""
    return {"tokenizer": tokenizer.params} | ({"condition": condition.params} if condition else {})


def with_fingerprints(config: configs.Stage2, tokenizer: Tokenizer, condition: Tokenizer | None) -> configs.Stage2:
    """The config with what its tokenizers were, and the range of values that the one of the images reads.

    Raises:
      ValueError: the config has another range.
    """
    replace = dataclasses.replace
    values = tokenizer.config.data.value_range if tokenizer.run else ()
    if config.data.value_range not in ((), values):
        raise ValueError(
            f"`config.data.value_range` must be that of the tokenizer, {values}; got {config.data.value_range}. Leave "
            "it out."
        )
    config = replace(config, data=replace(config.data, value_range=values))
    config = replace(config, tokenizer=replace(config.tokenizer, fingerprint=fingerprint(tokenizer)))
    own = config.condition.own_tokenizer
    if condition is None or own is None:
        return config
    named = replace(own, fingerprint=fingerprint(condition))
    return replace(config, condition=replace(config.condition, tokenizer=named))


def find_tokenizer(workdir: str, role: str = "tokenizer", near: Any = None) -> Any:
    """The folder of a prior's tokenizer: as the config names it, or beside or in the prior's, if both were moved."""
    beside = place_of(near) if near is not None else None
    around = [beside.parent, beside] if beside is not None else []
    places = [place_of(workdir), *(place / Path(workdir).name for place in around)]
    for place in places:
        if (place / "checkpoints").is_dir():
            return place
    section = {"tokenizer": "tokenizer", "condition": "condition.tokenizer"}[role]
    raise FileNotFoundError(
        f"a prior needs its {ROLES[role]}, a run of stage 1; there is none in {' or '.join(map(str, places))}. Name "
        f"its folder: config.{section}.workdir of a run, `{role}=` of load_prior, or --{role} of vqgan sample."
    )


def config_of(path: epath.PathLike, *, step: int | str = "newest") -> configs.Stage1 | configs.Stage2:
    """The config of a run's checkpoint; FileNotFoundError without one, ValueError without this `step`."""
    with Checkpoints(folder_of(path), read_only=True) as checkpoints:
        for _, config, _ in checkpoints.readable(chosen(checkpoints, step)):
            return stored.from_json(config)
    raise FileNotFoundError(f"{path} holds no whole checkpoint{_of(step)}; train longer or give another run.")


def chosen(checkpoints: Checkpoints, step: int | str) -> int | None:
    """The number of the checkpoint that `step` means; None for "newest", which is the last one that is whole.

    Raises:
      ValueError: there is no checkpoint of this number, "best" of a run without a held-out figure, or another word.
    """
    steps = checkpoints.steps
    if step == "newest" or not steps:
        return None
    if step in steps:
        return int(step)
    there = f"{checkpoints.folder} has step {', '.join(map(str, steps))}"
    if step != "best":
        raise ValueError(f'`step` must be "newest", "best" or a checkpoint\'s number; got {step!r}. {there}.')
    _, config, _ = next(checkpoints.readable())
    figure = stage_of(stored.from_json(config)).best
    figures = {step: checkpoints.metrics(step).get(figure, math.nan) for step in steps}
    figures = {step: value for step, value in figures.items() if math.isfinite(value)}
    if not figures:
        raise ValueError(
            f"the best checkpoint is the one with the lowest held-out {figure}; none of these has one: {there}. Give "
            "a number, or take the newest."
        )
    return min(figures, key=lambda step: (figures[step], -step))


def _of(step: int | str) -> str:
    return "" if step == "newest" else f" of step {step}"


def place_of(path: epath.PathLike) -> Any:
    """Where a run is that is to be read: its path, or the folder that a fetcher makes of its name."""
    scheme = os.fspath(path).partition("://")[0]
    return storage.place(FETCHERS[scheme](os.fspath(path)) if scheme in FETCHERS else path)


def folder_of(path: epath.PathLike) -> Any:
    """A run's folder; FileNotFoundError if it is none."""
    workdir = place_of(path)
    if not (workdir / "checkpoints").is_dir():
        raise FileNotFoundError(
            f"a run's folder must hold `checkpoints`; {workdir} does not. Give the --workdir of `vqgan train`."
        )
    return workdir


def restore(
    path: epath.PathLike,
    stages: type | tuple[type, ...],
    part: Callable[[TrainState], dict[str, Any]],
    *,
    step: int | str = "newest",
) -> tuple[Restored, Any]:
    """A part of the state in a whole checkpoint, on the first device, and the config it was made with.

    Args:
      path: of the run's folder.
      stages: of which the run may be.
      part: from the whole state's shapes to those of what is wanted, under the names of the state's fields.
      step: a number, "newest" or "best"; see `load_tokenizer`.

    Raises:
      FileNotFoundError: no such folder, or no whole checkpoint in it.
      ValueError: the run is of another stage or has no such step, or what `part` raises.
    """
    workdir = folder_of(path)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)

    def shapes(saved: dict[str, Any], _: Any) -> Any:
        config = stored.from_json(saved)
        if not isinstance(config, stages):
            name = stages.__name__ if isinstance(stages, type) else " or ".join(each.__name__ for each in stages)
            raise ValueError(f"{workdir} must be a run of {name}; it is one of stage {config.stage}.")
        return jax.tree.map(place, part(state_shapes(config)))

    with Checkpoints(workdir, read_only=True) as checkpoints:
        restored = checkpoints.newest(shapes, partial=True, only=chosen(checkpoints, step))
    if restored is None:
        raise FileNotFoundError(
            f"{workdir / 'checkpoints'} holds no whole checkpoint{_of(step)}; train longer or give another run."
        )
    return restored, stored.from_json(restored.config)


def parameters(network: str, weights: str = "") -> Callable[[TrainState], dict[str, Any]]:
    """For `restore`: the "ema" or "raw" parameters of one network; "" is the former where there are any."""

    def part(state: TrainState) -> dict[str, Any]:
        if weights not in ("", "raw", "ema") or (weights == "ema" and not state.ema):
            raise ValueError(
                f"`weights` must be those that the run has: raw{' or ema' * bool(state.ema)}; got {weights!r}. "
                "Choose of these."
            )
        name = "ema" if state.ema and weights != "raw" else "params"
        return {name: {network: getattr(state, name)[network]}}

    return part


def state_shapes(config: configs.Stage1 | configs.Stage2) -> TrainState:
    """Shapes and dtypes of a run's state."""
    return stage_of(config).state_shapes(config)


def fingerprint(tokenizer: Tokenizer) -> str:
    """Sixteen hexadecimal digits of the parameters' names and values: equal only for the same codes.

    A run that trained the decoder alone has the codes, and so the fingerprint, of the tokenizer that it began with.
    Where `run` is None the parameters alone count.
    """
    if tokenizer.run is not None and tokenizer.config.start.freeze:
        return tokenizer.config.start.fingerprint
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tokenizer.params):
        array = np.asarray(leaf)
        digest.update(f"{sharding.path_name(path)} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def check_tokenizer(config: Frozen, tokenizer: Tokenizer, role: str = "tokenizer") -> None:
    """Raises ValueError if a tokenizer is not the one that the config describes."""
    mark = fingerprint(tokenizer)
    for name, expected, value in (
        ("codebook_size", config.codebook_size, tokenizer.codebook_size),
        ("downsample_factor", config.downsample_factor, tokenizer.downsample_factor),
        ("fingerprint", config.fingerprint or mark, mark),
    ):
        if value != expected:
            raise ValueError(
                f"the prior's {ROLES[role]} must have {name} {expected}; the one given has {value}. Give the tokenizer "
                "that the prior was trained with, or train a prior for this one in a new --workdir."
            )
