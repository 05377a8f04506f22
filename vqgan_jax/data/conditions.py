"""What a prior is told before the first code: every condition is a prefix of tokens."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from vqgan_jax import pictures


@runtime_checkable
class Condition(Protocol):
    """One kind of prefix."""

    @property
    def length(self) -> int:
        """Tokens in front of the codes."""
        ...

    @property
    def vocab_size(self) -> int:
        """Its tokens are below this; the last one is the null token of a condition that may be dropped."""
        ...

    def encode(self, frozen: dict[str, Any], batch: dict[str, Array]) -> Int[Array, "b s"]:
        """Tokens of a batch as the loader gives it; `frozen` holds parameters of networks that this may need."""
        ...

    def picture(
        self, tokens: Int[np.ndarray, "b s"], size: int, class_names: tuple[str, ...] = ()
    ) -> UInt8[np.ndarray, "b size size 3"]:
        """What people should see of it beside a sample."""
        ...


@dataclasses.dataclass(frozen=True)
class Unconditional:
    """One token that is always the same, for the first code to follow."""

    length = 1
    vocab_size = 1

    def encode(self, frozen: dict[str, Any], batch: dict[str, Array]) -> Int[Array, "b 1"]:
        """Zeros, as many as the batch is long."""
        return jnp.zeros((len(next(iter(batch.values()))), 1), jnp.int32)

    def picture(
        self, tokens: Int[np.ndarray, "b 1"], size: int, class_names: tuple[str, ...] = ()
    ) -> UInt8[np.ndarray, "b size size 3"]:
        """Plain grey."""
        return np.full((len(tokens), size, size, 3), 128, np.uint8)


@dataclasses.dataclass(frozen=True)
class ClassLabel:
    """The class's number, from "label"; one more number is the null token where it may be dropped."""

    num_classes: int
    droppable: bool = False
    length = 1

    @property
    def vocab_size(self) -> int:
        """Classes, and the null token."""
        return self.num_classes + self.droppable

    def encode(self, frozen: dict[str, Any], batch: dict[str, Array]) -> Int[Array, "b 1"]:
        """The labels."""
        return batch["label"][:, None]

    def picture(
        self, tokens: Int[np.ndarray, "b 1"], size: int, class_names: tuple[str, ...] = ()
    ) -> UInt8[np.ndarray, "b size size 3"]:
        """The class's name, or its number where it has none."""
        names = [class_names[t] if t < len(class_names) else str(t) for t in tokens[:, 0]]
        return np.stack([pictures.words(name, size) for name in names])
