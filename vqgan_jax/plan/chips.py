"""Chips by name: their datasheets, how the compiler is told of them, and how the time of a program is known.

A TPU's compiler estimates the cycles of every operation. A GPU's compiler estimates nothing; there each kernel takes
the larger of its FLOPs over the peak and its bytes over the bandwidth, and a launch.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
from typing import Any, ClassVar

import jax

from vqgan_jax.nn import forms
from vqgan_jax.plan import hlo
from vqgan_jax.train.compat import topologies

GIB = 2**30


class Chip:
    """A datasheet, and what is known of programs by it.

    Attributes:
      flops: bfloat16 operations a second at best.
      clock: cycles a second.
      hbm: bytes of memory that a program is given.
      bandwidth: bytes a second from and to that memory.
      estimate: how time is known, for the heads of tables.
      kernels: kinds of kernels of which a table tells; see `kind`.
      advice: what else gives a program more memory.
    """

    flops: float
    clock: float
    hbm: float
    bandwidth: float

    estimate: ClassVar[str] = "cycles"
    kernels: ClassVar[tuple[str, ...]] = ()
    advice: ClassVar[str] = ""

    def describe(self, name: str, count: int, sides: tuple[int, ...]) -> tuple[tuple[Any, ...], str]:
        """Returns described devices, and which versions decide what comes out.

        Args:
          name: as it was given.
          count: of slices or hosts.
          sides: of a slice; of a host how many.

        Raises:
          ValueError: the compiler is not installed, or knows no such slice.
        """
        raise NotImplementedError

    def costs(self, program: hlo.Program) -> list[tuple[hlo.Instruction, float, float]]:
        """Returns what takes time, how often each runs, and the cycles of all its runs, 0 if they are not known."""
        return program.cycles()

    def kind(self, line: hlo.Instruction) -> str:
        """Returns the kind of an operation for a profile."""
        return hlo.place(line.op_name or line.kind, line.kind)[1]


@dataclasses.dataclass(frozen=True)
class TPU(Chip):
    """A TPU's datasheet. Its `hbm` is what the compiler gives to a program.

    Its `clock` is `flops` over twice the multiplications a cycle, which are 131,072 of v4 and v5p, 65,536 of v5e and
    262,144 of v6e.

    Attributes:
      options: of the compiler's description, where its default is not one device a chip.
    """

    flops: float
    clock: float
    hbm: float
    bandwidth: float
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def describe(self, name: str, count: int, sides: tuple[int, ...]) -> tuple[tuple[Any, ...], str]:
        """Returns a slice's chips; see `Chip.describe`."""
        try:
            import libtpu  # type: ignore[import-not-found]
        except ModuleNotFoundError:
            raise ValueError(
                f"`--topology={name}` needs the TPU's compiler, which runs without a TPU; libtpu is not installed. "
                "Run `pip install 'vqgan_jax[tpu]'`, or plan for cpu:8."
            ) from None
        quiet()
        try:
            description = topologies.get_topology_desc(
                platform="tpu", topology_name=name[name.index("v") :], num_slices=count, **self.options
            )
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(f"`--topology` must be a slice that there is: {FORMS}; got {name!r}: {error}") from None
        return tuple(description.devices), f"jax {jax.__version__}, libtpu {libtpu.__version__}"


@dataclasses.dataclass(frozen=True)
class GPU(Chip):
    """A GPU's datasheet. Its `clock` is the boost clock.

    Attributes:
      tf32, fp32: operations a second on float32 that is rounded to 10 bits, and on all of it.
      memory: bytes.
      cores: multiprocessors.
      cache: bytes of the L2 cache.
      capability: the compute capability, of which its CORES are.
      model: behind "NVIDIA", the name that its driver tells.
    """

    flops: float
    clock: float
    bandwidth: float
    tf32: float
    fp32: float
    memory: int
    cores: int
    cache: int
    capability: int
    model: str

    estimate = "a roofline a kernel"
    kernels = hlo.KERNELS
    advice = " JAX takes three quarters of the memory; XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 gives a quarter more."

    @property
    def hbm(self) -> float:
        """Returns the share of the memory that JAX takes unless it is told otherwise."""
        return 0.75 * self.memory

    @property
    def target(self) -> str:
        """Returns a `stream_executor.GpuTargetConfigProto` as text."""
        lanes, shared, optin = CORES[self.capability]  # float32 units, bytes of own memory, and of these a block's
        accelerated = " feature_extension: ACCELERATED_FEATURES" if self.capability > 8 else ""
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              core_count: {self.cores} fpus_per_core: {lanes} l2_cache_size: {self.cache}
              shared_memory_per_block: 49152 shared_memory_per_core: {shared}
              shared_memory_per_block_optin: {optin}
              device_memory_size: {self.memory} memory_bandwidth: {self.bandwidth:.0f}
              clock_rate_ghz: {self.clock / 1e9} cuda_compute_capability {{ major: {self.capability}{accelerated} }}
            }}
            platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}
            device_description_str: "NVIDIA {self.model}"
        """

    def describe(self, name: str, count: int, sides: tuple[int, ...]) -> tuple[tuple[Any, ...], str]:
        """Returns the GPUs of one host or of `count`; see `Chip.describe`."""
        try:
            plugin = next(name for name in PLUGINS if importlib.util.find_spec(name))
            description = topologies.get_topology_desc(
                platform="cuda", topology_name="", topology=f"1x{count}x{sides[0]}", target_config=self.target
            )
        except (StopIteration, NotImplementedError):  # the latter without jax-cuda13-pjrt, on which the plugin depends
            raise ValueError(
                f"`--topology={name}` needs the CUDA compiler, which runs without a GPU; jax-cuda13-plugin is not "
                "installed as a whole. Run `pip install 'vqgan_jax[cuda-plan]'`, or plan for cpu:8."
            ) from None
        attention = "with cuDNN" if forms.has_cudnn() else "without cuDNN, so that no attention is fused"
        compiler = f"jax {jax.__version__}, {plugin} {importlib.metadata.version(plugin)} {attention}"
        return tuple(description.devices), compiler

    def costs(self, program: hlo.Program) -> list[tuple[hlo.Instruction, float, float]]:
        """Returns every kernel, how often it runs, and cycles by its roofline; see `Chip.costs`."""
        return [
            (line, times, times * self.seconds(program, name, line) * self.clock)
            for name, line, times, inside in program.runs
            if line.is_kernel and not inside
        ]

    def seconds(self, program: hlo.Program, name: str, line: hlo.Instruction) -> float:
        """Returns the time of one run of a kernel at its roofline."""
        peaks = {"f32": self.tf32, "f32 exact": self.fp32}
        work = sum(flops / peaks.get(dtype, self.flops) for dtype, flops in program.products(name, line).items())
        return max(work, program.traffic(name, line) / self.bandwidth) + LAUNCH

    def kind(self, line: hlo.Instruction) -> str:
        """Returns the kind of a kernel, one of `kernels`."""
        return line.kernel


PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")
LAUNCH = 1e-6  # seconds a kernel; XLA's own model of a GPU takes as much
MEGACORE = {"chip_config_name": "megacore", "chips_per_host_bounds": (2, 2, 1)}
TPUS = {
    "v4": TPU(275e12, 1.05e9, 30.75 * GIB, 1.228e12, MEGACORE),
    "v5e": TPU(197e12, 1.5e9, 15.75 * GIB, 0.819e12),
    "v5p": TPU(459e12, 1.75e9, 95.74 * GIB, 2.765e12),
    "v6e": TPU(918e12, 1.75e9, 31.25 * GIB, 1.638e12),
}
# FLOPs are dense, by NVIDIA's datasheets of A100, H100 and H200 (SXM) and of HGX B200 at 1,000 W; the other figures are
# those of XLA's own descriptions, xla/backends/gpu/target_config/specs/{a100_sxm_80,h100_sxm,h200,b200}.txtpb.
GPUS = {
    # bf16, clock, bytes/s, tf32, fp32, memory, multiprocessors, L2, capability
    "a100": GPU(312.0e12, 1.410e9, 2.03904e12, 156.0e12, 19.5e12, 85_100_068_864, 108, 41_943_040, 8, "A100-SXM4-80GB"),
    "h100": GPU(989.4e12, 1.980e9, 3.35232e12, 494.7e12, 66.9e12, 84_942_979_072, 132, 52_428_800, 9, "H100 80GB HBM3"),
    "h200": GPU(989.4e12, 1.980e9, 4.8e12, 494.7e12, 66.9e12, 151_397_597_184, 132, 52_428_800, 9, "H200 141GB HBM3e"),
    "b200": GPU(2250.0e12, 1.965e9, 7.67232e12, 1125.0e12, 80.0e12, 191_514_411_008, 148, 132_644_864, 10, "B200"),
}
CORES = {8: (64, 167_936, 166_912), 9: (128, 233_472, 232_448), 10: (128, 233_472, 232_448)}  # see `GPU.target`
CHIPS: dict[str, Chip] = {**TPUS, **GPUS}
FORMS = (
    f"{', '.join(TPUS)} with the sides of its slice in chips, such as v5p:4x4x4 or v6e:8x8 (v4 and v5p in steps of "
    f"2x2x1), 2xv5p:4x4x4 for two of them, {', '.join(GPUS)} with the GPUs of a host, such as h100:8, 4xh100:8 for "
    "four hosts, or cpu:8"
)


def quiet() -> None:
    """Lets libtpu describe a TPU without asking the network which one is there, and beside another compilation."""
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
