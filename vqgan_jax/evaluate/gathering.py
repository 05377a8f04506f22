"""What every process found, on every process: exact to the last bit, and in an order that no number of them changes."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Int, Shaped


def gather(rows: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "_n ..."]:
    """The rows of all processes, one process's after the other's; they may have different numbers of rows.

    Bytes travel, not numbers: as JAX arrays int64 and float64 would become 32 bits wide.
    """
    if jax.process_count() == 1:
        return rows
    counts = multihost_utils.process_allgather(np.array([len(rows)], np.int32)).reshape(-1)
    width = rows.dtype.itemsize * int(np.prod(rows.shape[1:]))
    padded = np.zeros((int(counts.max()), width), np.uint8)
    padded[: len(rows)] = np.frombuffer(np.ascontiguousarray(rows).tobytes(), np.uint8).reshape(len(rows), width)
    everyone = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(counts), -1, width)
    kept = np.concatenate([part[:count] for part, count in zip(everyone, counts, strict=True)])
    return np.frombuffer(kept.tobytes(), rows.dtype).reshape(-1, *rows.shape[1:])


def numbered(
    batches: Iterable[Mapping[str, Any]], *, process_index: int, process_count: int
) -> Iterator[tuple[Int[np.ndarray, "b"], dict[str, Any]]]:
    """Batches of `data.evaluation_batches` without padding, each with its examples' numbers in the source.

    Of each global batch, process p has the p-th of equal parts; what the mask leaves out is no example.
    """
    for i, batch in enumerate(batches):
        mask, size = batch["mask"], len(batch["mask"])
        numbers = (i * process_count + process_index) * size + np.arange(size)
        yield numbers[mask], {name: value[mask] for name, value in batch.items() if name != "mask"}
