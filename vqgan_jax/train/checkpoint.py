"""Checkpoints: state, data iterator and config of one step in one folder, by Orbax. The one file that knows Orbax."""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies


class Restored(NamedTuple):
    """What a checkpoint held."""

    step: int
    state: Any
    data: dict[str, Any]
    config: dict[str, Any]


class Checkpoints:
    """The checkpoints of a workdir: the newest `keep` and the one with the lowest `best`.

    Saving is asynchronous: the arrays are copied off the device at once and written behind the next steps.
    """

    def __init__(self, workdir: epath.Path, *, keep: int = 1, best: str = "lpips", read_only: bool = False) -> None:
        def value(metrics: dict[str, float]) -> float:
            return metrics[best] if math.isfinite(metrics.get(best, math.inf)) else math.inf

        preserve = [
            policies.LatestN(keep),
            policies.BestN(get_metric_fn=lambda m: -value(m), n=1, keep_checkpoints_without_metrics=False),
        ]
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=policies.PreemptionCheckpointingPolicy(),  # besides those that the loop forces
            best_fn=value,  # without it no metrics are written, and the best is forgotten at the next start
            best_mode="min",
            preservation_policy=policies.AnyPreservationPolicy(preserve),
            create=not read_only,  # Orbax's own `read_only` warns about itself at every loading
        )
        self.read_only = read_only
        self.folder = workdir / "checkpoints"
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.manager.close()

    def holds(self, step: int, part: str) -> bool:
        """Whether the state of a checkpoint has this part at its top."""
        return part in ocp.PyTreeCheckpointHandler().metadata(self.folder / str(step) / "state").tree

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint that is completely written."""
        self.wait()
        return self.manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """Steps of all checkpoints, oldest first."""
        return sorted(self.manager.all_steps())

    def metrics(self, step: int) -> dict[str, float]:
        """What was held out at a checkpoint's step; empty where nothing was."""
        return self.manager.metrics(step) or {}

    def wait(self) -> None:
        """Until all that was saved is written.

        Raises:
          OSError: it could not be written, such as to a full disk.
        """
        try:
            self.manager.wait_until_finished()
        except (ValueError, OSError) as error:
            raise OSError(
                f"a checkpoint must be written whole; the newest that is, is step {self.manager.latest_step()} in "
                f"{self.folder}: {error}. Make room there, then run the same command again."
            ) from error

    def save(
        self, step: int, state: Any, data: dict[str, Any], config: dict[str, Any], metrics: dict[str, float] | None
    ) -> None:
        """Begins to write a checkpoint, when the one before is written; a step that is there already is left alone."""
        if step in self.manager.all_steps():
            return
        self.wait()
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state), data=ocp.args.JsonSave(data), config=ocp.args.JsonSave(config)
        )
        held_out = {name: float(value) for name, value in (metrics or {}).items()}  # of None Orbax would warn
        self.manager.save(step, args=items, metrics=held_out, force=True)

    def preempted(self, step: int) -> bool:
        """Whether any process of a cluster got SIGTERM; true at the same step on all of them."""
        return jax.process_count() > 1 and self.manager.reached_preemption(step)

    def newest(
        self,
        abstract: Callable[[dict[str, Any], dict[str, Any]], Any],
        *,
        partial: bool = False,
        only: int | None = None,
    ) -> Restored | None:
        """Restores the newest checkpoint that is whole; those that are not are named and set aside.

        Args:
          abstract: from the checkpoint's config and data state to the tree of `jax.ShapeDtypeStruct` to restore, with
            the shardings wanted now. It raises ValueError where that config does not fit, which is not caught here.
          partial: the tree may leave out parts of the state.
          only: the step of the one checkpoint that may be read; None for all.
        """
        for step, config, data in self.readable(only):
            wanted = abstract(config, data)
            try:
                state = self.restore_state(step, wanted, partial=partial)
            except (ValueError, OSError, KeyError, TypeError) as error:
                self.set_aside(step, error)
                continue
            return Restored(step, state, data, config)
        return None

    def readable(self, only: int | None = None) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
        """Step, config and data state of each checkpoint, or of one, whose small files can be read, newest first."""
        for step in sorted(self.manager.all_steps(), reverse=True):
            if only not in (None, step):
                continue
            try:
                items = ocp.args.Composite(data=ocp.args.JsonRestore(), config=ocp.args.JsonRestore())
                small = self.manager.restore(step, args=items)
                config, data = small["config"], small["data"]
            except (ValueError, OSError, KeyError, TypeError) as error:
                self.set_aside(step, error)
                continue
            yield step, config, data

    def restore_state(self, step: int, wanted: Any, *, partial: bool) -> Any:
        """One checkpoint's state; arrays go straight to the shardings wanted."""
        args = ocp.checkpoint_utils.construct_restore_args(wanted)
        item = ocp.args.PyTreeRestore(wanted, restore_args=args, partial_restore=partial)
        return self.manager.restore(step, args=ocp.args.Composite(state=item))["state"]

    def set_aside(self, step: int, error: Exception) -> None:
        """Renames a broken checkpoint, so that its step can be written again and nothing is lost."""
        logging.warning(
            "checkpoint %d in %s is not whole and is set aside as %d.broken: %s", step, self.folder, step, error
        )
        if jax.process_index() == 0 and not self.read_only:
            (self.folder / str(step)).rename(self.folder / f"{step}.broken")
        multihost_utils.sync_global_devices(f"set aside {step}")
        self.manager.reload()  # it remembers which steps there are


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a small file whole or not at all."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    temporary.replace(path)
