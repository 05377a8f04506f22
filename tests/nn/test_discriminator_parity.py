"""The patch discriminator against upstream's, with its weights: two batches in training, then one in evaluation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from reference import GRADIENTS, VALUES, error, golden, pairs, translate, tree, under

from vqgan_jax.nn.discriminator import PatchDiscriminator

BATCH: Any = PatchDiscriminator(channels=8, num_layers=3, norm="batch")
ACT: Any = PatchDiscriminator(channels=8, num_layers=2, norm="act")
ACT_VALUES = 3e-5  # it divides by deviations of 1/250: rounding grows with them


def like(module):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(functools.partial(module.init, train=True), jax.random.key(0), image)


@functools.partial(jax.jit, static_argnums=(0, 4))
def run(module, variables, images, cotangent, train):
    """Logits, what else changed, and the gradients to (parameters, images) of mean(logits * cotangent)."""

    def functional(params, images):
        out = module.apply(variables | {"params": params}, images, train=train, mutable=["batch_stats"])
        return jnp.mean(out[0] * cotangent[..., 0]), out

    grads, (logits, changed) = jax.grad(functional, argnums=(0, 1), has_aux=True)(variables["params"], images)
    return logits, changed.get("batch_stats", {}), grads


def play(module, variables, recorded, *, train, tolerance=VALUES):
    logits, stats, (grads, grad_images) = run(module, variables, recorded["images"], recorded["cotangent"], train)
    assert error(logits[..., None], recorded["logits"]) < tolerance
    assert error(grad_images, recorded["grad_images"]) < GRADIENTS
    for ours, theirs in pairs(grads, under("grad", recorded), "discriminator"):
        assert error(ours, theirs) < GRADIENTS
    return stats


def test_batchnorm_in_training_its_running_statistics_and_evaluation():
    recorded, shapes = under("batchnorm", golden("discriminator")), like(BATCH)
    start = translate(under("before/state", recorded))
    variables = {"params": tree(start, "discriminator", shapes["params"])}
    variables |= {"batch_stats": tree(start, "batch_stats", shapes["batch_stats"])}
    for moment in ("first", "second"):
        stats = play(BATCH, variables, under(moment, recorded), train=True)
        running = under(f"{moment}/state", recorded)
        assert max(error(ours, theirs) for ours, theirs in pairs(stats, running, "batch_stats")) < VALUES
        variables |= {"batch_stats": stats}
    play(BATCH, variables, under("eval", recorded), train=False)


def test_actnorm_starts_from_the_first_batch_and_only_from_it(getkey):
    recorded = under("actnorm", golden("discriminator"))
    start = translate(under("before/state", recorded))
    shapes = like(ACT)["params"]
    kernels = {name: p for name, p in tree(start, "discriminator", shapes).items() if name.startswith("conv")}
    first = under("first", recorded)
    # Parameters that are given stay; those of the norms are missing and are born from the batch.
    images = jnp.asarray(first["images"])
    _, variables = ACT.apply({"params": kernels}, images, rngs={"params": getkey()}, mutable=["params"])
    born = list(pairs(variables["params"], under("state", first), "discriminator"))
    assert len(born) == 4
    assert max(error(ours, theirs) for ours, theirs in born) < ACT_VALUES
    for moment in ("first", "second", "eval"):
        play(ACT, variables, under(moment, recorded), train=moment != "eval", tolerance=ACT_VALUES)
