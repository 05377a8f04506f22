"""Stage 1: pure functions that start a VQGAN, train it by one step and measure it (section 3.1 of the paper)."""

# Flax types the result of `apply` as a union with its variables, which no checker can tell apart.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
# pyright: reportReturnType=false

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Num

from vqgan_jax import build, losses
from vqgan_jax import config as configs
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.discriminator import PatchDiscriminator
from vqgan_jax.nn.perceptual import LPIPS
from vqgan_jax.nn.pixels import to_input
from vqgan_jax.nn.quantizer import Quantized
from vqgan_jax.train.state import TrainState, in_parts, moving_average

Metrics = dict[str, Array]
Tree = dict[str, Any]


class Codes(NamedTuple):
    """What the quantizer's `refresh` reads of a step."""

    latents: Float[Array, "b h w d"]
    indices: Int[Array, "b h w"]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a run of stage 1 never changes: modules, optimisers and the numbers of the loss."""

    model: VQGAN
    discriminator: PatchDiscriminator | None
    lpips: LPIPS
    optimizers: dict[str, optax.GradientTransformation]
    loss: configs.Loss
    ema_decay: float
    accumulate: int

    def inputs(self, maps: Num[Array, "b H W ..."]) -> Float[Array, "b H W c"]:
        """A batch as the autoencoder reads it."""
        return to_input(maps, self.model.image_channels)


def from_config(config: configs.Stage1) -> Task:
    """The task that a config describes."""
    optimizer = config.optimizer
    rates = {"generator": optimizer.learning_rate, "discriminator": optimizer.disc_learning_rate}
    return Task(
        model=build.vqgan(config),
        discriminator=build.discriminator(config),
        lpips=LPIPS(config.loss.lpips_dropout, jnp.dtype(config.model.dtype)),
        optimizers={name: build.optimizer(optimizer, rate, config.steps) for name, rate in rates.items()},
        loss=config.loss,
        ema_decay=optimizer.ema_decay,
        accumulate=config.accumulate,
    )


def init(task: Task, key: jax.Array, images: Num[Array, "n b H W ..."], *, start: bool = True) -> TrainState:
    """Returns a fresh state.

    Args:
      task: static.
      key: of the initial parameters.
      images: n training batches. ActNorm starts from the first, the quantizer from the latents of all.
      start: false leaves the quantizer as it was born; shapes do not depend on it.
    """
    keys = jax.random.split(key, 3)
    rngs = {"params": keys[0], "gumbel": keys[1]}
    (recon, quantized), variables = task.model.init_with_output(rngs, task.inputs(images[0]))
    params, stats = {"generator": variables["params"]}, {}
    quantizer, codes = task.model.quantizer, variables["params"].get("quantizer", {})
    if start and quantizer.start_batches:
        encode = lambda batch: task.model.apply(variables, task.inputs(batch), method="encode").latents
        # Batches stay apart: to join them would gather their images, which devices share.
        latents = jax.lax.map(encode, images).reshape(len(images), -1, quantizer.embed_dim)
        codes = params["generator"]["quantizer"] = quantizer.start(codes, latents, keys[1])
    codebook_stats = quantizer.initial_stats(codes, quantized.indices.size)
    if codebook_stats is not None:
        stats["codebook"] = codebook_stats
    if task.discriminator is not None:
        # The first thing that the discriminator sees is a reconstruction: ActNorm starts from one.
        variables = task.discriminator.init(keys[2], recon, train=True)
        params["discriminator"] = variables["params"]
        stats["discriminator"] = variables.get("batch_stats", {})
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizers(task, params),
        ema={"generator": jax.tree.map(jnp.copy, params["generator"])} if task.ema_decay else {},
        stats=stats,
    )


def optimizers(task: Task, params: Tree) -> Tree:
    """Returns the states of the optimisers before any step."""
    return {name: task.optimizers[name].init(params[name]) for name in params}


def train_step(
    task: Task, state: TrainState, frozen: Tree, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, Metrics]:
    """Updates the generator (encoder, codebook, decoder) once and the discriminator once (section 3.1, equation 6).

    A batch in `task.accumulate` parts has the same codes, hits, losses and gradients as a whole one, except for what
    mixes images: each part has an adaptive weight of its own and BatchNorm normalises each part by itself, as in DDP
    on so many more ranks, while the running statistics go from part to part. Chance is drawn anew for each part.

    Args:
      task: static; bind it before `jax.jit`.
      state: donated.
      frozen: networks that are read and never trained: "lpips", the parameters of `nn.perceptual.LPIPS`.
      batch: "image", the global batch: pictures (uint8 b H W c), label maps (int32 b H W) or floats in [-1, 1].
      key: of the whole run; the step is folded in here.

    Returns:
      The new state; float32 scalars, and `code_hits` (k,) of this batch.
    """
    keys = jax.random.split(jax.random.fold_in(key, state.step), 4)
    params, stats, opt_state = dict(state.params), dict(state.stats), dict(state.opt_state)

    part = functools.partial(gradients, task, state, frozen)
    disc_stats = stats.get("discriminator", {})
    disc_stats, (grads, metrics), codes = in_parts(task.accumulate, part, disc_stats, batch["image"], keys[:2])
    params["generator"], opt_state["generator"] = apply_gradients(task, state, "generator", grads["generator"])
    metrics |= {"grad_norm": optax.tree.norm(grads["generator"])}

    if task.discriminator is not None:
        if not task.loss.shared_forward:  # the published order: the updated generator reconstructs once more
            part = functools.partial(discriminator_gradients, task, state, params["generator"])
            disc_stats, (more, terms), _ = in_parts(task.accumulate, part, disc_stats, batch["image"], keys[2:3])
            grads, metrics = grads | more, metrics | terms
        stats["discriminator"] = disc_stats
        new = apply_gradients(task, state, "discriminator", grads["discriminator"])
        params["discriminator"], opt_state["discriminator"] = new
        metrics |= {"disc_grad_norm": optax.tree.norm(grads["discriminator"])}

    quantizer, indices = task.model.quantizer, codes.indices.reshape(-1)
    if "codebook" in stats:
        latents, old = codes.latents.reshape(len(indices), -1), params["generator"]["quantizer"]
        new, stats["codebook"] = quantizer.refresh(old, stats["codebook"], latents, indices, keys[3])
        params["generator"]["quantizer"] = new
    hits = jnp.bincount(indices, length=quantizer.codebook_size)
    metrics |= {"param_norm": optax.tree.norm(params["generator"]), "code_hits": hits}
    return TrainState(state.step + 1, params, opt_state, moving_average(state, params, task.ema_decay), stats), metrics


def gradients(
    task: Task, state: TrainState, frozen: Tree, disc_stats: Tree, images: Num[Array, "b H W ..."], keys: jax.Array
) -> tuple[Tree, tuple[Tree, Metrics], Codes]:
    """Returns the discriminator's running statistics, gradients by network and metrics, and the codes of each image.

    With `shared_forward` the discriminator's gradients are among them, at the same reconstruction: the discriminator is
    then one step late, and the step saves a whole forward pass.
    """
    x, loss, grads = task.inputs(images), task.loss, {}

    # Equations 2 to 4: x_hat = G(q(E(x))), and the losses of the codes.
    def reconstruct(generator: Tree) -> tuple[tuple[Array, Array], Quantized]:
        x_hat, quantized = forward(task, state.step, generator, x, keys[0])
        return (x_hat, quantized.loss), quantized

    (x_hat, code_loss), pull, quantized = jax.vjp(reconstruct, state.params["generator"], has_aux=True)
    metrics = dict(quantized.terms)

    # L_rec: pixels and LPIPS.
    rec_loss = lambda x_hat: reconstruction_loss(task, frozen, x, x_hat, keys[1])
    (total, terms), cotangent = jax.value_and_grad(rec_loss, has_aux=True)(x_hat)
    metrics, total = metrics | terms, total + code_loss

    if task.discriminator is not None:
        adversarial = losses.ADVERSARIAL[loss.adversarial]
        logits_fake, pull_fake, disc_stats = discriminate(task, state.params["discriminator"], disc_stats, x_hat)

        # L_GAN of the generator, and its gradient at the reconstruction.
        mean_loss = lambda logits: adversarial.generator_loss(logits).mean()
        generator_loss, by_logits = jax.value_and_grad(mean_loss)(logits_fake)
        gan_cotangent = pull_fake(by_logits)[1]

        # Equation 7: lambda, from the gradients of both at the decoder's last kernel.
        weight = jnp.asarray(loss.disc_weight)
        if loss.adaptive:
            last = lambda cotangent: pull((cotangent, jnp.zeros(())))[0]["decoder"]["conv_out"]["kernel"]
            weight *= losses.adaptive_weight(*jax.vmap(last)(jnp.stack((cotangent, gan_cotangent))))
        gate = jnp.clip((state.step - loss.disc_start + 1) / max(loss.disc_ramp, 1), 0.0, 1.0)
        total, cotangent = total + weight * gate * generator_loss, cotangent + weight * gate * gan_cotangent
        metrics |= {"generator_loss": generator_loss, "adaptive_weight": weight, "disc_gate": gate}

        if loss.shared_forward:
            logits_real, pull_real, disc_stats = discriminate(task, state.params["discriminator"], disc_stats, x)
            by_logits, terms = discriminator_loss(task, state.step, logits_real, logits_fake)
            of_both = pull_real(by_logits[0])[0], pull_fake(by_logits[1])[0]
            grads["discriminator"], metrics = jax.tree.map(jnp.add, *of_both), metrics | terms

    grads["generator"] = pull((cotangent, jnp.ones(())))[0]
    return disc_stats, (grads, metrics | {"total_loss": total}), Codes(quantized.latents, quantized.indices)


def discriminator_gradients(
    task: Task, state: TrainState, generator: Tree, disc_stats: Tree, images: Num[Array, "b H W ..."], keys: jax.Array
) -> tuple[Tree, tuple[Tree, Metrics], None]:
    """Returns the same of the discriminator alone, at what the updated generator reconstructs (published order)."""
    x, params = task.inputs(images), state.params["discriminator"]
    x_hat, _ = forward(task, state.step, generator, x, keys[0])
    logits_real, pull_real, disc_stats = discriminate(task, params, disc_stats, x)
    logits_fake, pull_fake, disc_stats = discriminate(task, params, disc_stats, x_hat)
    by_logits, metrics = discriminator_loss(task, state.step, logits_real, logits_fake)
    grads = jax.tree.map(jnp.add, pull_real(by_logits[0])[0], pull_fake(by_logits[1])[0])
    return disc_stats, ({"discriminator": grads}, metrics), None


def forward(
    task: Task, step: Int[Array, ""], generator: Tree, x: Float[Array, "b H W c"], key: jax.Array
) -> tuple[Float[Array, "b H W c"], Quantized]:
    """Returns reconstructions and the quantizer's output, in training mode."""
    rngs = dict(zip(("dropout", "gumbel"), jax.random.split(key), strict=True))
    return task.model.apply({"params": generator}, x, train=True, step=step, rngs=rngs)


def reconstruction_loss(
    task: Task, frozen: Tree, x: Float[Array, "b H W c"], x_hat: Float[Array, "b H W c"], key: jax.Array
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the weighted sum of pixel and perceptual loss, and each one unweighted."""
    rec = losses.PIXEL[task.loss.pixel](x, x_hat).mean()
    total, terms = task.loss.pixel_weight * rec, {"rec_loss": rec}
    if task.loss.perceptual_weight:
        perceptual = task.lpips.apply({"params": frozen["lpips"]}, x, x_hat, rngs={"dropout": key}).mean()
        total, terms["perceptual_loss"] = total + task.loss.perceptual_weight * perceptual, perceptual
    return total, terms


def discriminate(
    task: Task, params: Tree, stats: Tree, images: Float[Array, "b H W c"]
) -> tuple[Float[Array, "b h w"], Callable[[Array], tuple[Tree, Array]], Tree]:
    """Returns logits of one batch, the pull of their gradients to (parameters, batch), and new running statistics.

    Real and reconstructed images are two batches: they never share BatchNorm's statistics.
    """

    def apply(params: Tree, images: Array) -> tuple[Array, Tree]:
        variables = {"params": params, "batch_stats": stats}
        logits, changed = task.discriminator.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits, changed.get("batch_stats", {})

    return jax.vjp(apply, params, images, has_aux=True)


def discriminator_loss(
    task: Task, step: Int[Array, ""], logits_real: Float[Array, "b h w"], logits_fake: Float[Array, "b h w"]
) -> tuple[tuple[Array, Array], Metrics]:
    """Returns the gradients of the discriminator's loss by both logits, zero before `disc_train_start`, and metrics."""
    gate = (step >= task.loss.disc_train_start).astype(jnp.float32)
    adversarial = losses.ADVERSARIAL[task.loss.adversarial]
    gated = lambda *logits: gate * adversarial.discriminator_loss(*logits).mean()
    value, by_logits = jax.value_and_grad(gated, argnums=(0, 1))(logits_real, logits_fake)
    means = {"logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}
    return by_logits, {"discriminator_loss": value} | means


def apply_gradients(task: Task, state: TrainState, name: str, grads: Tree) -> tuple[Tree, Any]:
    """Returns new parameters and optimiser state of one network."""
    updates, opt_state = task.optimizers[name].update(grads, state.opt_state[name], state.params[name])
    return optax.apply_updates(state.params[name], updates), opt_state  # type: ignore[return-value]
