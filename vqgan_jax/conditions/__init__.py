"""Conditions: what a prior knows of an image before the first code; every kind is one class and one line here."""

from vqgan_jax.conditions.base import Condition, Frozen, Params, Prefix, check_range, mark_out_of_range, on_host
from vqgan_jax.conditions.codes import Depth, Edges, Keypoints, LowResolution, Segmentation
from vqgan_jax.conditions.coordinates import Coordinates
from vqgan_jax.conditions.label import ClassLabel, Unconditional
from vqgan_jax.conditions.objects import Boxes, Centers
from vqgan_jax.conditions.text import Text

CONDITIONS: dict[str, type[Condition]] = {
    "class": ClassLabel,
    "none": Unconditional,
    "coordinates": Coordinates,
    "boxes": Boxes,
    "centers": Centers,
    "segmentation": Segmentation,
    "depth": Depth,
    "low_resolution": LowResolution,
    "edges": Edges,
    "keypoints": Keypoints,
    "text": Text,
}

__all__ = ["CONDITIONS", "Condition", "Frozen", "Params", "Prefix", "check_range", "mark_out_of_range", "on_host"]
