import dataclasses
import json
import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import serialize_executable
from verbs import refused, succeeds

from vqgan_jax import cli
from vqgan_jax.__main__ import TPU_FLAGS
from vqgan_jax.plan import lowering, topology
from vqgan_jax.train import program

TRAIN = Path(__file__).parents[1] / "train"
PRIOR = f"--config={TRAIN / 'tiny_prior.py'}:plain"
KEYS = [
    "config", "topology", "chips", "batch_per_chip", "fits", "hbm_bytes", "step_seconds", "items_per_second_per_chip",
    "model_flops", "compiler_flops", "model_flops_utilisation", "collective_bytes", "compile_seconds",
]  # fmt: skip


@pytest.mark.slow
def test_a_plan_for_this_machine_and_its_cache(capsys, tmp_path, monkeypatch):
    file = tmp_path / "plan.json"
    flags = [PRIOR, "--topology=cpu:2", "--batch=1,2", f"--json={file}", f"--cache={tmp_path}", "--profile",
             "--config.transformer.depth=1"]  # fmt: skip
    succeeds("plan", *flags)
    assert "cpu:2" in capsys.readouterr().out
    one, two = json.loads(file.read_text())
    assert list(one)[: len(KEYS)] == KEYS
    assert (one["topology"], one["chips"], one["fits"]) == ("cpu:2", 2, True)
    assert (one["batch_per_chip"], two["batch_per_chip"]) == (1.0, 2.0)
    assert one["step_seconds"] is one["items_per_second_per_chip"] is one["model_flops_utilisation"] is None
    assert two["model_flops"] == 2 * one["model_flops"] == pytest.approx(two["compiler_flops"], rel=0.01)
    assert list(one["collective_bytes"]) == ["all-reduce"]
    # Gradients of all parameters are summed over two devices: each sends 2 s / 2.
    assert one["collective_bytes"]["all-reduce"]["data"] == pytest.approx(one["parameter_bytes"], rel=0.01)
    assert one["optimizer_bytes"] == pytest.approx(3 * one["parameter_bytes"], rel=0.01)

    monkeypatch.setattr(lowering, "compile_now", lambda *_: pytest.fail("this program's outcome is kept"))
    succeeds("plan", *flags)
    assert json.loads(file.read_text()) == [one, two]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, TPU_FLAGS),
        ("--xla_tpu_scoped_vmem_limit_kib=65536", f"{TPU_FLAGS} --xla_tpu_scoped_vmem_limit_kib=65536"),
        (f"{TPU_FLAGS} --xla_of_mine=1", f"{TPU_FLAGS} --xla_of_mine=1"),
    ],
)
def test_the_compiler_of_tpus_has_our_flags_before_the_callers(capsys, monkeypatch, given, found):
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    if given is not None:
        monkeypatch.setenv("LIBTPU_INIT_ARGS", given)
    refused(capsys, "plan", PRIOR, "--topology=none:1")
    assert os.environ["LIBTPU_INIT_ARGS"] == found


def test_a_kept_plan_is_of_its_flags(monkeypatch, tmp_path):
    lowered, target = jax.jit(jnp.tanh).lower(1.0), topology.describe("cpu:1")
    files = []
    for flags in ("", "--xla_of_mine=1"):
        monkeypatch.setenv("LIBTPU_INIT_ARGS", flags)
        files.append(lowering.cached(lowered, target, tmp_path))
    assert files[0] != files[1]


def test_an_executable_is_one_program_and_computes_what_its_function_does(capsys, tmp_path):
    file = tmp_path / "decode.bin"
    flags = [f"--config={TRAIN / 'tiny.py'}", "--topology=cpu:1", "--batch=1", "--what=decode", f"--cache={tmp_path}"]
    succeeds("plan", *flags, f"--executable={file}")
    config = dataclasses.replace(cli.load_config(str(TRAIN / "tiny.py")), batch_size=1)
    function, shapes = lowering.call(config, program.make_mesh(config, jax.devices()[:1]), "decode")
    trees = jax.tree.structure((shapes, {})), jax.tree.structure(function.lower(*shapes).out_info)
    loaded = serialize_executable.deserialize_and_load(file.read_bytes(), *trees, execution_devices=jax.devices()[:1])
    tokenizer, indices = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), shapes)
    np.testing.assert_array_equal(loaded(tokenizer, indices), function(tokenizer, indices))
    flags = (*flags[:1], "--topology=cpu:1,cpu:2", f"--executable={file}")
    assert "one topology and one batch" in refused(capsys, "plan", *flags)


@pytest.mark.parametrize("name", ["v7x:2x2", "v5p", "v5p:4by4", "cpu:0", "gpu:8"])
def test_an_unknown_topology_lists_the_known_ones(capsys, name):
    message = refused(capsys, "plan", PRIOR, f"--topology={name}")
    for known in ("v4", "v5e", "v5p", "v6e", "cpu:8", repr(name)):
        assert known in message


def test_a_batch_that_cannot_be_cut_is_an_error(capsys):
    message = refused(capsys, "plan", PRIOR, "--topology=cpu:8", "--config.batch_size=12")
    assert "multiple of the 8 devices along data and fsdp; got 12. Set it to 16" in message
    for batch in ("0", "-1", "1.5", "many"):
        assert "positive whole numbers" in refused(capsys, "plan", PRIOR, "--topology=cpu:8", f"--batch={batch}")


def test_a_mesh_that_is_not_the_slice_is_an_error(capsys):
    message = refused(capsys, "plan", PRIOR, "--topology=cpu:4", "--config.mesh.data=3")
    assert "multiply to the number of devices, 4; got data=3" in message


def test_more_cpu_devices_than_there_are_is_an_error(capsys):
    assert "needs 64 CPU devices; JAX was started with 8" in refused(capsys, "plan", PRIOR, "--topology=cpu:64")


def test_a_tpu_without_its_compiler_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    assert "pip install 'vqgan_jax[tpu]'" in refused(capsys, "plan", PRIOR, "--topology=v5p:2x2x1")


def test_a_function_of_the_other_stage_is_an_error(capsys):
    message = refused(capsys, "plan", PRIOR, "--topology=cpu:1", "--what=encode")
    assert "`--what=encode` needs a config of stage 1" in message
