"""A class, or nothing."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from vqgan_jax import pictures
from vqgan_jax.conditions.base import Condition, Grid, HostTokens, Params, Pictures, in_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unconditional(Condition):
    """One token that is always the same, for the first code to follow."""

    kind = "none"

    @property
    def droppable(self) -> bool:
        """Never: there is nothing to drop."""
        return False

    @property
    def num_values(self) -> int:
        """One."""
        return 1

    def encode(self, frozen: Params, batch: dict[str, Array]) -> Int[Array, "b 1"]:
        """Returns zeros, as many as the batch is long."""
        return jnp.zeros((len(next(iter(batch.values()))), 1), jnp.int32)

    def tokens(self, frozen: Params, value: Any, grid: Grid, origins: np.ndarray | None) -> Int[Array, "b 1"]:
        """Returns zeros."""
        return jnp.zeros((value, 1), jnp.int32)

    def picture(self, frozen: Params, tokens: HostTokens, size: int, names: Sequence[str] = ()) -> Pictures:
        """Returns plain grey."""
        return np.full((len(tokens), size, size, 3), 128, np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassLabel(Condition):
    """The class's number, from "label"; one more number is the null token where it may be dropped.

    Fields:
      num_classes: 0 takes those of the data when a run begins: as many as there are, and no condition where there are
        none. The run writes down what that was, and goes on with nothing else.
    """

    kind = "class"
    field = "label"
    argument = "labels"

    num_classes: int = 1000

    @property
    def num_labels(self) -> int:
        """All classes."""
        return self.num_classes

    @property
    def num_values(self) -> int:
        """All classes."""
        return self.num_classes

    def of_classes(self, names: Callable[[], Sequence[str]]) -> Condition:
        """Returns the condition with the number of classes that the data have, or none."""
        if self.num_classes:
            return self
        count = len(names())
        return dataclasses.replace(self, num_classes=count) if count else Unconditional(drop=0.0)

    def check_classes(self, source: str, names: Sequence[str]) -> None:
        """Raises ValueError for data without classes, or with more than `num_classes`."""
        if not 0 < len(names) <= self.num_classes:
            raise ValueError(
                f"`config.condition.num_classes` must cover the labels of {source}, which has {len(names)} classes; "
                f"got {self.num_classes}. Set it to {len(names)}, or condition.kind to 'none' where there are none."
            )

    def encode(self, frozen: Params, batch: dict[str, Array]) -> Int[Array, "b 1"]:
        """Returns the labels."""
        return batch["label"][:, None]

    def tokens(self, frozen: Params, value: Any, grid: Grid, origins: np.ndarray | None) -> Int[Array, "b 1"]:
        """Returns classes as tokens; ValueError for what is none."""
        dtype = jnp.result_type(value)
        if jnp.ndim(value) != 1 or not jnp.issubdtype(dtype, jnp.integer):
            raise ValueError(
                f"`labels` must be integers of shape (b,), the class of each image; got {dtype} of shape "
                f"{jnp.shape(value)}."
            )
        return in_range("labels", value, self.num_classes)[:, None]

    def picture(self, frozen: Params, tokens: HostTokens, size: int, names: Sequence[str] = ()) -> Pictures:
        """Returns the class's name, or its number where it has none."""
        texts = [str(names[t] if t < len(names) else t) for t in tokens[:, 0]]
        return np.stack([pictures.words(text, size) for text in texts])
