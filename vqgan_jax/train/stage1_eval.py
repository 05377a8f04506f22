"""Stage 1, held out: reconstructions and sums of what is measured, without chance."""

# Flax types the result of `apply` as a union with its variables, which no checker can tell apart.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Num

from vqgan_jax.nn.perceptual import LPIPS
from vqgan_jax.nn.pixels import to_output
from vqgan_jax.nn.quantizer import Quantized
from vqgan_jax.train.stage1 import Metrics, Task, Tree


def reconstruct(
    task: Task, generator: Tree, images: Num[Array, "b H W ..."]
) -> tuple[Num[Array, "b H W ..."], Quantized]:
    """Reconstructions, as what the images are (rounded pixels, labels or floats), and the codes, in evaluation mode."""
    recon, quantized = task.model.apply({"params": generator}, task.inputs(images), rngs={"gumbel": jax.random.key(0)})
    return to_output(recon, images), quantized


def eval_step(
    task: Task, generator: Tree, frozen: Tree, images: Num[Array, "b H W ..."], mask: Bool[Array, "b"]
) -> Metrics:
    """Sums over the images where `mask` is set: to be added over batches and divided by `count`.

    PSNR is that of each picture rounded to 8 bits; `lpips` is measured on the same rounded pictures, without dropout
    and in float32 whatever the model's dtype, as `vqgan evaluate` does.
    Of label maps there is `error` instead, the share of pixels whose label is wrong.
    """
    recon, quantized = reconstruct(task, generator, images)
    if images.ndim == 3:
        sums = {"error": jnp.mean(images != recon, axis=(1, 2))}
    else:
        original, rounded = task.inputs(images), task.inputs(recon)
        mse = jnp.square(original - rounded).mean((1, 2, 3)) / 4.0  # of values in [0, 1]
        sums = {
            "psnr": -10.0 * jnp.log10(jnp.maximum(mse, 1e-10)),
            "lpips": LPIPS().apply({"params": frozen["lpips"]}, original, rounded),
            "l1": jnp.abs(original - rounded).mean((1, 2, 3)),
        }
    sums["count"] = jnp.ones(len(images))
    hits = jnp.zeros(task.model.quantizer.codebook_size, jnp.int32)
    hits = hits.at[quantized.indices].add(mask[:, None, None].astype(jnp.int32))
    return {name: jnp.sum(jnp.where(mask, value, 0.0)) for name, value in sums.items()} | {"code_hits": hits}
