"""Moments and averages cut along `data`: an eighth of their memory, the same numbers, the same checkpoints."""

import functools
import math
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from etils import epath
from jax.sharding import PartitionSpec as P

from vqgan_jax import cli
from vqgan_jax.plan import hlo, lowering
from vqgan_jax.train import loop, program, sharding, stored
from vqgan_jax.train.checkpoint import Checkpoints
from vqgan_jax.train.program import abstract_state
from vqgan_jax.train.stage1 import Stage1
from vqgan_jax.train.stage2 import Stage2

TINY, PRIOR = (str(Path(__file__).with_name(name)) for name in ("tiny.py", "tiny_prior.py"))
BOTH = {"tokenizer": f"{TINY}:smooth", "prior": f"{PRIOR}:plain"}
PAGES = ["prior", pytest.param("tokenizer", marks=pytest.mark.slow)]


@functools.cache
def config(page: str, zero1: bool):
    return cli.load_config(BOTH[page], [f"--config.mesh.zero1={zero1}", "--config.mesh.fsdp=1"])


@functools.cache
def born(page: str, zero1: bool):
    """The compiled step, a fresh state on its devices, the shardings wanted of it, and what else the step takes."""
    ours = config(page, zero1)
    mesh = program.make_mesh(ours)
    function, (wanted, frozen, batch, _) = lowering.call(ours, mesh, "step")
    where = jax.tree.map(lambda leaf: leaf.sharding, wanted)
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.integers(0, 11, leaf.shape).astype(leaf.dtype)
    given = sharding.put_batch(jax.tree.map(draw, batch), mesh)
    if page == "prior":
        init = Stage2.from_config(ours).init
        arguments = (jax.random.key(0),)
    else:
        init = Stage1.from_config(ours).init
        arguments, frozen = (jax.random.key(0), given["image"][None]), {}  # this loss has no LPIPS
    state = jax.jit(init, out_shardings=where)(*arguments)
    key = jax.device_put(jax.random.key(1), sharding.replicated(mesh))
    rest = (frozen, given, key)
    return function.lower(state, *rest).compile(), state, where, rest


def test_the_dimension_that_the_rule_cuts_is_cut_again_else_the_largest():
    mesh = sharding.make_mesh(4, 2, 1)
    cut = lambda shape, *spec: sharding.cut_along_data(shape, P(*spec), mesh)
    assert cut((3, 3, 64, 16), None, None, None, ("fsdp", "tensor")) == P(None, None, None, ("fsdp", "tensor", "data"))
    assert cut((3, 3, 64, 2), None, None, None, "fsdp") == P(None, None, "data", "fsdp")  # 2 channels go out
    assert cut((24, 64, 8), None, None, "fsdp") == P(None, None, ("fsdp", "data"))
    assert cut((12, 6, 2), None, "fsdp") == P("data", "fsdp", None)
    assert cut((3, 6), None, "fsdp") == P(None, "fsdp")  # 4 divides neither 3 nor 6 / 2


@pytest.mark.parametrize("page", BOTH)
def test_a_device_holds_an_eighth_of_moments_and_average_and_all_parameters(page):
    mesh = sharding.make_mesh(8, 1, 1)
    whole, cut = (abstract_state(config(page, zero1), mesh) for zero1 in (False, True))
    size = lambda state, part: lowering.bytes_a_device(getattr(state, part))
    assert size(cut, "params") == size(whole, "params")
    for part in ("opt_state", "ema"):
        leaves = jax.tree_util.tree_leaves_with_path(getattr(whole, part))
        large = sum(
            4 * math.prod(leaf.shape) for path, leaf in leaves
            if sharding.path_name(path).endswith(("/kernel", "/codebook", "/embedding"))
        )  # fmt: skip
        assert large > 0.98 * size(whole, part)
        assert size(cut, part) == size(whole, part) - large * 7 // 8


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_two_steps_are_those_of_a_replicated_state(page):
    """The second one reads the moments of the first."""
    ends = []
    for zero1 in (False, True):
        step, state, where, rest = born(page, zero1)
        state = jax.tree.map(lambda x: x.copy(), state)  # the step takes it
        for _ in range(2):
            state, metrics = step(state, *rest)
        assert jax.tree.map(lambda leaf: leaf.sharding, state) == where
        ends.append(jax.device_get((state, metrics)))
    for part in ("params", "opt_state", "ema", "stats"):
        a, b = (
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(getattr(s, part))] or [np.ones(1)]) for s, _ in ends
        )
        assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(a), part
    for name, value in ends[0][1].items():
        np.testing.assert_allclose(ends[1][1][name], value, rtol=1e-6, err_msg=name)


def test_only_new_parameters_are_gathered():
    """Nothing of the batch, no moment and no average is sent: the all-gathers have a parameter's bytes each."""
    step, state, *_ = born("prior", True)
    found = hlo.read(step.as_text()).collectives({"data": 8})
    assert found.keys() <= {"all-reduce", "reduce-scatter", "all-gather"}
    kernels = [x.size for x in jax.tree.leaves(state.params) if x.ndim > 1 and x.size > 64]
    assert found["all-gather"]["data"] == pytest.approx(4 * sum(kernels) * 7 / 8, rel=0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.parametrize(("saved", "wanted"), [(True, False), (False, True)])
def test_a_checkpoint_goes_on_with_and_without(saved, wanted, tmp_path):
    _, state, *_ = born("prior", saved)
    with Checkpoints(epath.Path(tmp_path), best="nll") as checkpoints:
        checkpoints.save(1, state, {"next_index": 1}, stored.to_json(config("prior", saved)), {"nll": 1.0})
        assert checkpoints.latest == 1
        ours = config("prior", wanted)
        plan = mock.Mock(config=ours, mesh=program.make_mesh(ours), spec=program.Program)
        plan.abstract = abstract_state(ours, plan.mesh)
        restored = loop.resume(plan, checkpoints)
    assert jax.tree.map(lambda leaf: leaf.sharding, restored.state) == born("prior", wanted)[2]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), restored.state, state)
