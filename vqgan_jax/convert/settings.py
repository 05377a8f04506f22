"""What the config file beside a checkpoint tells of it that its tensors do not: heads, and the kind of a condition."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vqgan_jax.convert.weights import ConvertError

# Our kinds by upstream's names of the condition's entry in a batch, and of modules that make one of nothing.
KINDS = {
    **{"class_label": "class", "class": "class", "label": "class", "depth": "depth", "coord": "coordinates"},
    **{"segmentation": "segmentation", "seg": "segmentation", "pkeypoints": "keypoints", "keypoints": "keypoints"},
    **{"objects_bbox": "boxes", "objects_center_points": "centers", "edge": "edges", "canny": "edges"},
    **{"lr": "low_resolution", "LR_image": "low_resolution"},
}
NOTHING = ("__is_unconditional__", "SOSProvider")
LARGEST = 2**20  # bytes


def read(path: str | Path) -> dict[str, Any]:
    """Options of `taming.plan` out of upstream's YAML, or the same as JSON: "num_heads" and "condition" where told.

    Raises:
      ConvertError: the file is not of that kind.
      OSError: there is no such file.
    """
    path = Path(path)
    if path.stat().st_size > LARGEST:
        raise ConvertError(f"a model's config must have at most {LARGEST} bytes; {path} has {path.stat().st_size}.")
    try:
        text = path.read_text()
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        params = found["model"]["params"]
        assert isinstance(params, Mapping)
    except (ValueError, KeyError, TypeError, AssertionError, RecursionError, yaml.YAMLError) as error:
        raise ConvertError(
            f"a model's config must be upstream's YAML, or JSON, with `model.params`; {path} gives "
            f"{type(error).__name__}: {str(error)[:200]}. Leave it out, and give --heads and --condition."
        ) from error
    heads = _at(params, "transformer_config", "params", "n_head")
    stage = params.get("cond_stage_config")
    target = stage if isinstance(stage, str) else str(_at(params, "cond_stage_config", "target") or "")
    kind = "none" if target.endswith(NOTHING) else KINDS.get(str(params.get("cond_stage_key")))
    told = {"num_heads": heads if isinstance(heads, int) else None, "condition": kind}
    return {key: value for key, value in told.items() if value is not None}


def _at(tree: Any, *keys: str) -> Any:
    """A value below nested dicts; None if there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree
