"""What the compiler writes of GPUs, by an excerpt; and the real compiler for GPUs that are not here."""

import importlib.util
import math
import sys

import pytest
from plan_cases import PAGES, TOKENIZER
from verbs import refused

from vqgan_jax import cli
from vqgan_jax.nn import forms
from vqgan_jax.plan import chips, hlo, lowering, report, topology
from vqgan_jax.train import sharding, stage_of
from vqgan_jax.train.program import abstract_state

EXCERPT = r"""
%update_computation (p0: f32[2,4,64], p1: s32[], p2: f32[1,4,64]) -> f32[2,4,64] {
  %p0 = f32[2,4,64]{2,1,0} parameter(0)
  %p2 = f32[1,4,64]{2,1,0} parameter(2)
  %p1 = s32[] parameter(1)
  ROOT %dynamic-update-slice.1 = f32[2,4,64]{2,1,0} dynamic-update-slice(%p0, %p2, %p1, %p1, %p1)
}

%slice_computation (s0: f32[48,32,96], s1: s32[]) -> bf16[32,96] {
  %s1 = s32[] parameter(1)
  %s0 = f32[48,32,96]{2,1,0} parameter(0)
  %dynamic-slice.1 = f32[1,32,96]{2,1,0} dynamic-slice(%s0, %s1, %s1, %s1), dynamic_slice_sizes={1,32,96}
  %bitcast.2 = f32[32,96]{1,0} bitcast(%dynamic-slice.1)
  ROOT %convert.1 = bf16[32,96]{1,0} convert(%bitcast.2)
}

%gemm_computation (a: bf16[64,32], b: bf16[32,96]) -> bf16[64,96] {
  %b = bf16[32,96]{1,0} parameter(1)
  %a = bf16[64,32]{1,0} parameter(0)
  ROOT %dot.99 = bf16[64,96]{0,1} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (p: (s32[], f32[48,32,96])) -> (s32[], f32[48,32,96]) {
  %p = (s32[], f32[48,32,96]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %w = f32[48,32,96]{2,1,0} get-tuple-element(%p), index=1
  %x = bf16[64,32]{1,0} get-tuple-element(%p), index=2
  %slice_fusion = bf16[32,96]{1,0} fusion(%w, %i), kind=kLoop, calls=%slice_computation
  ROOT %gemm_fusion = bf16[64,96]{0,1} fusion(%x, %slice_fusion), kind=kCustom, calls=%gemm_computation, metadata={op_name="jit(f)/jvp(Net)/up/dot_general"}, backend_config={"fusion_backend_config":{"kind":"__triton_nested_gemm_fusion"}}
}

ENTRY %main (x: f32[8,32,32,64]) -> f32[8,32,32,64] {
  %q = bf16[8,256,16,64]{3,2,1,0} parameter(0)
  %image = bf16[8,16,16,64]{3,2,1,0} parameter(1)
  %kernel = bf16[32,3,3,64]{3,2,1,0} parameter(2)
  %exact = f32[4,4,4,2]{3,2,1,0} parameter(3)
  %stack = f32[2,4,64]{2,1,0} parameter(4)
  %one = f32[1,4,64]{2,1,0} parameter(5)
  %zero = s32[] constant(0)
  %while.1 = (s32[], f32[48,32,96]{2,1,0}) while(%zero), condition=%body, body=%body, backend_config={"known_trip_count":{"n":"48"}}
  %attended = (bf16[8,16,256,64]{3,1,2,0}, f32[8,16,256]{2,1,0}, u8[0]{0}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["8", "16", "256", "256"]}, "mask_type": "CAUSAL"}}
  %convolved = (bf16[8,16,16,32]{3,2,1,0}, u8[0]{0}) custom-call(%image, %kernel), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBiasActivationForward", metadata={op_name="jit(f)/jvp(Net)/conv/conv_general_dilated"}
  %map = bf16[8,16,16,32]{3,2,1,0} get-tuple-element(%convolved), index=0
  %of_image = (bf16[8,16,16,64]{3,2,1,0}, u8[0]{0}) custom-call(%map, /*index=1*/%kernel), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %of_kernel = (bf16[32,3,3,64]{3,2,1,0}, u8[0]{0}) custom-call(%image, %map), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %updated = f32[2,4,64]{2,1,0} fusion(%stack, %zero, %one), kind=kCustom, calls=%update_computation
  %all-reduce-start = bf16[100]{0} all-reduce-start(%q), replica_groups=mesh['axis_0'=8] {'axis_0'}, to_apply=%body
  ROOT %product = f32[64,48]{1,0} custom-call(%one, %stack), operand_precision={highest,highest}, custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
}
"""  # noqa: E501

INSTALL = "the compiler of GPUs is not installed: pip install 'vqgan_jax[cuda-plan]'"
needs_compiler = pytest.mark.skipif(not any(map(importlib.util.find_spec, chips.PLUGINS)), reason=INSTALL)
H100 = chips.GPUS["h100"]


def kernels() -> dict[str, tuple[float, str, float, float]]:
    """Runs, kind, FLOPs and bytes of a run, of each kernel of the excerpt."""
    program = hlo.read(EXCERPT)
    return {
        line.name: (times, line.kernel, sum(program.products(name, line).values()), program.traffic(name, line))
        for name, line, times, inside in program.runs
        if line.is_kernel and not inside
    }


def test_each_kernel_of_a_gpu_has_its_kind_its_flops_and_its_bytes():
    """A loop's kernel reads its slice of the stack of weights, and an update in place only its row."""
    convolution, product, attention, other = hlo.KERNELS
    image, kernel, map_, taps = 2 * 8 * 256 * 64, 2 * 32 * 9 * 64, 2 * 8 * 256 * 32, 46 * 46  # of 48, less the padding
    flops = 2 * 8 * 32 * 64 * taps
    q = 2 * 8 * 256 * 16 * 64
    assert kernels() == {
        "slice_fusion": (48, other, 0, 4 * 32 * 96 + 4 + 2 * 32 * 96),
        "gemm_fusion": (48, product, 2 * 64 * 32 * 96, 2 * (64 * 32 + 32 * 96 + 64 * 96)),
        "attended": (1, attention, 4 * 8 * 16 * 256 * 256 * 64 / 2, 4 * q + 4 * 8 * 16 * 256),
        "convolved": (1, convolution, flops, image + kernel + map_),
        "of_image": (1, convolution, flops, image + kernel + map_),
        "of_kernel": (1, convolution, flops, image + kernel + map_),
        "updated": (1, other, 0, 4 + 2 * 4 * 4 * 64),
        "product": (1, product, 2 * 64 * 48 * 4, 4 * (64 * 48 + 4 * 64 + 2 * 4 * 64)),
    }


def test_a_kernel_takes_the_larger_of_its_flops_and_its_bytes_and_a_launch():
    program = hlo.read(EXCERPT)
    seconds = {line.name: total / times / H100.clock for line, times, total in H100.costs(program)}
    assert seconds["updated"] == pytest.approx(2052 / 3.35232e12 + 1e-6)
    square = "f32[8192,8192]{1,0}"
    for precision, peak in (("", H100.tf32), (", operand_precision={highest,highest}", H100.fp32)):
        dot = f"ROOT %dot.1 = {square} dot(%a, %a), lhs_contracting_dims={{1}}{precision}"
        program = hlo.read(f"ENTRY %main (a: f32[]) -> f32[] {{\n  %a = {square} parameter(0)\n  {dot}\n}}")
        assert H100.costs(program)[0][2] / H100.clock == pytest.approx(2 * 8192**3 / peak + 1e-6)


def test_a_table_tells_every_kind_of_kernel_also_one_that_there_is_not():
    target = topology.Topology("h100:1", (None,), H100, "a compiler")
    costs = [("fusion.1", "Net forward", hlo.KERNELS[1], 3.0, 1.98e6)]
    outcome = lowering.Outcome(fits=True, hbm_bytes=90e9, cycles=1.98e6, costs=costs)
    sizes = {"parameter_bytes": 8, "optimizer_bytes": 0, "model_flops": 1.0, "items": 11}
    plan = report.Plan("page.py", "step", target, {}, 1, **sizes, outcome=outcome)
    assert report.by_kernel(plan) == {kind: (3.0, 1e-3) if kind == hlo.KERNELS[1] else (0, 0.0) for kind in hlo.KERNELS}
    assert plan.record()["kernel_seconds"][hlo.KERNELS[2]] == 0.0
    assert "kernels at their rooflines" in [table.title for table in report.tables([plan])]
    assert "a roofline a kernel" in report.tables([plan])[1].title
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" in plan.advice()


@pytest.mark.parametrize(("name", "expected"), [("h100:8", (1, "h100", (8,))), ("4xb200:8", (4, "b200", (8,)))])
def test_gpus_have_a_name(name, expected):
    assert topology.parse(name) == expected


@pytest.mark.parametrize("name", ["h100", "h100:2x4", "0xh100:8", "h100:0"])
def test_a_name_that_is_none_lists_gpus(name):
    with pytest.raises(ValueError, match=r"a100, h100, h200, b200 with the GPUs of a host, such as h100:8"):
        topology.parse(name)


def test_without_the_compiler_a_plan_says_what_to_install(capsys, monkeypatch):
    for plugin in chips.PLUGINS:
        monkeypatch.setitem(sys.modules, plugin, None)
    message = refused(capsys, "plan", f"--config={PAGES['prior']}", "--topology=h100:8")
    assert "pip install 'vqgan_jax[cuda-plan]'" in message


def test_without_its_other_half_the_compiler_is_not_installed(monkeypatch):
    def without(**_):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(chips.topologies, "get_topology_desc", without)
    with pytest.raises(ValueError, match="jax-cuda13-plugin is not installed as a whole"):
        H100.describe("h100:8", 1, (8,))


# The real compiler


def compiled(page: str, name: str, sizes: tuple[int, int, int], tmp_path, *flags: str):
    """Outcome and model FLOPs of a device."""
    config, target = cli.load_config(page, flags), topology.describe(name)
    mesh = sharding.make_mesh(*sizes, devices=target.devices)
    function, arguments = lowering.call(config, mesh, "step")
    outcome, _ = lowering.compiled(function.lower(*arguments), target, mesh, tmp_path)
    counted, shapes = lowering.call(stage_of(config).without_remat(config), mesh, "step")
    return outcome, lowering.flops(counted, *shapes) / mesh.size


@needs_compiler
@pytest.mark.parametrize("name", ["h100:8", "2xa100:8"])
def test_hosts_have_as_many_gpus_as_they_say(name):
    devices = topology.describe(name).devices
    count, _, (each,) = topology.parse(name)
    assert [device.process_index for device in devices] == [host for host in range(count) for _ in range(each)]


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 4, 1)])
def test_a_prior_compiles_for_gpus_and_its_scan_counts_every_layer(sizes, tmp_path):
    name = f"h100:{math.prod(sizes)}"
    outcome, model_flops = compiled(
        f"{PAGES['prior']}:plain", name, sizes, tmp_path, "--config.transformer.dtype=bfloat16"
    )
    assert outcome.cycles is not None
    by_kind = {kind: sum(row[4] for row in outcome.costs if row[2] == kind) for kind in hlo.KERNELS}
    assert sum(by_kind.values()) == pytest.approx(outcome.cycles)
    fused = forms.has_cudnn()
    assert (by_kind["fused attention"] > 0) == fused
    if not fused:  # of a causal product cuDNN computes one half
        assert outcome.flops == pytest.approx(model_flops, rel=0.02)
    layers = {runs for _, module, kind, runs, _ in outcome.costs if "layers" in module and kind == hlo.KERNELS[1]}
    assert layers == {2.0}
    sent = set(outcome.collectives)
    assert sent >= {"all-gather", "reduce-scatter"} if sizes[1] > 1 else not sent


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("count", [1, 8])
def test_a_tokenizer_compiles_for_gpus_and_sums_its_gradients(count, tmp_path):
    outcome, model_flops = compiled(
        f"{TOKENIZER}:smooth", f"h100:{count}", (count, 1, 1), tmp_path, "--config.model.dtype=bfloat16"
    )
    assert outcome.flops is not None
    assert 0.8 * model_flops < outcome.flops < 1.5 * model_flops
    assert sum(runs for *_, kind, runs, _ in outcome.costs if kind == "cuDNN convolution") > 50
    sent = outcome.collectives.get("all-reduce", {}).get("data", 0.0)
    state = abstract_state(cli.load_config(f"{TOKENIZER}:smooth"), sharding.make_mesh(8, 1, 1)).params
    assert sent >= (count > 1) * 7 / 4 * lowering.bytes_a_device(state) / 2
    modules = {module.rpartition(" ")[0].split("/")[0] for _, module, *_ in outcome.costs}
    assert {"VQGAN.encode", "VQGAN.decode", "PatchDiscriminator"} <= modules
