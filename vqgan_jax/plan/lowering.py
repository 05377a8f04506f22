"""The very programs that run later, lowered from shapes: nothing is allocated and no data or tokenizer is opened.

A prior is planned from tokens, as `vqgan tokenize` writes them: its config names a tokenizer only by codebook and
factor. A run from images encodes them in front of this step, and holds that tokenizer.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vqgan_jax import api, build, models
from vqgan_jax import config as configs
from vqgan_jax import prior as priors
from vqgan_jax.train import loop, program, sharding, stage1, stage1_program, stage2

Config = configs.Stage1 | configs.Stage2
Call = tuple[Callable[..., Any], tuple[Any, ...]]


def without_remat(config: Config) -> Config:
    """The config for counting FLOPs: nothing is computed twice."""
    if isinstance(config, configs.Stage1):
        return config
    return dataclasses.replace(config, transformer=config.transformer.clone(remat="none"))


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
    state = loop.abstract_state(config, mesh)
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    if isinstance(config, configs.Stage1):
        task, picture = stage1.from_config(config), jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
        variables: Any = jax.eval_shape(task.lpips.clone(dropout=False).init, jax.random.key(0), picture, picture)
        frozen = whole({"lpips": variables["params"]}, mesh)
        pure, batch = functools.partial(stage1.train_step, task), {"image": images(config)}
    else:
        task, frozen = stage2.from_config(config, rows=jax.NamedSharding(mesh, sharding.BATCH)), {}
        length = task.prior.condition.length + task.prior.forward.size
        pure = functools.partial(stage2.train_step, task)
        batch = {"tokens": jax.ShapeDtypeStruct((config.batch_size, length), jnp.int32)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = program.compiled_step(pure, where, mesh, nonfinite=config.optimizer.nonfinite)
    return step, (state, frozen, rows(batch, mesh), whole(key, mesh))


def start(config: configs.Stage1, mesh: jax.sharding.Mesh) -> Call:
    """The first state out of a key and the first batches, jitted as `train.loop` does it."""
    where = jax.tree.map(lambda leaf: leaf.sharding, loop.abstract_state(config, mesh))
    batch, count = images(config), stage1_program.start_batches(config)
    batches = jax.ShapeDtypeStruct((count, *batch.shape), batch.dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))
    function = stage1_program.compiled_start(config, stage1.from_config(config), where)
    return function, (whole(key, mesh), place(batches, jax.NamedSharding(mesh, stage1_program.START)))


def codec(config: configs.Stage1, mesh: jax.sharding.Mesh, what: str) -> Call:
    """`encode` or `decode` of a tokenizer."""
    params = models.tokenizer_state(config).params["generator"]
    tokenizer = whole(models.Tokenizer(params, build.vqgan(config)), mesh)
    if what == "encode":
        return jax.jit(api.encode), (tokenizer, rows(images(config), mesh))
    side = config.data.image_size // tokenizer.downsample_factor
    indices = jax.ShapeDtypeStruct((config.batch_size, side, side), jnp.int32)
    return jax.jit(api.decode), (tokenizer, rows(indices, mesh))


def sample(config: configs.Stage2, mesh: jax.sharding.Mesh) -> Call:
    """Whole grids of codes, drawn as the config's section `sampling` says."""
    prior, batch = priors.from_config(config), config.batch_size
    state = loop.abstract_state(config, mesh)
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
    parameters = sum(leaf.size for leaf in jax.tree.leaves(loop.abstract_state(config, mesh).params["transformer"]))
    guided = build.settings(config.sampling).guidance is not None
    rows = (2 if guided else 1) * config.batch_size / (mesh.shape["data"] * mesh.shape["fsdp"])
    cache = 2 * module.depth * module.width * (prior.condition.length + prior.forward.size - 1) * rows
    return (parameters + cache / 2) / mesh.shape["tensor"] * jnp.dtype(module.dtype).itemsize


def images(config: configs.Stage1) -> jax.ShapeDtypeStruct:
    """What a tokenizer of the config learns: pictures, label maps or depth, as the loader gives them."""
    field, size = config.data.field, config.data.image_size
    shape = (config.batch_size, size, size)
    if field == "segmentation":
        return jax.ShapeDtypeStruct(shape, jnp.int32)
    dtype = jnp.float32 if field == "depth" else jnp.uint8
    return jax.ShapeDtypeStruct((*shape, config.model.image_channels), dtype)


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
