"""A number with its protocol: nothing is reported that does not say how it was measured."""

import dataclasses
import hashlib
import importlib.metadata
import math
import platform
from pathlib import Path
from typing import Any

NOTHING = "none"  # written out where a field does not apply: an empty one was forgotten


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One figure. Every field must be given; text that does not apply is "none".

    Attributes:
      metric: name, with the number of samples in it where the value depends on that: `fid5k`, `fd_vgg512`.
      value: finite.
      unit: what it is of, such as "dB" or "nats a token".
      better: "higher", "lower", or "none" where it is neither.
      variant: which of the definitions in use this is, with its constants.
      subject: what was judged, such as "samples" or "reconstructions of the reference".
      subject_count: how many there were.
      subject_fingerprint: of their pixels, in any order; of codes "none".
      reference: what they were compared with.
      reference_count: how many; 0 without a reference.
      reference_fingerprint: of their pixels after the crop.
      resize: from which size to which, by what filter, and the crop.
      rounding: how pixels became 8 bits.
      network: file of the weights that see the images.
      network_hash: first 16 digits of the SHA-256 of this file.
      model: where the judged model is.
      step: of its training; 0 without a model.
      weights: "ema", "raw" or "none".
      sampling: settings by name; empty where nothing was drawn.
      seed: of everything that is drawn.
      versions: of the programs.

    Raises:
      ValueError: an empty text, a number that is not finite, or a negative count.
    """

    metric: str
    value: float
    unit: str
    better: str
    variant: str
    subject: str
    subject_count: int
    subject_fingerprint: str
    reference: str
    reference_count: int
    reference_fingerprint: str
    resize: str
    rounding: str
    network: str
    network_hash: str
    model: str
    step: int
    weights: str
    sampling: dict[str, Any]
    seed: int
    versions: dict[str, str]

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if (
                value is None
                or (isinstance(value, str) and not value)
                or (isinstance(value, int) and value < 0)
                or (isinstance(value, float) and not math.isfinite(value))
                or (field.name == "versions" and not value)
            ):
                raise ValueError(
                    f"a result must say its `{field.name}`: text that is not empty, counts of 0 or more, numbers that "
                    f"are finite; {self.metric or 'one'} has {value!r}. Write {NOTHING!r} where it does not apply."
                )


def named(metric: str, count: int) -> str:
    """The metric's name with its number of samples, whole thousands as `k`: numbers of unequal N are not compared."""
    return f"{metric}{count // 1000}k" if count and count % 1000 == 0 else f"{metric}{count}"


def file_hash(path: Path) -> str:
    """First 16 hexadecimal digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of this package, of what computes for it, and of Python."""
    packages = ("vqgan-jax", "jax", "jaxlib", "flax", "numpy", "pillow")
    return {name: importlib.metadata.version(name) for name in packages} | {"python": platform.python_version()}
