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
from vqgan_jax.nn.discriminator import PatchDiscriminator
from vqgan_jax.nn.perceptual import LPIPS
from vqgan_jax.nn.pixels import to_input
from vqgan_jax.nn.quantizer import Quantized, VectorQuantizer, kmeans
from vqgan_jax.nn.vqgan import VQGAN
from vqgan_jax.train.accumulation import in_parts
from vqgan_jax.train.state import TrainState, moving_average

Metrics = dict[str, Array]
Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a run of stage 1 never changes: modules, optimisers and the numbers of the loss."""

    model: VQGAN
    discriminator: PatchDiscriminator | None
    lpips: LPIPS
    optimizers: dict[str, optax.GradientTransformation]
    temperature: Callable[[Int[Array, ""]], Float[Array, ""]]
    loss: configs.Loss
    ema_decay: float
    accumulate: int

    def inputs(self, maps: Num[Array, "b H W ..."]) -> Float[Array, "b H W c"]:
        """A batch as the autoencoder reads it."""
        return to_input(maps, self.model.decoder.out_channels)


def from_config(config: configs.Stage1) -> Task:
    """The task that a config describes."""
    optimizer = config.optimizer
    rates = {"generator": optimizer.learning_rate, "discriminator": optimizer.disc_learning_rate}
    return Task(
        model=build.vqgan(config),
        discriminator=build.discriminator(config),
        lpips=LPIPS(config.loss.lpips_dropout, jnp.dtype(config.model.dtype)),
        optimizers={name: build.optimizer(optimizer, rate, config.steps) for name, rate in rates.items()},
        temperature=build.temperature(config.quantizer),
        loss=config.loss,
        ema_decay=optimizer.ema_decay,
        accumulate=config.accumulate,
    )


def init(task: Task, key: jax.Array, images: Num[Array, "n b H W ..."], *, kmeans_start: bool = False) -> TrainState:
    """A fresh state.

    Args:
      task: static.
      key: of the initial parameters.
      images: n training batches. ActNorm starts from the first; with `kmeans_start` the codebook starts as the centres
        of the latents of all.
      kmeans_start: only with a `VectorQuantizer`.
    """
    keys = jax.random.split(key, 3)
    rngs = {"params": keys[0], "gumbel": keys[1]}
    (recon, quantized), variables = task.model.init_with_output(rngs, task.inputs(images[0]))
    params, stats = {"generator": variables["params"]}, {}
    quantizer = task.model.quantizer
    if isinstance(quantizer, VectorQuantizer):
        if kmeans_start:
            encode = lambda batch: task.model.apply(variables, task.inputs(batch), method="encode").latents
            latents = jax.lax.map(encode, images)
            # Batches stay apart: to join them would gather their images, which devices share.
            points = latents.reshape(len(images), -1, quantizer.embed_dim)
            centres = kmeans(points, quantizer.codebook_size, keys[1])
            params["generator"]["quantizer"]["codebook"] = quantizer.normalise(centres)
        if quantizer.refreshes:
            codebook = params["generator"]["quantizer"]["codebook"]
            stats["codebook"] = quantizer.initial_stats(codebook, quantized.indices.size)
    if task.discriminator is not None:
        # The first thing that the discriminator judges is a reconstruction: ActNorm starts from one.
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
    """States of the optimisers before any step."""
    return {name: task.optimizers[name].init(params[name]) for name in params}


def train_step(
    task: Task, state: TrainState, frozen: Tree, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, Metrics]:
    """One update of the generator (encoder, codebook, decoder) and one of the discriminator.

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
    part = functools.partial(play, task, state, frozen)
    game, (grads, metrics), quantized = in_parts(
        task.accumulate, part, stats.get("discriminator", {}), batch["image"], keys[:2]
    )
    params["generator"], opt_state["generator"] = apply_gradients(task, state, "generator", grads["generator"])
    metrics |= {"grad_norm": optax.tree.norm(grads["generator"])}
    if task.discriminator is not None:
        if not task.loss.shared_forward:
            part = functools.partial(play_again, task, state, params["generator"])
            game, (grads, terms), _ = in_parts(task.accumulate, part, game, batch["image"], keys[2:3])
            metrics |= terms
        name, stats["discriminator"] = "discriminator", game
        params[name], opt_state[name] = apply_gradients(task, state, name, grads[name])
        metrics |= {"disc_grad_norm": optax.tree.norm(grads[name])}

    if "codebook" in stats:
        flat = quantized.latents.reshape(-1, quantized.latents.shape[-1]), quantized.indices.reshape(-1)
        codebook = params["generator"]["quantizer"]["codebook"]
        codebook, stats["codebook"] = task.model.quantizer.refresh(codebook, stats["codebook"], *flat, keys[3])
        params["generator"]["quantizer"]["codebook"] = codebook
    ema = moving_average(state, params, task.ema_decay)
    hits = jnp.bincount(quantized.indices.reshape(-1), length=task.model.quantizer.codebook_size)
    metrics |= {"param_norm": optax.tree.norm(params["generator"]), "code_hits": hits}
    return TrainState(state.step + 1, params, opt_state, ema, stats), metrics


def generate(
    task: Task, step: Int[Array, ""], generator: Tree, images: Float[Array, "b H W c"], key: jax.Array
) -> tuple[Float[Array, "b H W c"], Quantized]:
    """Reconstructions and codes in training mode."""
    rngs = dict(zip(("dropout", "gumbel"), jax.random.split(key), strict=True))
    return task.model.apply({"params": generator}, images, train=True, temperature=task.temperature(step), rngs=rngs)


def play(
    task: Task, state: TrainState, frozen: Tree, stats: Tree, images: Num[Array, "b H W ..."], keys: jax.Array
) -> tuple[Tree, tuple[Tree, Metrics], Quantized]:
    """The generator's side on one part of the batch; with a shared forward pass the discriminator's too.

    Gives the discriminator's running statistics; gradients by network and what to log; the codes.
    """
    images = task.inputs(images)

    def forward(generator: Tree) -> tuple[tuple[Array, Array], tuple[Quantized, Metrics]]:
        recon, quantized = generate(task, state.step, generator, images, keys[0])
        total, terms = code_loss(task.loss, quantized)
        return (recon, total), (quantized, terms)

    (recon, code), pull, (quantized, metrics) = jax.vjp(forward, state.params["generator"], has_aux=True)
    rec_loss = lambda recon: reconstruction_loss(task, frozen, images, recon, keys[1])
    (total, terms), gradient = jax.value_and_grad(rec_loss, has_aux=True)(recon)
    metrics, total, grads, last_kernel = metrics | terms, total + code, {}, {}

    if task.discriminator is not None:
        fake = judge(task, state.params["discriminator"], stats, recon)
        stats = fake.stats
        weighted, gen_gradient, last_kernel, terms = generator_game(task, state.step, fake, gradient, pull)
        metrics, total, gradient = metrics | terms, total + weighted, gradient + gen_gradient
        if task.loss.shared_forward:
            real = judge(task, state.params["discriminator"], stats, images)
            stats = real.stats
            grads["discriminator"], terms = discriminator_game(task, state.step, real, fake)
            metrics |= terms

    grads["generator"] = pull((gradient, jnp.ones(())))[0]
    grads["generator"]["decoder"]["conv_out"] |= last_kernel
    return stats, (grads, metrics | {"total_loss": total}), quantized


def play_again(
    task: Task, state: TrainState, generator: Tree, stats: Tree, images: Num[Array, "b H W ..."], keys: jax.Array
) -> tuple[Tree, tuple[Tree, Metrics], None]:
    """The discriminator's side on one part of the batch, which the updated generator reconstructs once more."""
    images, params = task.inputs(images), state.params["discriminator"]
    real = judge(task, params, stats, images)
    fake = judge(task, params, real.stats, generate(task, state.step, generator, images, keys[0])[0])
    grads, terms = discriminator_game(task, state.step, real, fake)
    return fake.stats, ({"discriminator": grads}, terms), None


def code_loss(loss: configs.Loss, quantized: Quantized) -> tuple[Float[Array, ""], Metrics]:
    """The weighted losses of the codes (equation 4 of the paper, second and third term), and each one unweighted."""
    terms = {
        "codebook_loss": losses.codebook_loss(quantized.latents, quantized.codes).mean(),
        "commitment_loss": losses.commitment_loss(quantized.latents, quantized.codes).mean(),
        "kl": quantized.kl.mean(),
    }
    weights = (loss.codebook_weight, loss.commitment_weight, loss.kl_weight)
    return sum((w * t for w, t in zip(weights, terms.values(), strict=True) if w), start=jnp.zeros(())), terms


def reconstruction_loss(
    task: Task, frozen: Tree, images: Float[Array, "b H W c"], recon: Float[Array, "b H W c"], key: jax.Array
) -> tuple[Float[Array, ""], Metrics]:
    """Pixel and perceptual loss, weighted, and each one unweighted."""
    rec = losses.PIXEL[task.loss.pixel](images, recon).mean()
    terms = {"rec_loss": rec}
    total = task.loss.pixel_weight * rec
    if task.loss.perceptual_weight:
        perceptual = task.lpips.apply({"params": frozen["lpips"]}, images, recon, rngs={"dropout": key}).mean()
        terms["perceptual_loss"] = perceptual
        total += task.loss.perceptual_weight * perceptual
    return total, terms


class Judged(NamedTuple):
    """Logits of a batch, the pull of their gradients to (parameters, batch), and the new running statistics."""

    logits: Float[Array, "b h w"]
    pull: Callable[[Array], tuple[Tree, Array]]
    stats: Tree


def judge(task: Task, params: Tree, stats: Tree, images: Float[Array, "b H W c"]) -> Judged:
    """The discriminator on one batch, in training mode: real and fake images never share BatchNorm's statistics."""

    def forward(params: Tree, images: Array) -> tuple[Array, Tree]:
        variables = {"params": params, "batch_stats": stats}
        logits, changed = task.discriminator.apply(variables, images, train=True, mutable=["batch_stats"])
        return logits, changed.get("batch_stats", {})

    return Judged(*jax.vjp(forward, params, images, has_aux=True))


def generator_game(
    task: Task, step: Int[Array, ""], fake: Judged, rec_gradient: Float[Array, "b H W c"], pull: Callable[..., Any]
) -> tuple[Float[Array, ""], Float[Array, "b H W c"], Tree, Metrics]:
    """The generator's side: its weighted loss, that loss's gradient at the reconstruction, and what to log.

    The adaptive weight (equation 7 of the paper) needs two pulls that end at the decoder's last kernel; the compiler
    drops the rest of them. It is one global value: the kernel's gradients are sums over the global batch. They make the
    whole gradient of that kernel, which is given too (third) and saves another pull.
    """
    loss = task.loss
    value, to_logits = jax.value_and_grad(
        lambda logits: losses.ADVERSARIAL[loss.adversarial].generator_loss(logits).mean()
    )(fake.logits)
    gradient, adaptive, last_kernel = fake.pull(to_logits)[1], 1.0, {}
    gate = jnp.clip((step - loss.disc_start + 1) / max(loss.disc_ramp, 1), 0.0, 1.0)
    if loss.adaptive:
        to_kernel = lambda cotangent: pull((cotangent, jnp.zeros(())))[0]["decoder"]["conv_out"]["kernel"]
        rec, gen = jax.vmap(to_kernel)(jnp.stack((rec_gradient, gradient)))
        adaptive = losses.adaptive_weight(rec, gen)
        last_kernel = {"kernel": rec + loss.disc_weight * adaptive * gate * gen}
    weight = jnp.asarray(loss.disc_weight * adaptive)
    terms = {"generator_loss": value, "adaptive_weight": weight, "disc_gate": gate}
    return weight * gate * value, weight * gate * gradient, last_kernel, terms


def discriminator_game(task: Task, step: Int[Array, ""], real: Judged, fake: Judged) -> tuple[Tree, Metrics]:
    """The discriminator's side: gradients and what to log.

    In the published order `fake` is what the updated generator reconstructs. Otherwise the judgement of the generator's
    own step serves both sides, at the price of one step's delay and the gain of a whole forward pass.
    """
    game = losses.ADVERSARIAL[task.loss.adversarial]
    gate = (step >= task.loss.disc_train_start).astype(jnp.float32)
    value, cotangents = jax.value_and_grad(
        lambda *logits: gate * game.discriminator_loss(*logits).mean(), argnums=(0, 1)
    )(real.logits, fake.logits)
    grads = jax.tree.map(jnp.add, real.pull(cotangents[0])[0], fake.pull(cotangents[1])[0])
    terms = {"discriminator_loss": value, "logits_real": real.logits.mean(), "logits_fake": fake.logits.mean()}
    return grads, terms


def apply_gradients(task: Task, state: TrainState, name: str, grads: Tree) -> tuple[Tree, Any]:
    """New parameters and optimiser state of one network."""
    updates, opt_state = task.optimizers[name].update(grads, state.opt_state[name], state.params[name])
    return optax.apply_updates(state.params[name], updates), opt_state  # type: ignore[return-value]
