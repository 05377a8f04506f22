"""The one impure loop: devices, clocks, signals and files around a pure step."""

import contextlib
import dataclasses
import datetime
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from rich.console import Console

from vqgan_jax import config as configs
from vqgan_jax.data import storage
from vqgan_jax.nn import fields
from vqgan_jax.train import metrics as metrics_lib
from vqgan_jax.train import program as programs
from vqgan_jax.train import sharding, stored, trackers
from vqgan_jax.train.checkpoint import Checkpoints, gathered
from vqgan_jax.train.program import Config, Program
from vqgan_jax.train.state import TrainState
from vqgan_jax.train.watch import Goodput, Profile, Stop, deadline, tracking

Evaluator = Callable[[TrainState, int], dict[str, float]]  # of a state and its step
KEPT = (
    "stage",
    "start.freeze",
    "start.fingerprint",
    "tokenizer.fingerprint",
    "transformer.order",
    "transformer.positions",
    "condition.kind",
)
MAX_SKIPPED = 10  # steps in a row that are not finite; one batch may be bad, eleven are a run that went astray


def resume(program: Program, checkpoints: Checkpoints) -> Any:
    """The newest whole checkpoint, or None. Optimisers that a converted model came without begin anew.

    Raises:
      ValueError: the checkpoint's config makes other arrays than this one, or is of another stage or tokenizer.
    """
    config, workdir = fields.write(program.config), checkpoints.folder.parent

    def abstract(saved: dict[str, Any], data: dict[str, Any]) -> Any:
        saved = stored.current(saved)
        changed = differences(saved, config)
        if kept := [change for change in changed if change.partition(":")[0] in KEPT]:
            raise ValueError(
                f"a run goes on with the {', '.join(KEPT)} that it began with; to go on in {workdir} would change "
                f"{', '.join(kept)}. Give back the old ones, or another --workdir."
            )
        before = programs.abstract_state(configs.read(saved), program.mesh)
        if leaf := sharding.differing_leaf(before, program.abstract):
            name, old, new = leaf
            raise ValueError(
                f"the config must make the arrays of the run that is already in {workdir}; `{name}` was {old} and is "
                f"{new} after changing {', '.join(changed)}. Set these back, or give another --workdir."
            )
        whole = {field.name: getattr(program.abstract, field.name) for field in dataclasses.fields(program.abstract)}
        return program.abstract if data else {name: part for name, part in whole.items() if name != "opt_state"}

    restored = checkpoints.newest(abstract, partial=True)
    if restored is None or restored.data:
        return restored
    if checkpoints.holds(restored.step, "opt_state"):  # at first converted models had optimisers and no data's state
        again = checkpoints.newest(lambda *_: {"opt_state": program.abstract.opt_state}, partial=True)
        assert again is not None
        assert again.step == restored.step
        return restored._replace(state=TrainState(**again.state, **restored.state))
    where = jax.tree.map(lambda leaf: leaf.sharding, program.abstract.opt_state)
    opt_state = jax.jit(program.stage.optimizer_state, out_shardings=where)(restored.state["params"])
    return restored._replace(state=TrainState(opt_state=opt_state, **restored.state))


def differences(old: dict[str, Any], new: dict[str, Any], path: str = "") -> list[str]:
    """`section.key: old -> new` for each value that differs; lists and tuples are alike."""
    changed = []
    for key in old.keys() | new.keys():
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changed += differences(a, b, f"{path}{key}.")
        elif (list(a) if isinstance(a, tuple) else a) != (list(b) if isinstance(b, tuple) else b):
            changed.append(f"{path}{key}: {a} -> {b}")
    return sorted(changed)


class Recorder:
    """Takes each step's metrics to the host one step late, checks them, and writes a window of them now and then."""

    def __init__(
        self, program: Program, checkpoints: Checkpoints, writer: metrics_lib.Writer, goodput: Goodput, console: Console
    ):
        self.program, self.config = program, program.config
        self.checkpoints, self.writer, self.goodput, self.console = checkpoints, writer, goodput, console
        self.window, self.pending, self.in_a_row = metrics_lib.Window(), None, 0

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """Keeps this step's metrics and records those of the step before, which the device has finished."""
        self.flush()
        self.pending = step, metrics

    def flush(self) -> None:
        """Records what is kept.

        Raises:
          FloatingPointError: a metric is not finite, and with config.optimizer.nonfinite "skip" more than
            `MAX_SKIPPED` steps in a row were skipped for that, or one is of a step that was not.
        """
        if self.pending is None:
            return
        with self.goodput.section("steps"):
            (step, metrics), self.pending = jax.device_get(self.pending), None
        self.in_a_row = self.in_a_row + 1 if metrics.get("skipped") else 0
        bad = next((name for name, value in metrics.items() if not np.all(np.isfinite(value))), None)
        if bad and not 0 < self.in_a_row <= MAX_SKIPPED:
            self.writer.scalars(step, "train", {"not_finite": 1.0})  # for a report; a resumed run drops it
            skipped = f", after {MAX_SKIPPED} steps skipped in a row" if self.in_a_row else ""
            raise FloatingPointError(
                f"every metric must be finite; `{bad}` is {metrics[bad]} at step {step}{skipped}. The last good "
                f"checkpoint is step {self.checkpoints.latest} in {self.checkpoints.folder}. "
                "Lower config.optimizer.learning_rate or set optimizer.clip_norm, then run the same command again."
            )
        if bad:
            self.console.print(f"step {step} is skipped: `{bad}` is {metrics[bad]}")
        self.window.add(metrics)
        if step % self.config.log.metrics_every == 0:
            values = self.goodput.take(self.window.steps) | self.window.take(self.config.batch_size)
            self.writer.scalars(step, "train", values)
            rate = values.get("images_per_second", 0.0)
            left = (self.config.steps - step) * self.config.batch_size / rate if rate else 0.0
            self.show(
                step,
                values,
                self.program.stage.progress_metrics,
                f"  eta {datetime.timedelta(seconds=round(left))}" if rate else "",
            )

    def held_out(self, step: int, values: dict[str, float], sheets: dict[str, np.ndarray]) -> None:
        """Writes an evaluation."""
        self.writer.scalars(step, "eval", values)
        for name, sheet in sheets.items():
            self.writer.picture(step, name, sheet)
        self.show(step, values, tuple(values), "  [cyan]held out[/]")
        self.window.pause()

    def show(self, step: int, values: dict[str, float], names: tuple[str, ...], tail: str) -> None:
        """One line for people."""
        if self.writer.enabled:
            shown = "  ".join(f"{name} [bold]{values[name]:.4g}[/]" for name in names if name in values)
            self.console.print(f"[dim]step[/] {step:>6}  {shown}{tail}", highlight=False, soft_wrap=True)


def train(
    config: Config,
    workdir: epath.Path,
    console: Console,
    *,
    evaluator: Callable[[Config, epath.Path], Evaluator] | None = None,
    profile: tuple[int, int] | None = None,
) -> bool:
    """Trains until the config's last step, from the newest checkpoint in `workdir` where there is one.

    Args:
      config: of the run.
      workdir: an absolute path, of this machine or of a bucket.
      console: for people.
      evaluator: makes what measures `config.log.eval_metrics`, such as `evaluate.of_training.evaluator`.
      profile: the first and the last step of which a trace is written, into `workdir / "profile"`.

    Returns:
      Whether the last step was reached; if not, a signal stopped the run and everything is saved.

    Raises:
      ValueError: config, data or workdir do not fit together.
      FloatingPointError: a loss or a norm is not finite.
      TimeoutError: the data do not come.
    """
    with Stop() as stop, Goodput() as goodput, contextlib.ExitStack() as stack:
        with goodput.section("start"):
            first_process = jax.process_index() == 0
            package = trackers.load(config.log.tracker if first_process else "")  # before anything takes minutes
            mesh = programs.make_mesh(config)
            program = programs.open_program(config, mesh)
            config, batches = program.config, program.batches()
            measure = evaluator_of(evaluator, config, workdir)
            checkpoints = stack.enter_context(Checkpoints(workdir, keep=config.log.keep, best=program.stage.best))
            state, first = begin(program, checkpoints, batches, console)
            if first_process:
                storage.write_json(workdir / "config.json", stored.to_json(config))
            tracker = trackers.Tracker(package, workdir, fields.write(config)) if package else None
            writer = metrics_lib.Writer(workdir, resume_from=first, enabled=first_process, tracker=tracker)
            stack.callback(writer.close)
            key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=sharding.replicated(mesh))()
            seconds = config.data.timeout_seconds
        goodput.recall(writer.kept, writer.dropped)
        recorder = Recorder(program, checkpoints, writer, goodput, console)

        def evaluate(step: int, state: TrainState) -> dict[str, float]:
            """Measures on held-out data, and writes the figures."""
            with goodput.section("evaluation"):
                results, sheets = program.evaluate(state)
                results |= measure(state, step)
                recorder.held_out(step, results, sheets)
                writer.commit()
            return results

        if owes_evaluation(first, config, writer):
            evaluate(first, state)
        if first >= config.steps:
            return True
        writer.scalars(first, "goodput", goodput.shares())
        with tracking(console) as track, Profile(workdir / "profile", profile) as trace:
            stopping, advance = False, track("steps", config.steps)
            advance(first)
            for step in range(first + 1, config.steps + 1):
                with trace.step(step):
                    with goodput.section("data"), deadline(seconds, f"batch of step {step}", config.data.source):
                        batch = sharding.put_batch(next(batches), mesh)
                    with goodput.section("steps" if step > first + 1 else "compile"):
                        state, metrics = program.step(state, program.frozen, batch, key)
                    recorder.step(step, metrics)
                trace.done(step, metrics)
                advance(step)
                stopping = stop.requested or checkpoints.preempted(step)
                evaluating = is_evaluated(step, config) and not stopping
                saving = stopping or step == config.steps or step % config.log.checkpoint_every == 0
                if evaluating or saving:
                    recorder.flush()  # nothing unchecked is evaluated or saved
                results = evaluate(step, state) if evaluating else None
                if saving:
                    writer.scalars(step, "goodput", goodput.shares())  # first: a resumed run reads them back
                    with goodput.section("checkpoint"):
                        writer.commit()
                        checkpoints.save(step, state, batches.get_state(), stored.to_json(config), results)
                if stopping:
                    console.print(f"stopped at step {step}; saved. Run the same command to go on.")
                    break
        with goodput.section("checkpoint"):
            checkpoints.wait()
        console.print(goodput.line(), highlight=False, soft_wrap=True)
        return not stopping


def is_evaluated(step: int, config: Config) -> bool:
    """Whether a run measures on held-out data after this step."""
    return step > 0 and (step % config.log.eval_every == 0 or step == config.steps)


def owes_evaluation(step: int, config: Config, writer: metrics_lib.Writer) -> bool:
    """Whether a run that goes on from this step was stopped, by a signal, before it could evaluate there.

    Process 0, which has the file of metrics, decides for all.
    """
    return is_evaluated(step, config) and not gathered(writer.holds(step, "eval"))[0]


def evaluator_of(
    evaluator: Callable[[Config, epath.Path], Evaluator] | None, config: Config, workdir: epath.Path
) -> Evaluator:
    """What measures `config.log.eval_metrics`; nothing where there are none.

    Raises:
      ValueError: there are some and no evaluator, or one that the run cannot have.
    """
    if not config.log.eval_metrics:
        return lambda state, step: {}
    if evaluator is None:
        raise ValueError(
            f"`config.log.eval_metrics` needs an evaluator; got {config.log.eval_metrics} and none. Give "
            "`evaluate.of_training.evaluator` to `loop.train`, or set the key to ()."
        )
    return evaluator(config, workdir)


def begin(program: Program, checkpoints: Checkpoints, batches: Any, console: Console) -> tuple[Any, int]:
    """The state and the step that it is at: of the newest checkpoint, to which the batches go too, or fresh."""
    workdir, restored = checkpoints.folder.parent, resume(program, checkpoints)
    if restored is None:
        console.print(f"starting in {workdir}: compiling, a minute or so")
        return program.start(), 0
    if restored.data:  # a converted model has seen no data of ours
        batches.set_state(restored.data)
    console.print(f"resumed from step {restored.step} in {workdir}")
    return restored.state, restored.step
