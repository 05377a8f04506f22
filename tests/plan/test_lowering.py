import jax
import jax.numpy as jnp
import numpy as np
import pytest
import untrained
from plan_cases import PAGES, TOKENIZER, mesh_of

from vqgan_jax import cli, models
from vqgan_jax import prior as priors
from vqgan_jax.convert.lpips import load_lpips
from vqgan_jax.plan import lowering
from vqgan_jax.train import sharding
from vqgan_jax.train.program import abstract_state, open_program
from vqgan_jax.train.stage1 import Stage1


def lowered_by_the_loop(config, mesh, batch):
    """The text of the step that `vqgan train` runs, for a batch of its own."""
    program = open_program(config, mesh)
    state = program.abstract
    key = jax.jit(lambda: jax.random.key(0), out_shardings=sharding.replicated(mesh))()
    return program.step.lower(state, program.frozen, sharding.put_batch(batch or next(program.batches()), mesh), key)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 1), (1, 2, 2)])
def test_a_tokenizers_plan_is_the_program_that_trains(sizes):
    config, mesh = cli.load_config(PAGES["tokenizer"]), mesh_of(*sizes)
    function, arguments = lowering.call(config, mesh, "step")
    assert function.lower(*arguments).as_text() == lowered_by_the_loop(config, mesh, None).as_text()


def test_a_priors_plan_is_the_program_that_trains_from_tokens(monkeypatch):
    monkeypatch.setattr(models, "find_tokenizer", lambda path, *_: path)
    monkeypatch.setattr(models, "load_tokenizer", lambda _: untrained.tokenizer(32))
    config, mesh = cli.load_config(PAGES["prior"]), mesh_of(2, 2)
    function, arguments = lowering.call(config, mesh, "step")
    tokens = {"tokens": np.zeros((config.batch_size, 65), np.int32)}
    assert function.lower(*arguments).as_text() == lowered_by_the_loop(config, mesh, tokens).as_text()


@pytest.mark.slow
def test_a_tokenizers_start_is_planned_with_all_batches_of_its_kmeans_and_gives_the_state():
    config, mesh = cli.load_config(PAGES["tokenizer"]), mesh_of(2, 2)
    function, arguments = lowering.call(config, mesh, "start")
    assert (arguments[1].shape, arguments[1].dtype) == ((2, 8, 16, 16, 3), jnp.uint8)
    assert arguments[1].sharding.shard_shape(arguments[1].shape) == (2, 2, 16, 16, 3)
    shapes = lambda state: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    assert shapes(function.lower(*arguments).out_info) == shapes(abstract_state(config, mesh))


def test_lpips_has_the_shapes_of_its_real_weights():
    _, (_, frozen, *_) = lowering.call(cli.load_config(PAGES["tokenizer"]), mesh_of(1), "step")
    real = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), {"lpips": load_lpips()})
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), frozen) == real


@pytest.mark.parametrize(
    ("variant", "dtype", "shape"),
    [("base", jnp.uint8, (8, 16, 16, 3)), ("segmentation", jnp.int32, (8, 16, 16)),
     ("depth", jnp.float32, (8, 16, 16, 1))],
)  # fmt: skip
def test_what_a_tokenizer_learns_comes_as_the_loader_gives_it(variant, dtype, shape):
    config = cli.load_config(f"{TOKENIZER}:{variant}")
    found = Stage1.batch_shapes(config)["image"]
    assert (found.dtype, found.shape) == (dtype, shape)
    if variant != "depth":  # the scenes have none
        real = next(open_program(config, mesh_of(1)).batches())["image"]
        assert (real.dtype, real.shape) == (dtype, shape)


def test_encode_and_decode_give_what_the_public_functions_give():
    config, mesh = cli.load_config(PAGES["tokenizer"]), mesh_of(2)
    for what, dtype, shape in (("encode", jnp.int32, (8, 8, 8)), ("decode", jnp.float32, (8, 16, 16, 3))):
        function, arguments = lowering.call(config, mesh, what)
        out = function.lower(*arguments).out_info
        assert (out.dtype, out.shape) == (dtype, shape)


@pytest.mark.parametrize("variant", ["base", "unconditional", "boxes", "coordinates"])
def test_sampling_takes_any_condition_and_gives_grids(variant):
    config = cli.load_config(f"{PAGES['prior']}:{variant}")
    function, arguments = lowering.call(config, mesh_of(2, 2), "sample")
    out = jax.eval_shape(function, *arguments)
    assert (out.dtype, out.shape) == (jnp.int32, (8, *priors.from_config(config).grid))


@pytest.mark.parametrize(
    ("page", "what"), [("tokenizer", "sample"), ("prior", "encode"), ("prior", "decode"), ("prior", "start")]
)
def test_a_function_of_the_other_stage_is_an_error(page, what):
    with pytest.raises(ValueError, match=rf"--what={what}` needs a config of stage \d; got one of stage \d"):
        lowering.call(cli.load_config(PAGES[page]), mesh_of(1), what)


def test_bytes_of_a_device_are_those_of_its_shards():
    config = cli.load_config(PAGES["prior"])
    whole, cut = (lowering.bytes_a_device(abstract_state(config, mesh_of(*sizes)).params) for sizes in ((8,), (1, 8)))
    kernels = whole - 4 * (32 * 2 * 2 + 32 + 8 * 2 * 2)  # scales of two norms a layer, of the last, of q and k
    assert cut == whole - kernels * 7 // 8
