"""What the loop must know of a stage: its state, its jitted functions and its data, bound to a config and a mesh."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from vqgan_jax import build, data
from vqgan_jax import config as configs
from vqgan_jax.train import sharding, watch
from vqgan_jax.train.state import skipping


@dataclasses.dataclass(frozen=True)
class Program:
    """A run's functions, each jitted once with the shardings of everything that goes in and comes out.

    Attributes:
      config: with what was found out at the start, such as the tokenizer's fingerprint.
      mesh: the devices.
      abstract: the state's shapes, dtypes and shardings.
      frozen: parameters that the step reads and never changes.
      step: `(state, frozen, batch, key) -> (state, metrics)`; the state is donated.
      batches: this process's share of the training batches, from the first one on.
      start: a fresh state, born sharded.
      optimizers: from parameters to the states of their optimisers before any step; pure.
      evaluate: held-out metrics of a state, and pictures by name.
      best: the metric, of those, that the best checkpoint has lowest.
      shown: metrics for people.
    """

    config: Any
    mesh: jax.sharding.Mesh
    abstract: Any
    frozen: dict[str, Any]
    step: Callable[..., Any]
    batches: Callable[[], data.Batches]
    start: Callable[[], Any]
    optimizers: Callable[[Any], Any]
    evaluate: Callable[[Any], tuple[dict[str, float], dict[str, np.ndarray]]]
    best: str
    shown: tuple[str, ...]


def make_mesh(config: configs.Stage1 | configs.Stage2, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """The mesh of a config, over all devices or over `devices`; see `sharding.make_mesh`."""
    return sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)


def placed(state: Any, config: configs.Stage1 | configs.Stage2, mesh: jax.sharding.Mesh) -> Any:
    """Shapes and dtypes of a state together with its shardings."""
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    return jax.tree.map(place, state, sharding.shardings(state, mesh, zero1=config.mesh.zero1))


def compiled_step(
    step: Callable[..., Any], where: Any, mesh: jax.sharding.Mesh, *, nonfinite: str
) -> Callable[..., Any]:
    """A stage's pure step, jitted once: the state sharded as in `where` and donated, the batch cut into rows.

    With `nonfinite` "skip" it is `state.skipping`; with "stop" there is nothing more in it.
    """
    everywhere, rows = sharding.replicated(mesh), jax.NamedSharding(mesh, sharding.BATCH)
    return jax.jit(
        skipping(step) if nonfinite == "skip" else step,
        in_shardings=(where, everywhere, rows, everywhere),
        out_shardings=(where, everywhere),
        donate_argnums=0,
    )


def share() -> dict[str, Any]:
    """Which part of the data is this process's."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def open_split(config: configs.Stage1 | configs.Stage2, split: str) -> data.Source:
    """The source of the config's images."""
    d = config.data
    return data.open_source(d.source, split=split, data_dir=d.data_dir, image_size=d.image_size)


def image_batches(config: configs.Stage1 | configs.Stage2, source: data.Source) -> data.Batches:
    """This process's share of the training batches of images, from the first one on."""
    d = config.data
    return data.training_batches(
        source, image_size=d.image_size, resize=d.resize, crop=d.crop, flip=d.flip, small=d.small,
        batch_size=config.batch_size, seed=config.seed, fields=build.views(config), num_threads=d.num_threads,
        **share(),
    )  # fmt: skip


def in_time(config: configs.Stage1 | configs.Stage2, name: str, batches: data.Batches) -> Iterator[Any]:
    """The batches, each within the config's timeout; `name`, and their number, are for the error."""
    return watch.in_time(batches, config.data.timeout_seconds, name, config.data.source)


def summed(batches: Iterator[Any], mesh: jax.sharding.Mesh, sums: Callable[[dict[str, jax.Array]], Any]) -> Any:
    """`sums` of every batch, added up over all of them, on the host."""
    totals: dict[str, np.ndarray] = {}
    for batch in batches:
        values = jax.device_get(sums(sharding.put_batch(batch, mesh)))
        totals = {name: totals.get(name, 0) + value for name, value in values.items()}
    return totals
