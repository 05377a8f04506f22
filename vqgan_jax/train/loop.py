"""The one impure loop: devices, clocks, signals and files around a pure step."""

import dataclasses
import datetime
import functools
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vqgan_jax import config as configs
from vqgan_jax import data, pictures
from vqgan_jax.convert.lpips import load_lpips
from vqgan_jax.train import metrics as metrics_lib
from vqgan_jax.train import sharding, stage1
from vqgan_jax.train.checkpoint import Checkpoints, write_json

PREVIEWS = 16
SHOWN = (
    "rec_loss", "perceptual_loss", "generator_loss", "discriminator_loss", "adaptive_weight", "codebook_usage",
    "images_per_second",
)  # fmt: skip


class Stop:
    """Turns SIGTERM and the first Ctrl-C into a flag; a second Ctrl-C interrupts as usual.

    In a cluster the signal is left to `jax.distributed`, which brings it to all processes at the same step.
    """

    requested = False

    def __enter__(self) -> "Stop":
        signals = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self.previous = {number: signal.signal(number, self.request) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def request(self, *_: Any) -> None:
        """The signals' handler."""
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclasses.dataclass(frozen=True)
class Program:
    """A run's functions, jitted once with the shardings of everything that goes in and comes out."""

    mesh: jax.sharding.Mesh
    abstract: Any  # the state: shapes, dtypes and shardings
    frozen: dict[str, Any]
    init: Any
    step: Any
    evaluate: Any
    reconstruct: Any
    gather: Any


def abstract_state(config: configs.Stage1, mesh: jax.sharding.Mesh) -> Any:
    """Shapes, dtypes and shardings of the state; nothing is allocated."""
    size, channels = config.data.image_size, config.model.image_channels
    images = jax.ShapeDtypeStruct((1, config.batch_size, size, size, channels), jnp.uint8)
    state = jax.eval_shape(functools.partial(stage1.init, stage1.build(config)), jax.random.key(0), images)
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    return jax.tree.map(place, state, sharding.shardings(state, mesh))


def compile_program(config: configs.Stage1, mesh: jax.sharding.Mesh) -> Program:
    """Binds the config; the compiler itself runs at each function's first call."""
    task, abstract = stage1.build(config), abstract_state(config, mesh)
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    everywhere, rows = sharding.replicated(mesh), jax.NamedSharding(mesh, sharding.BATCH)
    frozen = jax.device_put({"lpips": load_lpips()}, everywhere)
    generator = where.params["generator"]
    init = functools.partial(stage1.init, task, kmeans_start=config.quantizer.kmeans_batches > 0)
    return Program(
        mesh=mesh,
        abstract=abstract,
        frozen=frozen,
        init=jax.jit(init, out_shardings=where),
        step=jax.jit(
            functools.partial(stage1.train_step, task),
            in_shardings=(where, everywhere, rows, everywhere),
            out_shardings=(where, everywhere),
            donate_argnums=0,
        ),
        evaluate=jax.jit(
            functools.partial(stage1.eval_step, task),
            in_shardings=(generator, everywhere, rows, rows),
            out_shardings=everywhere,
        ),
        reconstruct=jax.jit(
            lambda generator, images: stage1.reconstruct(task, generator, images)[0],
            in_shardings=(generator, rows),
            out_shardings=everywhere,
        ),
        gather=jax.jit(lambda images: images, in_shardings=rows, out_shardings=everywhere),
    )


def training_batches(config: configs.Stage1, source: data.Source) -> data.Batches:
    """This process's share of the training batches, from the first one on."""
    d = config.data
    return data.training_batches(
        source, image_size=d.image_size, resize=d.resize, crop=d.crop, flip=d.flip, small=d.small,
        batch_size=config.batch_size, seed=config.seed, num_threads=d.num_threads,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )  # fmt: skip


def open_split(config: configs.Stage1, split: str) -> data.Source:
    """The source of the config's data."""
    d = config.data
    return data.open_source(d.source, split=split, data_dir=d.data_dir, image_size=d.image_size)


def start(config: configs.Stage1, program: Program, source: data.Source) -> Any:
    """A fresh state, born sharded, from the first batches."""
    batches = training_batches(config, source)
    images = np.stack([next(batches)["image"] for _ in range(max(config.quantizer.kmeans_batches, 1))])
    spec = jax.P(None, *sharding.BATCH)
    placed = sharding.put_batch({"image": images}, program.mesh, spec=spec)["image"]
    return program.init(jax.random.key(config.seed), placed)


def resume(config: configs.Stage1, program: Program, checkpoints: Checkpoints) -> Any:
    """The newest whole checkpoint, or None.

    Raises:
      ValueError: the checkpoint's config makes other arrays than this one.
    """

    def abstract(saved: dict[str, Any]) -> Any:
        shapes = lambda tree: {
            sharding.path_name(p): (x.shape, x.dtype) for p, x in jax.tree_util.tree_leaves_with_path(tree)
        }
        old, new = shapes(abstract_state(configs.parse(saved), program.mesh)), shapes(program.abstract)
        if old != new:
            changed = differences(saved, dataclasses.asdict(config))
            leaf = next(name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name))
            raise ValueError(
                f"the config must make the arrays of the run that is already in {checkpoints.folder.parent}; `{leaf}` "
                f"was {old.get(leaf, 'absent')} and is {new.get(leaf, 'absent')} after changing {', '.join(changed)}. "
                "Set these back, or give another --workdir."
            )
        return program.abstract

    return checkpoints.newest(abstract)


def differences(old: dict[str, Any], new: dict[str, Any], path: str = "") -> list[str]:
    """`section.key: old -> new` for each value that differs; lists and tuples are alike."""
    found = []
    for key in old.keys() | new.keys():
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{path}{key}.")
        elif (list(a) if isinstance(a, tuple) else a) != (list(b) if isinstance(b, tuple) else b):
            found.append(f"{path}{key}: {a} -> {b}")
    return sorted(found)


def evaluate(config: configs.Stage1, program: Program, state: Any, source: data.Source) -> tuple[dict[str, float], Any]:
    """Held-out metrics of the averaged parameters where there are any, and a sheet of originals and reconstructions."""
    generator = state.ema.get("generator", state.params["generator"])
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    totals: dict[str, np.ndarray] = {}
    batches = functools.partial(
        data.evaluation_batches, image_size=config.data.image_size, batch_size=config.batch_size, **share
    )
    for batch in batches(data.spread(source, config.log.eval_examples)):
        placed = sharding.put_batch(batch, program.mesh)
        sums = jax.device_get(program.evaluate(generator, program.frozen, placed["image"], placed["mask"]))
        totals = {name: totals.get(name, 0) + value for name, value in sums.items()}
    count = totals.pop("count")
    results = metrics_lib.code_statistics(totals.pop("code_hits"))
    results |= {name: float(value / count) for name, value in totals.items()}
    shown: list[tuple[np.ndarray, np.ndarray]] = []
    for batch in batches(data.spread(source, PREVIEWS)):
        images = sharding.put_batch(batch, program.mesh)["image"]
        shown.append(jax.device_get((program.gather(images), program.reconstruct(generator, images))))
    originals, recons = (np.concatenate(images)[: min(PREVIEWS, len(source))] for images in zip(*shown, strict=True))
    return results, pictures.pairs(originals, recons)


class Recorder:
    """Takes each step's metrics to the host one step late, checks them, and writes a window of them now and then."""

    def __init__(self, config: configs.Stage1, checkpoints: Checkpoints, writer: metrics_lib.Writer, console: Console):
        self.config, self.checkpoints, self.writer, self.console = config, checkpoints, writer, console
        self.window, self.pending = metrics_lib.Window(), None

    def step(self, step: int, metrics: dict[str, Any]) -> None:
        """Keeps this step's metrics and records those of the step before, which the device has finished."""
        self.flush()
        self.pending = step, metrics

    def flush(self) -> None:
        """Records what is kept.

        Raises:
          FloatingPointError: a metric is not finite.
        """
        if self.pending is None:
            return
        (step, metrics), self.pending = jax.device_get(self.pending), None
        for name, value in metrics.items():
            if not np.all(np.isfinite(value)):
                raise FloatingPointError(
                    f"every metric must be finite; `{name}` is {value} at step {step}. The last good checkpoint is "
                    f"step {self.checkpoints.latest} in {self.checkpoints.folder}. "
                    "Lower config.optimizer.learning_rate or set optimizer.clip_norm, then run the same command again."
                )
        self.window.add(metrics)
        if step % self.config.log.metrics_every == 0:
            values = self.window.take(self.config.batch_size)
            self.writer.scalars(step, "train", values)
            rate = values.get("images_per_second", 0.0)
            left = (self.config.steps - step) * self.config.batch_size / rate if rate else 0.0
            self.show(step, values, SHOWN, f"  eta {datetime.timedelta(seconds=round(left))}" if rate else "")

    def held_out(self, step: int, values: dict[str, float], sheet: np.ndarray) -> None:
        """Writes an evaluation."""
        self.writer.scalars(step, "eval", values)
        self.writer.picture(step, "reconstructions", sheet)
        self.show(step, values, tuple(values), "  [cyan]held out[/]")
        self.window.pause()

    def show(self, step: int, values: dict[str, float], names: tuple[str, ...], tail: str) -> None:
        """One line for people."""
        if self.writer.enabled:
            shown = "  ".join(f"{name} [bold]{values[name]:.4g}[/]" for name in names if name in values)
            self.console.print(f"[dim]step[/] {step:>6}  {shown}{tail}", highlight=False, soft_wrap=True)


def progress_bar(console: Console) -> Progress:
    """Steps, elapsed and remaining time; on a terminal only, since a log has the lines."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


def train(config: configs.Stage1, workdir: epath.Path, console: Console) -> bool:
    """Trains until the config's last step, from the newest checkpoint in `workdir` where there is one.

    Returns:
      Whether the last step was reached; if not, a signal stopped the run and everything is saved.

    Raises:
      ValueError: config, data or workdir do not fit together.
      FloatingPointError: a loss or a norm is not finite.
    """
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
    source, held_out = open_split(config, config.data.train_split), open_split(config, config.data.eval_split)
    program = compile_program(config, mesh)
    batches = training_batches(config, source)
    with Stop() as stop, Checkpoints(workdir, keep=config.log.keep) as checkpoints:
        restored = resume(config, program, checkpoints)
        if restored:
            state, first = restored.state, restored.step
            batches.set_state(restored.data)
            console.print(f"resumed from step {first} in {workdir}")
        else:
            console.print(f"starting in {workdir}: compiling, a minute or so")
            state, first = start(config, program, source), 0
        if jax.process_index() == 0:
            write_json(workdir / "config.json", dataclasses.asdict(config))
        writer = metrics_lib.Writer(workdir, resume_from=first, enabled=jax.process_index() == 0)
        recorder = Recorder(config, checkpoints, writer, console)
        key = jax.jit(lambda: jax.random.key(config.seed), out_shardings=sharding.replicated(mesh))()
        with progress_bar(console) as progress:
            bar = progress.add_task("", total=config.steps, completed=first)
            for step in range(first + 1, config.steps + 1):
                state, metrics = program.step(state, program.frozen, sharding.put_batch(next(batches), mesh), key)
                recorder.step(step, metrics)
                progress.update(bar, completed=step)
                last = step == config.steps
                stopping = stop.requested or checkpoints.preempted(step)
                evaluating = (step % config.log.eval_every == 0 or last) and not stopping
                results = None
                if evaluating or stopping or last or step % config.log.checkpoint_every == 0:
                    recorder.flush()  # nothing unchecked is evaluated or saved
                    if evaluating:
                        results, sheet = evaluate(config, program, state, held_out)
                        recorder.held_out(step, results, sheet)
                    if stopping or last or step % config.log.checkpoint_every == 0:
                        checkpoints.save(step, state, batches.get_state(), dataclasses.asdict(config), results)
                if stopping and not last:
                    console.print(f"stopped at step {step}; saved. Run the same command to go on.")
                    break
        writer.close()
        return first >= config.steps or last
