"""A part of `device.sh`: golden parity, or one function's time against its plan, as JSON on standard output."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from turns import ROOT, from_tests

from vqgan_jax import cli, losses
from vqgan_jax.cli.plan import plan_of
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.quantizer import VectorQuantizer
from vqgan_jax.plan import chips, lowering, topology
from vqgan_jax.train import program

SMALL = bool(os.environ.get("SMALL"))
PAGES = {
    1: os.environ.get("TOKENIZER", str(ROOT / "tests/train/tiny.py:smooth") if SMALL else "stage1_imagenet:f16_1024"),
    2: os.environ.get("PRIOR", str(ROOT / "tests/train/tiny_prior.py:plain") if SMALL else "stage2_imagenet:f16_16384"),
}
OVERRIDES = {1: "--config.model.dtype=bfloat16", 2: "--config.transformer.dtype=bfloat16"}
BATCH = int(os.environ.get("BATCH", "2" if SMALL else "16"))
PARTS = {"step1": (1, "step"), "encode": (1, "encode"), "decode": (1, "decode"), "step2": (2, "step"),
         "sample": (2, "sample")}  # fmt: skip
RUNS, SECONDS = 20, 10.0  # of timing, whichever is reached first
KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}
KINDS |= {f"NVIDIA {chip.model}": name for name, chip in chips.GPUS.items()}


def golden() -> dict[str, Any]:
    """Returns how far our float32 networks are from upstream's, which computed on a CPU; see tests/reference.py."""
    reference = from_tests("reference")
    model: Any = VQGAN(VectorQuantizer(32, 8), 32, (3, 2, 2), 1, (8,), 32, 3, 16, dtype="float32")
    recorded = reference.under("even", reference.golden("forward"))
    like = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    params = reference.tree(reference.translate(reference.golden("weights")), "generator", like["params"])

    def functional(params: Any, images: Any) -> Any:
        """What upstream differentiated."""
        recon, codes = model.apply({"params": params}, images)
        loss = 0.25 * losses.codebook_loss(codes.latents, codes.codes).mean()
        loss += losses.commitment_loss(codes.latents, codes.codes).mean()
        return jnp.mean(recon * recorded["cotangent"]) + loss, (recon, codes.indices)

    gradient = jax.jit(jax.grad(functional, argnums=(0, 1), has_aux=True))
    (of_params, of_images), (recon, indices) = gradient(params, recorded["images"])
    norms = reference.pairs(of_params, reference.under("grad_norm", recorded))
    return {
        "reconstruction_error": reference.error(recon, recorded["recon"]),
        "indices_equal": float(np.mean(np.asarray(indices) == recorded["indices"])),
        "image_gradient_error": reference.error(of_images, recorded["grad_images"]),
        "gradient_norm_error": max(reference.error(jnp.linalg.norm(g.reshape(-1)), norm) for g, norm in norms),
        "logits_error": logits_error(reference),
        "limits": {"values": reference.VALUES, "gradients": reference.GRADIENTS},
    }


def logits_error(reference: Any) -> float:
    """Returns how far the transformer's logits are from those of upstream's GPT."""
    recorded = reference.golden("gpt", stage=2)
    tokens = jnp.concatenate([recorded["c"], recorded["z"]], axis=1)
    params = reference.gpt_params(reference.under("state", recorded))
    logits = jax.jit(lambda params: reference.GPT.apply({"params": params}, tokens))(params)
    return reference.error(logits[: len(recorded["logits"])], recorded["logits"])


def timed(stage: int, what: str) -> dict[str, Any]:
    """Returns the plan of a function on the first device, and what it takes there."""
    device = jax.devices()[0]
    config = cli.load_config(PAGES[stage], [OVERRIDES[stage], f"--config.batch_size={BATCH}"])
    mesh = program.make_mesh(config, [device])
    kind = KINDS.get(device.device_kind, "")
    target = topology.Topology(f"{kind or device.platform}:1", (device,), chips.CHIPS.get(kind), device.device_kind)
    function, shapes = lowering.call(config, mesh, what)
    outcome, executable = lowering.compile_now(function.lower(*shapes), target, mesh)
    plan = plan_of(config, PAGES[stage], what, target, mesh, shapes, outcome)
    record = plan.record() | {"executable": executable is not None}
    if executable is None:
        return record
    seconds = run(executable, jax.tree.map(fill, shapes), keeps_state=what == "step")
    median, memory = statistics.median(seconds), device.memory_stats() or {}
    return record | {
        "measured_seconds": median,
        "measured_range": [min(seconds), max(seconds)],
        "measured_over_plan": median / plan.seconds if plan.seconds else None,
        "measured_utilisation": plan.utilisation(median),
        "measured_items_per_second": plan.items / median,
        "measured_bytes": memory.get("peak_bytes_in_use"),
    }


def fill(leaf: Any) -> jax.Array:
    """Returns an array of small random numbers, pixels, zeros or keys in the place of a shape."""
    rng = np.random.default_rng(0)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        value = jax.random.split(jax.random.key(0), leaf.shape)
    elif jnp.issubdtype(leaf.dtype, jnp.floating):
        value = (0.02 * rng.random(leaf.shape, np.float32)).astype(leaf.dtype)  # moments are not negative
    elif leaf.dtype == jnp.uint8:
        value = rng.integers(256, size=leaf.shape, dtype=np.uint8)
    else:
        value = np.zeros(leaf.shape, leaf.dtype)
    return jax.device_put(value, leaf.sharding)


def run(executable: Callable[..., Any], arguments: Any, *, keeps_state: bool) -> list[float]:
    """Returns the seconds of runs, the first left out; a step's donated state goes into the next run."""
    seconds: list[float] = []
    while len(seconds) < RUNS + 1 and sum(seconds[1:]) < SECONDS:
        start = time.perf_counter()
        results = jax.block_until_ready(executable(*arguments))
        seconds.append(time.perf_counter() - start)
        if keeps_state:
            arguments = (results[0], *arguments[1:])
    return seconds[1:]


def join(folder: Path) -> dict[str, Any]:
    """Returns all parts by name, of one that failed its exit status, 124 for too long, and the end of its output."""
    device = jax.devices()[0]
    parts = {}
    for name in ("golden", *PARTS):
        status = int((folder / f"{name}.status").read_text())
        failed = {"failed": status, "output": (folder / f"{name}.log").read_text()[-2000:]}
        parts[name] = failed if status else json.loads((folder / f"{name}.json").read_text())
    versions = {"python": platform.python_version(), "jax": jax.__version__, "runtime": device.client.platform_version}
    return {"device": device.device_kind, "count": len(jax.devices()), **versions, "small": SMALL, "parts": parts}


if __name__ == "__main__":
    part = sys.argv[1]
    result = golden() if part == "golden" else join(Path(sys.argv[2])) if part == "join" else timed(*PARTS[part])
    print(json.dumps(result, indent=1))
