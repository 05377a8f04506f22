"""The real compiler for chips that are not here; needs libtpu, no TPU."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from plan_cases import PAGES, TOKENIZER

from vqgan_jax import cli
from vqgan_jax.plan import lowering, topology
from vqgan_jax.train import sharding, stage_of
from vqgan_jax.train.program import abstract_state

pytest.importorskip("libtpu", reason="the TPU's compiler is not installed: pip install 'vqgan_jax[test]'")


def compiled(page: str, name: str, sizes: tuple[int, int, int], tmp_path, flags: tuple[str, ...] = ()):
    """Outcome, model FLOPs and bytes of the state, of a device."""
    config, target = cli.load_config(page, flags), topology.describe(name)
    mesh = sharding.make_mesh(*sizes, devices=target.devices)
    function, arguments = lowering.call(config, mesh, "step")
    found, _ = lowering.compiled(function.lower(*arguments), target, mesh, tmp_path)
    counted, shapes = lowering.call(stage_of(config).without_remat(config), mesh, "step")
    state = lowering.bytes_a_device(abstract_state(config, mesh))
    return found, lowering.flops(counted, *shapes) / mesh.size, state


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5p:2x2x1", "v6e:2x2"])
def test_a_prior_compiles_and_its_scan_counts_every_layer(name, tmp_path):
    found, model_flops, state = compiled(PAGES["prior"] + ":plain", name, (4, 1, 1), tmp_path)
    assert found.fits
    assert found.flops == pytest.approx(model_flops, rel=0.02)
    assert found.hbm_bytes > state
    assert found.cycles is not None
    assert found.cycles > model_flops / 2 / 262_144  # no chip multiplies more in a cycle
    assert sum(cycles for *_, cycles in found.costs) == pytest.approx(found.cycles)
    assert {axes for by_axes in found.collectives.values() for axes in by_axes} == {"data"}
    layers = [times for _, module, _, times, _ in found.costs if "layers" in module]
    assert layers
    assert set(layers) == {2.0}


@pytest.mark.slow
def test_between_slices_a_chip_sends_its_share_of_the_gradients(tmp_path):
    """In whole tiles of 8 x 128, so that small arrays send up to four times what they hold."""
    found, *_ = compiled(PAGES["prior"] + ":plain", "2xv5p:2x2x1", (2, 4, 1), tmp_path)
    mesh = sharding.make_mesh(2, 4, 1)
    share = lowering.bytes_a_device(abstract_state(cli.load_config(PAGES["prior"] + ":plain"), mesh).params)
    assert share < found.collectives["send"]["data"] < 4 * share
    assert found.collectives["all-reduce"].keys() == {"fsdp"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"), [("v5p:2x2x1", "bfloat16"), ("v6e:2x2", "bfloat16"), ("v6e:2x2", "float32")]
)
def test_a_tokenizer_compiles_and_sums_its_gradients_over_the_chips(name, dtype, tmp_path):
    found, model_flops, _ = compiled(
        f"{TOKENIZER}:smooth", name, (4, 1, 1), tmp_path, (f"--config.model.dtype={dtype}",)
    )
    assert found.fits
    assert found.flops is not None
    assert 0.8 * model_flops < found.flops < 1.5 * model_flops
    state = abstract_state(cli.load_config(f"{TOKENIZER}:smooth"), sharding.make_mesh(8, 1, 1)).params
    assert found.collectives["all-reduce"]["data"] >= 2 * 3 / 4 * lowering.bytes_a_device(state) / 2
    modules = {module.rpartition(" ")[0].split("/")[0] for _, module, *_ in found.costs}
    assert {"VQGAN.encode", "VQGAN.decode", "PatchDiscriminator"} <= modules


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [("v5p:2x2x1", "float32"), ("v6e:2x2", "bfloat16")])
def test_sampling_with_cut_heads_sends_sums_and_no_kernels(name, dtype, tmp_path):
    """In the loop over tokens: less than one cut kernel of queries, keys and values a token.

    In float32, six passes of bfloat16 a product, v6e gathers more: 1.27 times that.
    """
    config = cli.load_config(PAGES["prior"] + ":plain", [f"--config.transformer.dtype={dtype}"])
    target = topology.describe(name)
    mesh = sharding.make_mesh(1, 1, 4, devices=target.devices)
    function, arguments = lowering.call(config, mesh, "sample")
    found, _ = lowering.compiled(function.lower(*arguments), target, mesh, tmp_path)
    kernel = arguments[0]["layers"]["qkv"]["kernel"]
    gathered = found.collectives.get("all-gather", {}).get("tensor", 0)
    assert gathered < stage_of(config).items * kernel.size * kernel.dtype.itemsize // 4
    assert found.collectives["all-reduce"]["tensor"] > 0


WITH_A_WRONG_FLAG = """
import os
from vqgan_jax.__main__ import main
main(["plan", "--config=none.py", "--topology=v5p:2x2x1"])
os.environ["LIBTPU_INIT_ARGS"] += " --xla_tpu_no_such_flag=1"
from vqgan_jax.plan import topology
from vqgan_jax.train.program import abstract_state
topology.describe("v5p:2x2x1")
"""


def test_the_compiler_reads_the_flags_that_every_verb_sets():
    """By one that it does not know, behind ours."""
    ran = subprocess.run([sys.executable, "-c", WITH_A_WRONG_FLAG], capture_output=True, text=True, timeout=120)
    assert ran.returncode != 0
    assert "xla_tpu_no_such_flag" in ran.stderr
    assert "scoped_vmem" not in ran.stderr


def test_what_does_not_fit_is_told_with_what_it_needs(tmp_path):
    target = topology.describe("v6e:2x2")
    mesh = sharding.make_mesh(4, 1, 1, devices=target.devices)
    big = lowering.whole(jax.ShapeDtypeStruct((3_000_000, 8192), jnp.float32), mesh)
    found, executable = lowering.compiled(jax.jit(lambda x: x + 1).lower(big), target, mesh, tmp_path)
    assert not found.fits
    assert executable is None
    assert found.hbm_bytes == pytest.approx(2 * 3e6 * 8192 * 4, rel=0.01)
    assert lowering.compiled(jax.jit(lambda x: x + 1).lower(big), target, mesh, tmp_path)[0] == found


def test_a_slice_that_there_is_not_is_an_error():
    with pytest.raises(ValueError, match=r"slice that there is: v4, v5e, v5p, v6e .*got 'v5p:3x4x4'"):
        topology.describe("v5p:3x4x4")


@pytest.mark.parametrize(("name", "chips"), [("v4:2x2x2", 8), ("v5e:4x4", 16), ("v5p:2x2x2", 8), ("v6e:2x4", 8),
                                              ("2xv4:2x2x1", 8), ("3xv5p:2x2x1", 12)])  # fmt: skip
def test_a_device_is_a_chip(name, chips):
    assert len(topology.describe(name).devices) == chips


@pytest.mark.parametrize(("name", "sizes"), [("2xv5p:2x2x1", (-1, 4, 1)), ("2xv6e:2x2", (4, 2, 1))])
def test_between_slices_goes_data_only(name, sizes):
    mesh = sharding.make_mesh(*sizes, devices=topology.describe(name).devices)
    for number, row in enumerate(mesh.devices):
        assert {chip.slice_index for chip in row.flat} == {number * 2 // len(mesh.devices)}


@pytest.mark.parametrize("fsdp", [2, 8, 32])
def test_a_mesh_may_cut_the_sides_of_a_torus(fsdp):
    """None of these is a product of sides of 4 x 4 x 4."""
    mesh = sharding.make_mesh(-1, fsdp, 1, devices=topology.describe("v5p:4x4x4").devices)
    assert len({tuple(chip.coords) for chip in mesh.devices.flat}) == 64
