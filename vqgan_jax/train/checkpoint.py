"""Checkpoints: state, data iterator and config of one step in one folder, by Orbax. The one file that knows Orbax."""

import contextlib
import functools
import itertools
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint import options as options_lib

from vqgan_jax.data import storage
from vqgan_jax.train import compat

T = TypeVar("T")

WAITS = (1.0, 3.0, 9.0)  # seconds before each further try of a read that failed
PATIENCE = 1800  # seconds that a process waits for the others to have read theirs
WHOLE, BROKEN, UNREAD = range(3)  # what a process finds of a checkpoint
BUSY = re.compile(  # states of a storage, not of a checkpoint, in TensorStore's words
    "UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|ABORTED|CANCELLED|INTERNAL|UNKNOWN|PERMISSION_DENIED"
    "|UNAUTHENTICATED"
)
S3, GS = "s3://", "gs://"
meetings = itertools.count()


class Restored(NamedTuple):
    """What a checkpoint held."""

    step: int
    state: Any
    data: dict[str, Any]
    config: dict[str, Any]


class Manager(ocp.CheckpointManager):
    """Orbax's, which reads the held-out figures of all checkpoints as it starts."""

    def metrics(self, step: int) -> Any:
        """Those of a step; None, as where there are none, if their file is broken: the checkpoint may be whole."""
        read = super().metrics
        metrics, errors = tried(lambda: (read(step),), f"what was held out at step {step} in {self.directory}")
        if metrics is None and verdict(errors) != BROKEN:
            raise errors[-1]
        return metrics[0] if metrics else None


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
        place = options_lib.AtomicityMode.COMMIT_FILE if storage.in_bucket(workdir) else options_lib.AtomicityMode.AUTO
        options = ocp.CheckpointManagerOptions(
            atomicity_options=options_lib.AtomicityOptions(mode=place),  # a bucket renames by copying
            save_decision_policy=policies.PreemptionCheckpointingPolicy(),  # besides those that the loop forces
            best_fn=value,  # without it no metrics are written, and the best is forgotten at the next start
            best_mode="min",
            preservation_policy=policies.AnyPreservationPolicy(preserve),
            create=False,  # by Orbax it is a meeting of all processes, which could not be tried again by one
        )
        self.read_only = read_only  # Orbax's own warns about itself at every loading
        self.folder = workdir / "checkpoints"
        teach_orbax()
        if not read_only and jax.process_index() == 0:
            storage.make_folder(self.folder)
        self.manager = must(lambda: Manager(self.folder, options=options), str(self.folder))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        with self.writing():
            self.manager.close()

    def holds(self, step: int, part: str) -> bool:
        """Whether the state of a checkpoint has this part at its top."""
        state = self.folder / str(step) / "state"
        return part in must(lambda: ocp.PyTreeCheckpointHandler().metadata(state).tree, str(state))

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
        with self.writing():
            self.manager.wait_until_finished()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Names the newest whole checkpoint where Orbax fails to write one, which it says at whatever comes next."""
        try:
            yield
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
        with self.writing():
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
        """Restores the newest checkpoint that every process can read; those that are broken are set aside.

        Every process of a cluster must call this; all get the same step, or all an error.

        Args:
          abstract: from the checkpoint's config and data state to the tree of `jax.ShapeDtypeStruct` to restore, with
            the shardings wanted now. It raises ValueError where that config does not fit, which is not caught here.
          partial: the tree may leave out parts of the state.
          only: the step of the one checkpoint that may be read; None for all.

        Raises:
          OSError: a process cannot read a checkpoint, and its tries do not prove that it is broken.
        """
        for step, config, data in self.readable(only):
            shapes = abstract(config, data)
            state = self.agreed(step, lambda step=step, shapes=shapes: self.read_state(step, shapes, partial=partial))
            if state is not None:
                return Restored(step, state, data, config)
        return None

    def readable(self, only: int | None = None) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
        """Step, config and data state of each checkpoint, or of one, that every process can read, newest first."""
        below = 2**31 - 1
        while (step := self.newest_below(below, only)) >= 0:
            below = step
            small = self.agreed(step, lambda step=step: self.read_small(step))
            if small is not None:
                yield step, *small

    def newest_below(self, limit: int, only: int | None) -> int:
        """The newest step that any process sees, below `limit`; -1 for none."""
        steps = (step for step in self.manager.all_steps() if step < limit and only in (None, step))
        return int(gathered(max(steps, default=-1)).max())

    def agreed(self, step: int, read: Callable[[], T]) -> T | None:
        """What this process reads, once every process has read its own; None if one of them finds it broken.

        A broken checkpoint is set aside.

        Raises:
          OSError: a process cannot read it, and its tries do not prove that it is broken.
        """
        value, errors = tried(lambda: self.seen(step, read), f"checkpoint {step} in {self.folder}")
        status = WHOLE if value is not None else verdict(errors)
        everyone = gathered(status)
        if (everyone == UNREAD).any():
            process = int(np.argmax(everyone == UNREAD))
            reason = errors[-1] if status == UNREAD else "its own message tells why"
            raise OSError(
                f"checkpoint {step} in {self.folder} must be readable by every process; process {process} of "
                f"{len(everyone)} cannot, after {len(WAITS) + 1} tries: {reason}. It may be whole, so nothing is "
                "renamed. See to the storage and run the same command again; or move that checkpoint away to go on "
                "from an older one."
            ) from (errors[-1] if errors else None)
        if (everyone == BROKEN).any():
            process = int(np.argmax(everyone == BROKEN))
            self.set_aside(step, str(errors[-1]) if status == BROKEN else f"process {process} found it broken")
            return None
        return value

    def seen(self, step: int, read: Callable[[], T]) -> T:
        """What is read of a checkpoint; OSError if this process does not see its folder at all."""
        if not (self.folder / str(step)).exists():
            raise OSError(f"{self.folder / str(step)} is not seen by process {jax.process_index()}; all must see it")
        return read()

    def read_small(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """One checkpoint's config and data state."""
        handler = ocp.JsonCheckpointHandler()  # unlike the manager's reads, its own are no meeting of all processes
        config, data = (dict(handler.restore(self.folder / str(step) / name)) for name in ("config", "data"))
        return config, data

    def read_state(self, step: int, shapes: Any, *, partial: bool) -> Any:
        """One checkpoint's state; arrays go straight to the shardings of `shapes`."""
        args = ocp.checkpoint_utils.construct_restore_args(shapes)
        item = ocp.args.PyTreeRestore(shapes, restore_args=args, partial_restore=partial)
        return ocp.PyTreeCheckpointHandler().restore(self.folder / str(step) / "state", args=item)

    def set_aside(self, step: int, reason: str) -> None:
        """Renames a broken checkpoint, so that its step can be written again and nothing is lost."""
        logging.warning(
            "checkpoint %d in %s is not whole and is set aside as %d.broken: %s", step, self.folder, step, reason
        )
        if jax.process_index() == 0 and not self.read_only:
            names = (f"{step}.broken{again or ''}" for again in itertools.count())
            free = next(name for name in names if not (self.folder / name).exists())
            storage.move_folder(self.folder / str(step), self.folder / free)
        gathered(step)  # nobody looks before it is done
        must(self.manager.reload, str(self.folder))  # it remembers which steps there are


def tried(read: Callable[[], T], name: str) -> tuple[T | None, list[Exception]]:
    """What is read, or None, and the errors of all tries; the last one is no error if there is a value."""
    errors = []
    for wait in (*WAITS, None):
        try:
            return read(), errors
        except Exception as error:  # of storage clients, which have no common class
            errors.append(error)
            if wait is not None:
                logging.warning("%s cannot be read and is tried again in %g s: %s", name, wait, error)
                time.sleep(wait)
    return None, errors


def must(read: Callable[[], T], name: str) -> T:
    """What is read, after as many tries as it takes and `WAITS` allows; the last error if none succeeds."""
    value, errors = tried(lambda: (read(),), name)
    if value is None:
        raise errors[-1]
    return value[0]


def verdict(errors: list[Exception]) -> int:
    """BROKEN if two tries or more say so; else the storage may be to blame, and nothing is known."""
    return BROKEN if sum(map(proves_broken, errors)) > 1 else UNREAD


def proves_broken(error: Exception) -> bool:
    """Whether a try of reading came to files that are missing or not what they should be."""
    if isinstance(error, ValueError):
        return not BUSY.search(str(error))
    return isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | KeyError | TypeError)


def gathered(value: int) -> np.ndarray:
    """A number of each process, in their order. All must call it; they wait for each other by the coordinator."""
    if jax.process_count() > 1:  # a collective alone would give up on a slow one within half a minute on CPUs
        meet = ocp.multihost.get_barrier_sync_fn()
        meet(key=f"vqgan_jax checkpoints {next(meetings)}", timeout_ms=1000 * PATIENCE)
    return np.atleast_1d(multihost_utils.process_allgather(np.int32(value)))


@functools.cache
def teach_orbax() -> None:
    """Teaches Orbax to write arrays to s3://, which it knows as a place of small files only: it takes gs:// or a disk.

    Once a process: TensorStore's description of a place in s3:// is that of gs:// with another driver.
    """
    orbax = compat.orbax_places()
    build = orbax.build_kvstore_tspec

    @functools.wraps(build)
    def build_kvstore_tspec(directory: str, name: str | None = None, **options: Any) -> dict[str, Any]:
        if not directory.startswith(S3):
            return build(directory, name, **options)
        return in_s3(build(GS + directory.removeprefix(S3), name, **options))

    orbax.build_kvstore_tspec = build_kvstore_tspec


def in_s3(spec: Any) -> Any:
    """A description with each driver of gs:// in it replaced."""
    if not isinstance(spec, dict):
        return spec
    if spec.get("driver") in ("gcs", "gcs_grpc"):
        return {"driver": "s3", "bucket": spec["bucket"], "path": spec["path"], **connection()}
    return {key: in_s3(value) for key, value in spec.items()}


def connection() -> dict[str, Any]:
    """What TensorStore does not read from AWS's own variables by itself."""
    options: dict[str, Any] = {}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        options |= {"endpoint": endpoint, "aws_region": region}
    if "AWS_ACCESS_KEY_ID" in os.environ:
        options["aws_credentials"] = {"type": "environment"}
    return options
