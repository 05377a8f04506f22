"""Models as files and folders that we write, and how those are read again.

A run's folder is what `load_tokenizer`, `load_prior` and `vqgan train` take. A safetensors file has our own names, the
paths of `names`, with the configs in its metadata; or upstream's, diffusers' or LlamaGen's names, by their tables from
right to left.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from safetensors.numpy import save_file

from vqgan_jax import models, ordering
from vqgan_jax.conditions import Frozen
from vqgan_jax.config import Stage1, Stage2
from vqgan_jax.convert import diffusers, infer, llamagen, names, taming, trees
from vqgan_jax.convert.names import Row
from vqgan_jax.convert.tensors import Checkpoint, ConvertError
from vqgan_jax.convert.trees import Converted, Report, Tensors
from vqgan_jax.data import storage
from vqgan_jax.nn import fields
from vqgan_jax.nn.quantizer import CodebookStats
from vqgan_jax.train import stored
from vqgan_jax.train.checkpoint import Checkpoints
from vqgan_jax.train.state import TrainState

PARTS = ("tokenizer", "condition")  # models within a prior

# Folders of runs


def write_run(planned: Converted, folder: Path) -> None:
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
        raise ConvertError(f"a converted model needs a folder of its own; {folder} is there. Name another.")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # of a conversion that was killed
    try:
        _write_run(planned, part, folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_run(planned: Converted, part: Path, final: Path) -> None:
    config = planned.config
    if planned.is_prior:
        sections: dict[str, Any] = {"tokenizer": config, "condition": config.condition}
        for name, below in _below(planned):
            _write_run(below, part / name, final / name)
            mark = models.fingerprint(models.load_tokenizer(part / name))
            named = dataclasses.replace(sections[name].tokenizer, workdir=str(final / name), fingerprint=mark)
            sections[name] = dataclasses.replace(sections[name], tokenizer=named)
        config = dataclasses.replace(sections["tokenizer"], condition=sections["condition"])
    converted = trees.read(planned._replace(config=config, tokenizer=None, condition=None))
    part.mkdir(parents=True, exist_ok=True)
    settings = stored.to_json(config)
    data = {"next_index": 0} if converted.moments else {}  # by which the loop knows whether there are optimisers
    with Checkpoints(epath.Path(part)) as checkpoints:
        checkpoints.save(converted.step, _state(converted), data, settings, None)
    storage.write_json(epath.Path(part / "config.json"), settings)


def _below(converted: Converted) -> Iterator[tuple[str, Converted]]:
    return ((name, below) for name in PARTS if (below := getattr(converted, name)) is not None)


def _state(converted: Converted) -> dict[str, Any]:
    """Returns the state of a run at the checkpoint's step; without optimisers where the file had none."""
    config, networks = converted.config, converted.networks
    abstract = models.state_shapes(config)
    params = {name: networks[name] for name in abstract.params if name in networks}
    state = {
        "step": np.asarray(converted.step, np.int32),
        "params": params,
        "ema": {name: params[name] for name in abstract.ema},
        "stats": _stats(converted),
    }
    if converted.moments:
        zeros = lambda leaf: np.zeros(leaf.shape, leaf.dtype)  # they take no memory before they are written to
        fresh = {name: jax.tree.map(zeros, abstract.opt_state[name]) for name in params}
        state["opt_state"] = {
            name: optax.tree_utils.tree_set(each, **converted.moments.get(name, {})) for name, each in fresh.items()
        }
    cast = lambda wanted, array: np.asarray(array, wanted.dtype)
    return {name: jax.tree.map(cast, getattr(abstract, name), part) for name, part in state.items()}


def _stats(converted: Converted) -> dict[str, Any]:
    """Returns the statistics of a run's state: hits of the codes as of uniform ones, where the file has none."""
    if converted.is_prior:
        return {}
    config, networks = converted.config, converted.networks
    stats = {"discriminator": networks.get("batch_stats", {})} if "discriminator" in networks else {}
    if "codebook" in networks:
        return stats | {"codebook": CodebookStats(**networks["codebook"])}
    latents = config.batch_size * (config.data.image_size // config.model.downsample_factor) ** 2
    params = jax.tree.map(jnp.asarray, converted.params.get("quantizer", {}))
    codebook = config.quantizer.initial_stats(params, latents)
    return stats if codebook is None else stats | {"codebook": codebook}


def read_run(path: epath.PathLike, *, step: int | str = "newest", weights: str = "") -> Converted:
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

    def parts(state: TrainState) -> dict[str, Any]:
        main = "generator" if "generator" in state.params else "transformer"
        return {"stats": state.stats} | models.parameters(main, weights)(state) | {"params": state.params}

    restored, config = models.restore(path, (Stage1, Stage2), parts, step=step)
    state = jax.tree.map(np.asarray, restored.state)
    networks = state["params"] | state.get("ema", {})
    stats = state["stats"] if isinstance(state["stats"], dict) else {}  # where empty, Orbax has a leaf of its own
    if stats.get("discriminator"):
        networks["batch_stats"] = stats["discriminator"]
    converted = Converted(config, networks, Report(), {}, restored.step)
    if not converted.is_prior:
        if config.quantizer.ema:
            networks["codebook"] = stats["codebook"]._asdict()
        return converted
    tokenizer = _tokenizer(config.tokenizer, "tokenizer", path)
    own = config.condition.own_tokenizer
    condition = _tokenizer(own, "condition", path) if own else None
    return converted._replace(tokenizer=tokenizer, condition=condition)


def _tokenizer(wanted: Frozen, role: str, near: epath.PathLike) -> Converted:
    """Reads one of a prior's tokenizers, as the prior was trained with: averaged parameters where there are any."""
    place = models.find_tokenizer(wanted.workdir, role, near)
    loaded = models.load_marked(place, wanted.fingerprint)
    models.check_tokenizer(wanted, loaded, role)
    return read_run(place, step=loaded.step)


# Files of our own names

CONFIG = "vqgan_jax.config"  # key of the metadata; a tokenizer's has a dot and its name behind


def plan(checkpoint: Checkpoint) -> Converted:
    """Finds a model of ours in an opened file; each array is a `Tensor` that is read when it is asked for.

    Args:
      checkpoint: an opened file, or a folder that holds it.

    Raises:
      ConvertError: the file has no config that we know.
    """
    file = checkpoint.other.get("weights", checkpoint.other)
    return _model(checkpoint.tensors, file.get("__metadata__", {}))


def _model(tensors: Tensors, metadata: Mapping[str, str], name: str = "") -> Converted:
    """Returns the model whose tensors lie below `name`."""
    prefix, key = (f"{name}/", f"{CONFIG}.{name}") if name else ("", CONFIG)
    config, step = read_config(metadata, key)
    below = {part: _model(tensors, metadata, part) for part in PARTS if not name and f"{CONFIG}.{part}" in metadata}
    mine = {each.removeprefix(prefix): tensor for each, tensor in tensors.items() if each.startswith(prefix)}
    mine = {each: tensor for each, tensor in mine.items() if each.split("/")[0] not in below}
    there = {each.split("/")[0] for each in mine} | {"generator", "transformer"}
    shapes = {path: shape for path, shape in trees.network_shapes(config).items() if path.split("/")[0] in there}
    converted = trees.planned(config, shapes, names.entries((Row("(.+)", r"\1"),), shapes), mine, prefix=prefix)
    report = trees.joined([converted.report, *(each.report for each in below.values())])
    return converted._replace(step=step, report=report, **below)


def read_config(metadata: Mapping[str, str], key: str) -> tuple[Stage1 | Stage2, int]:
    """Returns the config and the step of a model out of a file's metadata; ConvertError if they are not there."""
    try:
        settings = json.loads(metadata[key])
        return stored.from_json(settings["config"]), int(settings["step"])
    except (KeyError, TypeError, ValueError) as error:
        text = f"{type(error).__name__}: {str(error)[:300]}"
        raise ConvertError(f"a file of ours must have its config, `{key}`; got {text}. Export it again.") from error


def _metadata(converted: Converted, key: str = CONFIG) -> dict[str, str]:
    """Returns what the file says besides tensors: config and step of the model and of its tokenizers."""
    metadata = {key: json.dumps({"config": stored.to_json(converted.config), "step": converted.step})}
    for name, below in _below(converted):
        metadata |= _metadata(below, f"{CONFIG}.{name}")
    return metadata


# Files of every name

# What a format takes for granted, by section and key of the config.
UPSTREAM = {"model.kind": "paper", "model.norm_groups": 32, "quantizer.unit_length": False}
NEEDS: dict[str, dict[str, Any]] = {
    "taming": UPSTREAM,
    "llamagen": UPSTREAM | {"quantizer.unit_length": True, "quantizer.kind": "vq"},
    "diffusers": {"model.kind": "paper", "quantizer.unit_length": False, "quantizer.kind": "vq"},
}
GPT_NEEDS = {f"transformer.{key}": infer.GPT[key] for key in ("norm", "mlp", "positions", "qk_norm", "bias")}
GPT_NEEDS |= {"transformer.kind": "transformer", "transformer.adaln": False, "condition.shared_vocab": True}


def write_file(converted: Converted, to: str, path: Path) -> None:
    """Writes a model that was read whole as safetensors.

    Args:
      converted: the model; the state of its optimisers is not written.
      to: "safetensors", our own names, or a name of `NEEDS`; a prior only with its tokenizers, as ours or "taming".
      path: of a file *.safetensors; for "diffusers" of a folder.

    Raises:
      ConvertError: the format cannot hold this model, or the path does not fit it.
      OSError: the disk is full or cannot be written; no file is left behind.
    """
    config = converted.config
    if to == "safetensors":
        own = trees.by_path(converted.networks)
        for part, below in _below(converted):
            own |= {f"{part}/{name}": array for name, array in trees.by_path(below.networks).items()}
        _save(path, own, _metadata(converted))
    elif to == "diffusers" and not converted.is_prior:
        _save(path / "diffusion_pytorch_model.safetensors", tensors(converted, to), {"format": "pt"})
        storage.write_json(epath.Path(path / "config.json"), diffusers.config_json(config))
    else:
        _save(path, tensors(converted, to), {"format": "pt"})


def _save(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a file beside `path` that takes its name when all is written, and is removed when something goes wrong."""
    if path.suffix != ".safetensors":
        raise ConvertError(f"a file of weights must end in .safetensors; got {path}. Name it so.")
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file({name: np.require(array, requirements="C") for name, array in arrays.items()}, part, dict(metadata))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def tensors(converted: Converted, to: str) -> dict[str, np.ndarray]:
    """Returns arrays of a model by their names in a format of `NEEDS`, as they lie there; views where NumPy can."""
    config = converted.config
    if converted.is_prior:
        return _taming_prior(converted, config, to)
    generator = dict(converted.networks["generator"])
    quantizer, codes = config.quantizer.folded(generator.get("quantizer", {}))
    generator["quantizer"] = jax.tree.map(np.asarray, codes)
    config = dataclasses.replace(config, quantizer=quantizer)
    _check(config, NEEDS[to], to)
    if to == "taming":
        networks = {name: converted.networks[name] for name in names.networks_of(config) if name in converted.networks}
        return _taken(names.vq_model(config), networks | {"generator": generator})
    family = {"llamagen": llamagen, "diffusers": diffusers}[to]
    return _taken(family.vq_model(len(config.model.channel_multipliers)), {"generator": generator})


def _taming_prior(converted: Converted, config: Stage2, to: str) -> dict[str, np.ndarray]:
    """Returns a transformer together with its tokenizers and its order."""
    if to != "taming":
        raise ConvertError(f"a prior is written as 'taming' or 'safetensors'; got {to!r}. Export its tokenizer alone.")
    _check(config, GPT_NEEDS, to)
    arrays = _taken(names.GPT, converted.networks)
    for name, below in _below(converted):
        generator = {key: below.networks[key] for key in ("generator", "codebook") if key in below.networks}
        prefix = taming.FIRST if name == "tokenizer" else taming.SECOND
        part = tensors(below._replace(networks=generator), to)
        arrays |= {prefix + each: array for each, array in part.items()}
    if config.transformer.order != "raster":
        side = config.data.image_size // config.tokenizer.downsample_factor
        forward = np.asarray(ordering.order(config.transformer.order, side, side), np.int64)
        arrays[f"{taming.PERMUTER}forward_shuffle_idx"] = forward
        arrays[f"{taming.PERMUTER}backward_shuffle_idx"] = np.argsort(forward).astype(np.int64)
    return arrays


def _taken(table: names.Table, networks: trees.Tree) -> dict[str, np.ndarray]:
    """Returns every tensor of some networks by the names of a table."""
    arrays = trees.by_path(networks)
    return {
        name: names.take(entry, arrays[entry.path])
        for name, entry in names.entries(table, trees.flat(networks)).items()
    }


def _check(config: Stage1 | Stage2, needs: Mapping[str, Any], to: str) -> None:
    """Raises ConvertError if the network computes something else than the format's."""
    written = fields.write(config)
    for key, needed in needs.items():
        section, field = key.split(".")
        value = written[section].get(field, needed)  # a kind that has no such key does not compute it
        if value != needed:
            raise ConvertError(f"{to!r} must have {key} {needed!r}; this one has {value!r}. Export to 'safetensors'.")
