"""Configs as runs store them: with the version of their keys. A config of every earlier version is read.

Who adds, renames or removes a key of `config`, or changes what a value means, raises `VERSION` and adds the step that
leads there to `STEPS`: what a stored config lacks takes the value that does what the program did without the key.
"""

from collections.abc import Callable, Mapping
from typing import Any

from vqgan_jax import config as configs
from vqgan_jax.config import Stage1, Stage2
from vqgan_jax.nn import fields
from vqgan_jax.nn.fields import section_of

VERSION = 8

# Keys that came while configs had no version yet, each with what the program did before it.
SHARED: dict[str, Any] = {
    "accumulate": 1,
    "data": {
        "field": "image",
        "low_resolution_factor": 4,
        "edge_sigma": 2.0,
        "shift_labels": False,
        "timeout_seconds": 0,
    },
    "optimizer": {"nonfinite": "stop"},
    "mesh": {"zero1": False},
    "log": {"eval_metrics": ()},
}
STAGE1 = SHARED | {"model": {"kind": "paper", "norm_groups": 32}, "quantizer": {"levels": (8, 5, 5, 5)}}
STAGE2 = SHARED | {
    "condition": {  # no kind that was there before reads one of these
        "num_tokens": 1024,
        "max_objects": 30,
        "crop_points": True,
        "paper": False,
        "size": 0,
        "tokenizer": {"workdir": "", "fingerprint": "", "codebook_size": 1024, "downsample_factor": 16},
    }
}
ADDED: dict[Any, dict[str, Any]] = {1: STAGE1, 2: STAGE2}


def to_json(config: Stage1 | Stage2) -> dict[str, Any]:
    """Returns a config as nested values with the version of its keys, to be stored."""
    return {"version": VERSION} | fields.write(config)


def from_json(mapping: Mapping[str, Any]) -> Any:
    """Returns the `Stage1` or `Stage2` of a stored config; ValueError as of `current` and `config.read`."""
    return configs.read(current(mapping))


def current(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a stored config of any version with the keys of today and without its version, to be parsed.

    Raises:
      ValueError: the version is newer than this program, or is none.
    """
    nested = dict(mapping)
    version = nested.pop("version", 0)
    if type(version) is not int or not 0 <= version <= VERSION:
        raise ValueError(
            f"`config.version` must be a whole number up to {VERSION}, the newest that this program knows; got "
            f"{version!r}. Install the vqgan_jax that wrote this config, or a newer one."
        )
    for step in STEPS[version:]:
        nested = step(nested)
    return nested


def with_added(nested: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a nested config with those keys of `added` that it lacks, in its sections too."""
    filled = dict(nested)
    for key, value in added.items():
        if key not in nested:
            filled[key] = value
        elif isinstance(value, Mapping) and isinstance(nested[key], Mapping):
            filled[key] = with_added(nested[key], value)
    return filled


def from_no_version(nested: dict[str, Any]) -> dict[str, Any]:
    """Returns version 1 of a config that was stored before there were versions."""
    # Until shortly before `log.eval_metrics` came, the tokens of a layout stood in a line; since then "rope2d" puts
    # them where they say.
    layout = section_of(nested, "condition").get("kind") in ("boxes", "centers")
    transformer = section_of(nested, "transformer")
    if layout and "eval_metrics" not in section_of(nested, "log") and transformer.get("positions") == "rope2d":
        nested = nested | {"transformer": {**transformer, "positions": "rope2d_line"}}
    return with_added(nested, ADDED.get(nested.get("stage"), {}))


# Sections of version 1 held the keys of all their kinds. Of these a kind read its own, and what is no key of `EVERY`.
OBJECTS = ("num_classes", "num_tokens", "max_objects", "crop_points", "paper")
MAP = ("size", "tokenizer")
READ: dict[str, dict[str, tuple[str, ...]]] = {
    "quantizer": {
        "vq": ("codebook_size", "embed_dim", "unit_length", "ema", "decay", "revive_below", "kmeans_batches"),
        "gumbel": ("codebook_size", "embed_dim", "noisy_eval", "temperature"),
        "fsq": ("levels",),
    },
    "condition": {
        "class": ("num_classes",),
        "none": (),
        "coordinates": ("num_tokens",),
        "boxes": OBJECTS,
        "centers": OBJECTS,
        "segmentation": ("num_classes", *MAP),
        **dict.fromkeys(("depth", "low_resolution", "edges", "keypoints"), MAP),
    },
}
EVERY = {name: {key for keys in kinds.values() for key in keys} for name, kinds in READ.items()}
# Weights of `loss` in version 1 that belong to the quantizer, and which kinds have them.
CODE_LOSSES = {"codebook_weight": ("vq",), "commitment_weight": ("vq",), "kl_weight": ("gumbel",)}


def from_version_1(nested: dict[str, Any]) -> dict[str, Any]:
    """Returns version 2: the quantizer has its losses' weights, and a section with kinds only its kind's keys."""
    nested = {key: dict(value) if isinstance(value, Mapping) else value for key, value in nested.items()}
    for name, kinds in READ.items():
        values = section_of(nested, name)
        if values.get("kind") in kinds:
            for key in EVERY[name] - set(kinds[values["kind"]]):
                values.pop(key, None)
    quantizer, loss = section_of(nested, "quantizer"), section_of(nested, "loss")
    for key, kinds in CODE_LOSSES.items():
        if nested.get("stage") == 1 and key in loss:
            value = loss.pop(key)
            if quantizer.get("kind") in kinds:
                quantizer[key] = value
    return nested


def from_version_2(nested: dict[str, Any]) -> dict[str, Any]:
    """Returns version 3: the prior's network has a kind."""
    return nested if nested.get("stage") == 1 else with_added(nested, {"transformer": {"kind": "transformer"}})


def from_version_3(nested: dict[str, Any]) -> dict[str, Any]:
    """Returns version 4; the defaults of its new keys do what the program did before."""
    return nested


def from_version_4(nested: dict[str, Any]) -> dict[str, Any]:
    """Returns version 5; the defaults of its new keys do what the program did before."""
    return nested


def from_version_5(nested: dict[str, Any]) -> dict[str, Any]:
    """Returns version 6: attention weights are dropped at a rate of their own, which was that of all else."""
    transformer = section_of(nested, "transformer")
    if transformer.get("kind") != "transformer" or "dropout" not in transformer:
        return nested
    return with_added(nested, {"transformer": {"attn_dropout": transformer["dropout"]}})


def from_version_6(nested: dict[str, Any]) -> dict[str, Any]:
    """Returns version 7; the defaults of its new keys do what the program did before."""
    return nested


def from_version_7(nested: dict[str, Any]) -> dict[str, Any]:
    """Returns version 8; the defaults of its new keys do what the program did before."""
    return nested


# Number n leads to version n + 1.
STEPS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (
    from_no_version,
    from_version_1,
    from_version_2,
    from_version_3,
    from_version_4,
    from_version_5,
    from_version_6,
    from_version_7,
)
