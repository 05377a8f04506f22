"""What the loop knows of a stage: its state, its jitted functions and its data, bound to a config and a mesh."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from vqgan_jax import config as configs
from vqgan_jax import data, models
from vqgan_jax.convert.dinov2 import load_dinov2
from vqgan_jax.convert.lpips import load_lpips
from vqgan_jax.convert.resnet import load_resnet50
from vqgan_jax.train import sharding, watch
from vqgan_jax.train.stage1 import Stage1
from vqgan_jax.train.stage2 import Stage2
from vqgan_jax.train.state import skipping

Config = configs.Stage1 | configs.Stage2
START = jax.P(None, *sharding.BATCH)  # batches of the start: one after the other, each cut into rows


@dataclasses.dataclass(frozen=True)
class Program:
    """A stage's functions, each jitted once with the shardings of everything that goes in and comes out.

    Attributes:
      stage: modules, optimisers and weights.
      config: with what was found out at the start, such as the tokenizer's fingerprint.
      mesh: the devices.
      abstract: the state's shapes, dtypes and shardings.
      frozen: parameters that the step reads and never changes.
      source: training examples by number; None where nothing is trained, as in a plan.
      held_out: examples to evaluate on; None likewise.
      step: `(state, frozen, batch, key) -> (state, metrics)`; the state is donated.
      init: `(key, images, generator) -> state`, a fresh one, born sharded.
      generator: a tokenizer's parameters to begin with, on the host; None begins at random.
      measure: `(params, frozen, batch, mask) -> sums` of the network that is evaluated.
      show: `(params, frozen, batch, key) -> arrays` of a sheet.
    """

    stage: Stage1 | Stage2
    config: Any
    mesh: jax.sharding.Mesh
    abstract: Any
    frozen: dict[str, Any]
    source: Any
    held_out: Any
    step: Callable[..., Any]
    init: Callable[..., Any]
    measure: Callable[..., Any]
    show: Callable[..., Any]
    generator: Any = None

    def batches(self) -> data.Batches:
        """This process's share of the training batches, from the first one on."""
        return training_batches(self.config, self.source)

    def start(self) -> Any:
        """A fresh state out of the first batches, as many as the stage reads."""
        key, count, images = jax.random.key(self.config.seed), self.stage.start_batches, None
        if count:
            batches = in_time(self.config, "batch of the start", self.batches())
            images = np.stack([next(batches)["image"] for _ in range(count)])
            images = sharding.put_batch({"image": images}, self.mesh, spec=START)["image"]
        if self.generator is None:
            return self.init(key, images)
        return self.init(key, images, jax.device_put(self.generator, sharding.replicated(self.mesh)))

    def evaluate(self, state: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Held-out figures of the averaged parameters where there are any, and pictures by name."""
        stage, config = self.stage, self.config
        params = state.ema.get(stage.network, state.params[stage.network])
        sums: dict[str, np.ndarray] = {}
        for batch, mask in self.held_out_batches(config.log.eval_examples, config.batch_size):
            values = jax.device_get(self.measure(params, self.frozen, batch, mask))
            sums = {name: sums.get(name, 0) + value for name, value in values.items()}
        return stage.figures(sums), self.sheets(params)

    def sheets(self, params: Any) -> dict[str, np.ndarray]:
        """Pictures by name, of the first held-out examples."""
        shown, key = min(self.stage.previews, len(self.held_out)), jax.random.key(self.config.seed)
        parts = sharding.parts(sharding.BATCH[0], self.mesh)
        size = min(-(-shown // parts) * parts, self.config.batch_size)
        shows = [
            jax.device_get(self.show(params, self.frozen, batch, jax.random.fold_in(key, number)))
            for number, (batch, _) in enumerate(self.held_out_batches(shown, size))
        ]
        arrays = [np.concatenate(arrays)[:shown] for arrays in zip(*shows, strict=True)]
        names = getattr(self.held_out, "category_names", self.held_out.class_names)
        return self.stage.sheets(arrays, self.frozen, names)

    def held_out_batches(self, count: int, batch_size: int) -> Iterator[tuple[dict[str, jax.Array], jax.Array]]:
        """Batches of `count` held-out examples on the devices, and which of their rows are no padding."""
        for arrays in held_out_batches(self.config, self.held_out, count, batch_size):
            batch = sharding.put_batch(arrays, self.mesh)
            mask = batch.pop("mask")
            yield batch, mask


def bind(
    stage: Stage1 | Stage2,
    config: Config,
    mesh: jax.sharding.Mesh,
    frozen: dict[str, Any],
    source: Any = None,
    held_out: Any = None,
) -> Program:
    """Returns the stage's functions, jitted for a mesh; the compiler runs at each function's first call.

    Raises:
      ValueError: the mesh cannot cut the state as the table of shardings wants it.
    """
    abstract = abstract_state(config, mesh)
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    everywhere, rows = sharding.replicated(mesh), jax.NamedSharding(mesh, sharding.BATCH)
    network = where.ema.get(stage.network, where.params[stage.network])
    jitted = functools.partial(jax.jit, out_shardings=everywhere)
    return Program(
        stage=stage,
        config=config,
        mesh=mesh,
        abstract=abstract,
        frozen=frozen,
        source=source,
        held_out=held_out,
        step=compiled_step(stage.train_step, where, mesh, nonfinite=config.optimizer.nonfinite),
        init=jax.jit(stage.init, out_shardings=where),
        measure=jitted(stage.evaluate, in_shardings=(network, everywhere, rows, rows)),
        show=jitted(stage.preview, in_shardings=(network, everywhere, rows, everywhere)),
    )


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


def abstract_state(config: Config, mesh: jax.sharding.Mesh) -> Any:
    """Shapes, dtypes and shardings of a run's state; nothing is allocated."""
    state = models.state_shapes(config)
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    return jax.tree.map(place, state, sharding.shardings(state, mesh, zero1=config.mesh.zero1))


def make_mesh(config: Config, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """The mesh of a config, over all devices or over `devices`; see `sharding.make_mesh`."""
    return sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)


# Runs


def open_program(config: Config, mesh: jax.sharding.Mesh) -> Program:
    """Loads the networks that a run reads, opens its data and binds its stage.

    Raises:
      ValueError: the config does not fit the tokenizer, the data or the mesh.
      FileNotFoundError: there is no tokenizer, or no file of a network that the loss reads.
    """
    sharding.check_batch(config.batch_size, mesh, config.accumulate)
    return OPEN[config.stage](config, mesh)


def open_stage1(config: configs.Stage1, mesh: jax.sharding.Mesh) -> Program:
    """The program of a tokenizer, whose loss reads weights of published networks.

    Raises:
      FileNotFoundError: the tokenizer that it begins with, or a file of such weights, is not there.
      ValueError: that tokenizer is another than before, or of other shapes.
    """
    generator = None
    if config.start.workdir:
        tokenizer = models.load_start(config)
        marked = dataclasses.replace(config.start, fingerprint=models.fingerprint(tokenizer))
        config = dataclasses.replace(config, start=marked)
        generator = jax.device_get(tokenizer.params)
    stage = Stage1.from_config(config)
    load = {"lpips": load_lpips, "resnet50": load_resnet50, "dinov2_vits14": load_dinov2}
    sources = [open_split(config, split) for split in (config.data.train_split, config.data.eval_split)]
    frozen = jax.device_put({name: load[name]() for name in stage.frozen_shapes()}, sharding.replicated(mesh))
    program = bind(stage, config, mesh, frozen, *sources)
    return dataclasses.replace(program, generator=generator)


def open_stage2(config: configs.Stage2, mesh: jax.sharding.Mesh) -> Program:
    """The program of a prior, on images and their tokenizer or on a token cache."""
    tokenizers = models.load_frozen(config)
    config = of_data(models.with_fingerprints(config, *tokenizers))
    sources = [open_examples(config, split) for split in ("train", "validation")]
    rows = jax.NamedSharding(mesh, sharding.BATCH)
    stage = Stage2.from_config(config, tokenizers[0].module, models.condition_module(*tokenizers), rows=rows)
    frozen = jax.device_put(jax.device_get(models.frozen(*tokenizers)), sharding.replicated(mesh))
    return bind(stage, config, mesh, frozen, *sources)


OPEN: dict[int, Callable[[Any, jax.sharding.Mesh], Program]] = {1: open_stage1, 2: open_stage2}


# Data


def share() -> dict[str, Any]:
    """Which part of the data is this process's."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def open_split(config: Config, split: str) -> data.Source:
    """The source of the config's images."""
    d = config.data
    return data.open_source(
        d.source, split=split, data_dir=d.data_dir, image_size=d.image_size, value_range=d.value_range
    )


def of_data(config: configs.Stage2) -> configs.Stage2:
    """The config of a prior whose condition has the classes of the data, where the config leaves them open.

    Raises:
      ValueError: it wants guidance, and there is no condition.
    """
    names = lambda: open_any(config, "train").class_names
    config = dataclasses.replace(config, condition=config.condition.of_classes(names))
    config.check()
    return config


def open_any(config: configs.Stage2, split: str) -> Any:
    """A prior's images, or its token cache, as they are; `split` is "train" or "validation"."""
    d = config.data
    if data.is_cache(d.source):
        return data.open_tokens(d.source, split=split, fingerprint=config.tokenizer.fingerprint)
    return open_split(config, {"train": d.train_split, "validation": d.eval_split}[split])


def open_examples(config: configs.Stage2, split: str) -> Any:
    """What `open_any` opens, if it fits the config.

    Raises:
      ValueError: the cache or the labels do not.
    """
    condition, d, source = config.condition, config.data, open_any(config, split)
    if data.is_cache(d.source):
        facts = {"grid": config.grid, "condition": condition.meaning(d, config.tokenizer)}
        for name, expected in facts.items():
            if getattr(source.plan, name) != expected:
                raise ValueError(
                    f"the token cache must have {name} {expected}; {d.source} has {getattr(source.plan, name)}. Run "
                    "`vqgan tokenize` with this config into another folder."
                )
    condition.check_classes(d.source, source.class_names)
    return source


def training_batches(config: Config, source: Any) -> data.Batches:
    """This process's share of the training batches, of images or of tokens, from the first one on."""
    return data.training_batches(
        source,
        augmentation=config.data.augmentation,
        batch_size=config.batch_size,
        seed=config.seed,
        fields=config.views(),
        num_threads=config.data.num_threads,
        **share(),
    )


def held_out_batches(config: Config, source: Any, count: int, batch_size: int) -> Iterator[Any]:
    """Each of `count` held-out examples once, spread over the source, with a "mask" of what is no padding."""
    source, size, fields = data.spread(source, count), config.data.image_size, config.views()
    batches = data.evaluation_batches(source, image_size=size, batch_size=batch_size, fields=fields, **share())
    return in_time(config, "held-out batch", batches)


def in_time(config: Config, name: str, batches: data.Batches) -> Iterator[Any]:
    """The batches, each within the config's timeout; `name`, and their number, are for the error."""
    return watch.in_time(batches, config.data.timeout_seconds, name, config.data.source)
