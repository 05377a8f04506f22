"""The very programs that run later, lowered from shapes: nothing is allocated and no data or tokenizer is opened.

A prior is planned from tokens, as `vqgan tokenize` writes them: its config names a tokenizer only by codebook and
factor. A run from images encodes them in front of this step, and holds that tokenizer.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vqgan_jax import api, build, models
from vqgan_jax import config as configs
from vqgan_jax import prior as priors
from vqgan_jax.train import program, sharding, stage_of
from vqgan_jax.train.stage1 import Stage1

Config = configs.Stage1 | configs.Stage2
Call = tuple[Callable[..., Any], tuple[Any, ...]]


def without_remat(config: Config) -> Config:
    """The config for counting FLOPs: nothing is computed twice."""
    if isinstance(config, configs.Stage1):
        return config
    return dataclasses.replace(config, transformer=dataclasses.replace(config.transformer, remat="none"))


def items(config: Config) -> int:
    """What a global batch holds: images of a tokenizer, codes of a prior."""
    return config.batch_size * (1 if isinstance(config, configs.Stage1) else math.prod(build.grid(config)))


def call(config: Config, mesh: jax.sharding.Mesh, what: str) -> Call:
    """A jitted function and the shapes, dtypes and shardings of its arguments.

    Args:
      config: its `batch_size` is the global batch.
      mesh: of the devices to compile for.
      what: "step" is the loop's training step; "start" makes a tokenizer's first state, with the k-means start where
        the config has one; "encode" and "decode" are the public functions of a tokenizer, with
        its parameters on every device and the batch cut into rows; "sample" draws grids of codes from a prior whose
        parameters are sharded as in training.

    Raises:
      ValueError: the batch or a parameter cannot be cut as the mesh wants, or the config's stage has no such function.
    """
    sharding.check_batch(config.batch_size, mesh, config.accumulate if what == "step" else 1)
    wanted = {"step": (1, 2), "start": (1,), "encode": (1,), "decode": (1,), "sample": (2,)}[what]
    if config.stage not in wanted:
        raise ValueError(f"`--what={what}` needs a config of stage {wanted[0]}; got one of stage {config.stage}.")
    if what == "step":
        return step(config, mesh)
    if isinstance(config, configs.Stage2):
        return sample(config, mesh)
    return start(config, mesh) if what == "start" else codec(config, mesh, what)


def step(config: Config, mesh: jax.sharding.Mesh) -> Call:
    """The training step, jitted as `train.loop` does it."""
    stage = stage_of(config, rows=jax.NamedSharding(mesh, sharding.BATCH))
    bound = program.bind(stage, config, mesh, whole(stage.frozen_shapes(), mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return bound.step, (bound.abstract, bound.frozen, rows(stage.batch_shapes(config), mesh), whole(key, mesh))


def start(config: configs.Stage1, mesh: jax.sharding.Mesh) -> Call:
    """The first state out of a key and the first batches, jitted as `train.loop` does it."""
    stage, batch = Stage1.from_config(config), Stage1.batch_shapes(config)["image"]
    batches = jax.ShapeDtypeStruct((stage.start_batches, *batch.shape), batch.dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))
    function = program.bind(stage, config, mesh, {}).init
    return function, (whole(key, mesh), place(batches, jax.NamedSharding(mesh, program.START)))


def codec(config: configs.Stage1, mesh: jax.sharding.Mesh, what: str) -> Call:
    """`encode` or `decode` of a tokenizer."""
    params = models.state_shapes(config).params["generator"]
    tokenizer = whole(models.Tokenizer(params, build.vqgan(config)), mesh)
    if what == "encode":
        return jax.jit(api.encode), (tokenizer, rows(Stage1.batch_shapes(config)["image"], mesh))
    side = config.data.image_size // tokenizer.downsample_factor
    indices = jax.ShapeDtypeStruct((config.batch_size, side, side), jnp.int32)
    return jax.jit(api.decode), (tokenizer, rows(indices, mesh))


def sample(config: configs.Stage2, mesh: jax.sharding.Mesh) -> Call:
    """Whole grids of codes, drawn as the config's section `sampling` says."""
    prior, batch = priors.from_config(config), config.batch_size
    state = program.abstract_state(config, mesh)
    integers = lambda *shape: jax.ShapeDtypeStruct((batch, *shape), jnp.int32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
    known = jax.ShapeDtypeStruct((batch, *prior.grid), jnp.bool_)
    arguments = rows((integers(prior.condition.length), keys, integers(*prior.grid), known), mesh)

    def draw(params: Any, condition: Any, keys: Any, prompt: Any, known: Any) -> Any:
        return priors.sample(prior, params, condition, keys, build.settings(config.sampling), prompt, known)

    return jax.jit(draw), (state.params["transformer"], *arguments)


def token_bytes(config: configs.Stage2, mesh: jax.sharding.Mesh) -> float:
    """What a device must read to draw a token of each of its rows: parameters, and half of all keys and values.

    In the dtype of the transformer. Half, because that many are there on average.
    """
    module, prior = build.transformer(config), priors.from_config(config)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(program.abstract_state(config, mesh).params["transformer"]))
    guided = build.settings(config.sampling).guidance is not None
    rows = (2 if guided else 1) * config.batch_size / (mesh.shape["data"] * mesh.shape["fsdp"])
    cache = 2 * module.depth * module.width * (prior.condition.length + prior.forward.size - 1) * rows
    return (parameters + cache / 2) / mesh.shape["tensor"] * jnp.dtype(module.dtype).itemsize


def place(tree: Any, where: jax.sharding.Sharding) -> Any:
    """Shapes and dtypes, all with one sharding."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree)


def rows(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """A batch, cut into rows as the loop cuts it."""
    return place(tree, jax.NamedSharding(mesh, sharding.BATCH))


def whole(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Arrays that every device has whole."""
    return place(tree, sharding.replicated(mesh))


def bytes_a_device(tree: Any) -> int:
    """Bytes that each device holds of arrays with shardings."""
    return sum(leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))
