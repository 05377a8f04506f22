"""The very programs that run later, lowered from shapes, compiled, and their model FLOPs counted.

Nothing is allocated and no data or tokenizer is opened; what a compilation says is kept in a folder for the next time.

A prior is planned from tokens, as `vqgan tokenize` writes them: its config names a tokenizer only by codebook and
factor. A run from images encodes them in front of this step, and holds that tokenizer.
"""

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from vqgan_jax import api, models
from vqgan_jax import config as configs
from vqgan_jax import prior as priors
from vqgan_jax.data import storage
from vqgan_jax.plan import hlo
from vqgan_jax.plan.topology import Topology
from vqgan_jax.train import program, sharding, stage_of
from vqgan_jax.train.compat import ClosedJaxpr, Jaxpr, dce_jaxpr
from vqgan_jax.train.stage1 import Stage1

Config = configs.Stage1 | configs.Stage2
Call = tuple[Callable[..., Any], tuple[Any, ...]]

# Functions of `nn` by their names, with the products of their definition for each that they take.
RESTATED = {"upsample_convolve_backward": 9 / 4, "pair_features": 1 / 2, "half_sums": 0.0}


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
    stages, function = CALLS[what]
    if config.stage not in stages:
        raise ValueError(f"`--what={what}` needs a config of stage {stages[0]}; got one of stage {config.stage}.")
    return function(config, mesh)


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


def tokenizer_shapes(config: configs.Stage1, mesh: jax.sharding.Mesh) -> models.Tokenizer:
    """Returns a tokenizer's shapes, whole on every device."""
    return whole(models.Tokenizer(models.state_shapes(config).params["generator"], config.make_vqgan()), mesh)


def encode(config: configs.Stage1, mesh: jax.sharding.Mesh) -> Call:
    """Returns `encode` of a tokenizer."""
    return jax.jit(api.encode), (tokenizer_shapes(config, mesh), rows(Stage1.batch_shapes(config)["image"], mesh))


def decode(config: configs.Stage1, mesh: jax.sharding.Mesh) -> Call:
    """Returns `decode` of a tokenizer."""
    tokenizer = tokenizer_shapes(config, mesh)
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
        return priors.sample(prior, params, condition, keys, config.sampling.settings, prompt, known)

    return jax.jit(draw), (state.params["transformer"], *arguments)


CALLS: dict[str, tuple[tuple[int, ...], Callable[..., Call]]] = {  # by `what`: of which stages, and the function
    "step": ((1, 2), step),
    "start": ((1,), start),
    "encode": ((1,), encode),
    "decode": ((1,), decode),
    "sample": ((2,), sample),
}


def token_bytes(config: configs.Stage2, mesh: jax.sharding.Mesh) -> float:
    """What a device must read to draw a token of each of its rows: parameters, and half of all keys and values.

    In the dtype of the network. Half, because that many are there on average.
    """
    prior, state = priors.from_config(config), program.abstract_state(config, mesh)
    network, params = prior.network, state.params["transformer"]
    prefix, length = jax.ShapeDtypeStruct((1, prior.condition.length), jnp.int32), prior.forward.size - 1
    fill = lambda params, prefix: network.prefill(network.prepare(params), prefix, prefix.shape[1] + length)[1]
    guided = config.sampling.settings.guidance is not None
    rows = (2 if guided else 1) * config.batch_size / (mesh.shape["data"] * mesh.shape["fsdp"])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params)) * jnp.dtype(network.dtype).itemsize
    cache = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(fill, params, prefix)))
    return (parameters + rows * cache / 2) / mesh.shape["tensor"]


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


def flops(function: Callable[..., Any], *args: Any) -> float:
    """Returns the model FLOPs of a function of arrays or of their shapes: what its products and convolutions need.

    They are counted in its jaxpr by their shapes. A product of m x k and k x n is 2mkn; a convolution is
    2 k^2 c_in c_out h w, and so is each of the two of its backward pass. Nothing else is counted, and nothing twice:
    dead code is dropped, rematerialisation must be off. What is restated to take fewer products, or more (`RESTATED`),
    counts as it is defined. Of a `cond` the dearest branch counts, of a `while` one round.
    """
    return jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def jaxpr_flops(jaxpr: Any) -> float:
    """Returns the FLOPs of what the outputs of a jaxpr need."""
    live, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return float(sum(equation_flops(equation) for equation in live.eqns))


def equation_flops(equation: Any) -> float:
    """Returns the FLOPs of one operation, with those of the functions it calls."""
    name, params = equation.primitive.name, equation.params
    out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return 2.0 * out * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, features = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec[0]
        # Zeros that a stride's backward pass puts between the pixels are not multiplied.
        return 2.0 * out * math.prod(kernel) / kernel[features] / math.prod(params["lhs_dilation"])
    inner = [jaxpr_flops(jaxpr) for jaxpr in called(params)]
    if not inner:
        return 0.0
    if name == "jit" and params["name"] in RESTATED:
        return RESTATED[params["name"]] * sum(inner)
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def called(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among an operation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the compiler says of a program, a device.

    Attributes:
      fits: it could be compiled within the memory.
      hbm_bytes: that it needs at its peak; of what does not fit, as far as the compiler tells.
      optimal_seconds: the compiler's roofline, its loops weighted by their share of the cycles; None where it has none.
      cycles: estimated ones of all operations, bodies of loops times their trips; of a GPU, those of its clock by a
        roofline a kernel; None where there are none. What collectives take beyond the work that hides them is not in
        it.
      flops: of all products, those that are done again included; None of what does not fit.
      collectives: kind -> axes, joined by "+" -> bytes that a device sends.
      unestimated: operations that take a time the compiler does not know, such as a scatter on a TPU's sparse cores.
      compile_seconds: wall time of the compiler when it ran.
      costs: (operation, module, kind, runs, cycles) of everything that takes cycles, the dearest first.
    """

    fits: bool
    hbm_bytes: float
    optimal_seconds: float | None = None
    cycles: float | None = None
    flops: float | None = None
    collectives: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    unestimated: list[str] = dataclasses.field(default_factory=list)
    compile_seconds: float = 0.0
    costs: list[tuple[str, str, str, float, float]] = dataclasses.field(default_factory=list)


def compiled(lowered: Any, topology: Topology, mesh: jax.sharding.Mesh, cache: epath.PathLike) -> tuple[Outcome, Any]:
    """Compiles a lowered program, unless `cache` has its outcome under its text, topology, compiler and flags.

    Returns:
      The outcome; the executable, or None where there is none or it was not made.

    Raises:
      jax.errors.JaxRuntimeError: the compiler fails by another reason than memory.
    """
    path = cached(lowered, topology, cache)
    if path.exists():
        record = json.loads(path.read_text())
        return Outcome(**record | {"costs": [tuple(row) for row in record["costs"]]}), None
    outcome, executable = compile_now(lowered, topology, mesh)
    storage.make_folder(path.parent)
    storage.write_json(path, dataclasses.asdict(outcome))
    return outcome, executable


def cached(lowered: Any, topology: Topology, cache: epath.PathLike) -> epath.Path:
    """The file that keeps the outcome of this program for this topology by this compiler with these flags."""
    flags = os.environ.get("LIBTPU_INIT_ARGS", "") + os.environ.get("XLA_FLAGS", "")
    digest = hashlib.sha256(f"5 {topology.name} {topology.compiler} {flags}\n{lowered.as_text()}".encode())
    return storage.place(cache) / f"{digest.hexdigest()[:32]}.json"


def compile_now(lowered: Any, topology: Topology, mesh: jax.sharding.Mesh) -> tuple[Outcome, Any]:
    """The outcome of compiling, and the executable where it fits."""
    start = time.monotonic()
    try:
        executable = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = hlo.out_of_memory(str(error))
        if needed is None:
            raise
        return Outcome(False, needed, compile_seconds=time.monotonic() - start), None
    seconds = time.monotonic() - start
    memory, cost = executable.memory_analysis(), executable.cost_analysis() or {}
    # Arguments that the program does not read stay out of the peak, but in the memory.
    whole = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    text = hlo.read(executable.as_text())
    chip = topology.chip
    costs = chip.costs(text) if chip else []
    cycles, once, optimal = sum(total for *_, total in costs), text.once(), cost.get("optimal_seconds", 0.0)
    rows = [
        (line.name, hlo.place(line.op_name or line.kind, line.kind)[0], chip.kind(line), times, total)
        for line, times, total in sorted(costs, key=lambda cost: -cost[2])
        if chip and total
    ]
    outcome = Outcome(
        fits=True,
        hbm_bytes=float(max(memory.peak_memory_in_bytes, whole)),
        optimal_seconds=optimal * cycles / once if once and optimal > 0 else None,
        cycles=cycles or None,
        flops=text.flops(),
        collectives=text.collectives(dict(mesh.shape)),
        unestimated=[line.op_name or line.name for line, _, total in costs if cycles and not total],
        compile_seconds=seconds,
        costs=rows,
    )
    return outcome, executable
