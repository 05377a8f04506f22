"""Stage 1: a frozen dataclass that starts a VQGAN, trains it by one step and measures it (section 3.1 of the paper)."""

# Flax types the result of `apply` as a union with its variables, which no checker can tell apart.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalMemberAccess=false
# pyright: reportReturnType=false

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Num

from vqgan_jax import config as configs
from vqgan_jax import losses, pictures
from vqgan_jax.config.sections import Loss, Perturb
from vqgan_jax.data.views import FIELDS
from vqgan_jax.nn.augment import augment
from vqgan_jax.nn.autoencoder import AFTER_CODES, VQGAN
from vqgan_jax.nn.codebooks import Codes, nearest_others, neighbours
from vqgan_jax.nn.discriminator import Discriminator
from vqgan_jax.nn.perceptual import LPIPS, PERCEPTUAL, SEEN_CHANNELS, SemanticDistance
from vqgan_jax.nn.pixels import to_input, to_output
from vqgan_jax.nn.quantizer import Quantized
from vqgan_jax.train.metrics import code_statistics
from vqgan_jax.train.state import TrainState, in_parts, make_optimizer, moving_average

Metrics = dict[str, Array]
Tree = dict[str, Any]
Batch = dict[str, Array]
PERTURB, REAL, FAKE, SEMANTIC = 10, 11, 12, 13  # folded into a key whose first few splits are used elsewhere


@dataclasses.dataclass(frozen=True)
class Stage1:
    """What a run of stage 1 never changes: modules, optimisers and the numbers of the loss.

    Attributes:
      model, discriminator, semantic: the modules; no discriminator where its loss has no weight.
      distances: modules of which the perceptual loss consists, by name.
      optimizers: of "generator" and "discriminator".
      loss: weights and times of the losses.
      perturb: which codes are replaced in front of the decoder.
      freeze: only what comes after the codes learns.
      ema_decay: of the running average of the generator's parameters; 0 is off.
      accumulate: parts of a batch.
      best: the held-out figure that is lowest at the best checkpoint.
    """

    model: VQGAN
    discriminator: Discriminator | None
    semantic: SemanticDistance
    distances: dict[str, Any]
    optimizers: dict[str, optax.GradientTransformation]
    loss: Loss
    perturb: Perturb
    freeze: bool
    ema_decay: float
    accumulate: int
    best: str = "lpips"

    network: ClassVar[str] = "generator"  # the one that is evaluated
    items: ClassVar[int] = 1  # that an example counts as in a plan: an image
    previews: ClassVar[int] = 16  # images on a sheet
    progress_metrics: ClassVar[tuple[str, ...]] = (
        "rec_loss",
        "perceptual_loss",
        "generator_loss",
        "discriminator_loss",
        "adaptive_weight",
        "codebook_usage",
        "perplexity",
        "images_per_second",
    )

    @classmethod
    def from_config(cls, config: configs.Stage1, *, rows: jax.sharding.NamedSharding | None = None) -> "Stage1":
        """Returns the stage that a config describes; `rows`, how a batch lies on the devices, is of stage 2 only."""
        del rows
        optimizer, rate = config.optimizer, config.optimizer.learning_rate
        rates = {"generator": rate, "semantic": rate, "discriminator": optimizer.disc_learning_rate}
        return cls(
            model=config.make_vqgan(),
            discriminator=config.make_discriminator(),
            semantic=SemanticDistance(config.loss.semantic, jnp.dtype(config.model.dtype)),
            distances=config.make_distances(),
            optimizers={name: make_optimizer(optimizer, rate, config.steps) for name, rate in rates.items()},
            loss=config.loss.in_steps(config.steps),
            perturb=config.perturb,
            freeze=config.start.freeze,
            ema_decay=optimizer.ema_decay,
            accumulate=config.accumulate,
            best=config.best,
        )

    @staticmethod
    def without_remat(config: Any) -> Any:
        """Returns the config of the same run that computes nothing twice."""
        return dataclasses.replace(config, model=config.model.clone(remat="none"))

    # Shapes

    @staticmethod
    def batch_shapes(config: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns a batch of pictures, label maps or depth, as the loader gives it."""
        field, size = FIELDS[config.data.field], config.data.image_size
        channels = () if field.is_categories else (config.model.image_channels,)
        dtype = jnp.float32 if config.data.value_range else field.dtype
        return {"image": jax.ShapeDtypeStruct((config.batch_size, size, size, *channels), dtype)}

    def frozen_shapes(self) -> Tree:
        """Returns the shapes of what `train_step` or `evaluate` reads and never trains, by name: LPIPS at least."""
        picture = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
        shapes: Any = lambda module: jax.eval_shape(module.init, jax.random.key(0), picture, picture)["params"]
        semantic = self.semantic.frozen if self.loss.semantic_weight else {}
        return {name: shapes(module) for name, module in {**semantic, **self.distances, "lpips": LPIPS()}.items()}

    def state_shapes(self, config: Any) -> TrainState:
        """Returns the shapes and dtypes of a run's state."""
        image = self.batch_shapes(config)["image"]
        images = jax.ShapeDtypeStruct((1, *image.shape), image.dtype)
        return jax.eval_shape(functools.partial(self.init, start=False), jax.random.key(0), images)

    def inputs(self, maps: Num[Array, "b H W ..."]) -> Float[Array, "b H W c"]:
        """Returns a batch as the autoencoder reads it."""
        return to_input(maps, self.model.image_channels)

    # Training

    @property
    def start_batches(self) -> int:
        """How many batches `init` reads: those of the k-means start, or one for the norms' statistics."""
        return max(self.model.quantizer.start_batches, 1)

    def init(
        self,
        key: jax.Array,
        images: Num[Array, "n b H W ..."],
        generator: Tree | None = None,
        *,
        start: bool = True,
    ) -> TrainState:
        """Returns a fresh state.

        Args:
          key: of the initial parameters.
          images: n training batches. ActNorm starts from the first, the quantizer from the latents of all.
          generator: parameters to begin with, instead of random ones; their quantizer has started already.
          start: false leaves the quantizer as it was born; shapes do not depend on it.
        """
        keys = jax.random.split(key, 3)
        rngs = {"params": keys[0], "gumbel": keys[1]}
        (recon, quantized), variables = self.model.init_with_output(rngs, self.inputs(images[0]))
        if generator is not None:
            variables = {"params": generator}
            recon, quantized = self.model.apply(variables, self.inputs(images[0]), rngs=rngs)
        params, stats = {"generator": variables["params"]}, {}
        quantizer, codes = self.model.quantizer, variables["params"].get("quantizer", {})
        if start and generator is None and quantizer.start_batches:
            encode = lambda batch: self.model.apply(variables, self.inputs(batch), method="encode").latents
            # Batches stay apart: to join them would gather their images, which devices share.
            latents = jax.lax.map(encode, images).reshape(len(images), -1, quantizer.embed_dim)
            codes = params["generator"]["quantizer"] = quantizer.start(codes, latents, keys[1])
        codebook_stats = quantizer.initial_stats(codes, quantized.indices.size)
        if codebook_stats is not None:
            stats["codebook"] = codebook_stats
        if self.loss.semantic_weight:
            key = jax.random.fold_in(keys[0], SEMANTIC)
            params["semantic"] = self.semantic.init(key, quantized.quantized, method="project")["params"]
        if self.discriminator is not None:
            # The first thing that the discriminator sees is a reconstruction: ActNorm starts from one.
            variables = self.discriminator.init(keys[2], recon, train=True)
            params["discriminator"] = variables["params"]
            stats["discriminator"] = variables.get("batch_stats", {})
            if self.loss.lecam_weight:
                stats["lecam"] = losses.LeCam(jnp.zeros(()), jnp.zeros(()))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.optimizer_state(params),
            ema={"generator": jax.tree.map(jnp.copy, params["generator"])} if self.ema_decay else {},
            stats=stats,
        )

    def optimizer_state(self, params: Tree) -> Tree:
        """Returns the states of the optimisers before any step."""
        trainable = params | self.trainable(params)
        return {name: self.optimizers[name].init(trainable[name]) for name in params}

    def trainable(self, params: Tree) -> Tree:
        """Returns what learns by the generator's losses, by network; with `freeze` only what comes after the codes."""
        parts = {name: part for name, part in params["generator"].items() if not self.freeze or name in AFTER_CODES}
        return {name: tree for name, tree in params.items() if name != "discriminator"} | {"generator": parts}

    def train_step(self, state: TrainState, frozen: Tree, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Updates the generator (encoder, codebook, decoder) once and the discriminator once (section 3.1, equation 6).

        A batch in `accumulate` parts has the same codes, hits, losses and gradients as a whole one, except for what
        mixes images: each part has an adaptive weight of its own, and BatchNorm's statistics, LeCAM's means and the
        entropy of LFQ's mean are those of a part, as in DDP on so many more ranks, while running statistics go from
        part to part. Few tokens have less entropy than many: keep a part's well above the number of codes. Chance is
        drawn anew for each part.

        Args:
          state: donated.
          frozen: parameters of networks that are read and never trained, by the names of `frozen_shapes`.
          batch: "image", the global batch: pictures (uint8 b H W c), label maps (int32 b H W) or floats in [-1, 1].
          key: of the whole run; the step is folded in here.

        Returns:
          The new state; float32 scalars, and `code_hits` (k,) of this batch.
        """
        keys = jax.random.split(jax.random.fold_in(key, state.step), 4)
        params, stats, opt_state = dict(state.params), dict(state.stats), dict(state.opt_state)

        part = functools.partial(self.gradients, state, frozen)
        disc_stats = stats.get("discriminator", {})
        disc_stats, (grads, metrics), codes = in_parts(self.accumulate, part, disc_stats, batch["image"], keys[:2])
        by_network = {name: grads[name] for name in self.trainable(params)}
        for name, gradient in by_network.items():
            params[name], opt_state[name] = self.apply_gradients(state, name, gradient)
        metrics |= {"grad_norm": optax.tree.norm(by_network)}

        if self.discriminator is not None:
            if not self.loss.shared_forward:  # the published order: the updated generator reconstructs once more
                part = functools.partial(self.discriminator_gradients, state, params["generator"])
                disc_stats, (more, terms), _ = in_parts(self.accumulate, part, disc_stats, batch["image"], keys[2:3])
                grads, metrics = grads | more, metrics | terms
            stats["discriminator"] = disc_stats
            if self.loss.lecam_weight:
                decay, means = self.loss.lecam_decay, losses.LeCam(metrics["logits_real"], metrics["logits_fake"])
                stats["lecam"] = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, stats["lecam"], means)
            new = self.apply_gradients(state, "discriminator", grads["discriminator"])
            params["discriminator"], opt_state["discriminator"] = new
            metrics |= {"disc_grad_norm": optax.tree.norm(grads["discriminator"])}

        quantizer, indices = self.model.quantizer, codes.indices.reshape(-1)
        if "codebook" in stats and not self.freeze:
            latents, old = codes.latents.reshape(len(indices), -1), params["generator"]["quantizer"]
            new, stats["codebook"] = quantizer.refresh(old, stats["codebook"], latents, indices, keys[3])
            params["generator"]["quantizer"] = new
        hits = jnp.bincount(indices, length=quantizer.codebook_size)
        metrics |= {"param_norm": optax.tree.norm(params["generator"]), "code_hits": hits}
        ema = moving_average(state, params, self.ema_decay)
        return TrainState(state.step + 1, params, opt_state, ema, stats), metrics

    def gradients(
        self, state: TrainState, frozen: Tree, disc_stats: Tree, images: Num[Array, "b H W ..."], keys: jax.Array
    ) -> tuple[Tree, tuple[Tree, Metrics], Codes]:
        """Returns the discriminator's running statistics, gradients by network and metrics, and each image's codes.

        With `shared_forward` the discriminator's gradients are among them, at the same reconstruction: the
        discriminator is then one step late, and the step saves a whole forward pass.
        """
        x, loss, grads = self.inputs(images), self.loss, {}

        # Equations 2 to 4: x_hat = G(q(E(x))), and the losses of the codes.
        def reconstruct(trainable: Tree) -> tuple[tuple[Array, Array], tuple[Quantized, Metrics]]:
            x_hat, quantized = self.forward(state.step, state.params["generator"] | trainable["generator"], x, keys[0])
            code_loss, terms = self.code_loss(frozen, trainable, x, quantized)
            return (x_hat, code_loss), (quantized, terms)

        (x_hat, code_loss), pull, aux = jax.vjp(reconstruct, self.trainable(state.params), has_aux=True)
        quantized, metrics = aux

        # L_rec: pixels and the perceptual loss.
        rec_loss = lambda x_hat: self.reconstruction_loss(frozen, x, x_hat, keys[1])
        (total, terms), cotangent = jax.value_and_grad(rec_loss, has_aux=True)(x_hat)
        metrics, total = metrics | terms, total + code_loss

        if self.discriminator is not None:
            adversarial = losses.ADVERSARIAL[loss.adversarial]
            params = state.params["discriminator"]
            logits_fake, pull_fake, disc_stats = self.discriminate(params, disc_stats, x_hat, keys[0], FAKE)

            # L_GAN of the generator, and its gradient at the reconstruction.
            mean_loss = lambda logits: adversarial.generator_loss(logits).mean()
            generator_loss, by_logits = jax.value_and_grad(mean_loss)(logits_fake)
            gan_cotangent = pull_fake(by_logits)[1]

            # Equation 7: lambda, from the gradients of both at the decoder's last kernel.
            weight = jnp.asarray(loss.disc_weight)
            if loss.adaptive:
                last = lambda g: pull((g, jnp.zeros(())))[0]["generator"]["decoder"]["conv_out"]["kernel"]
                weight *= losses.adaptive_weight(*jax.vmap(last)(jnp.stack((cotangent, gan_cotangent))))
            gate = jnp.clip((state.step - loss.disc_start + 1) / max(loss.disc_ramp, 1), 0.0, 1.0)
            total, cotangent = total + weight * gate * generator_loss, cotangent + weight * gate * gan_cotangent
            metrics |= {"generator_loss": generator_loss, "adaptive_weight": weight, "disc_gate": gate}

            if loss.shared_forward:
                logits_real, pull_real, disc_stats = self.discriminate(params, disc_stats, x, keys[0], REAL)
                by_logits, terms = self.discriminator_loss(state, logits_real, logits_fake)
                of_both = pull_real(by_logits[0])[0], pull_fake(by_logits[1])[0]
                grads["discriminator"], metrics = jax.tree.map(jnp.add, *of_both), metrics | terms

        grads |= pull((cotangent, jnp.ones(())))[0]
        return disc_stats, (grads, metrics | {"total_loss": total}), Codes(quantized.latents, quantized.indices)

    def discriminator_gradients(
        self, state: TrainState, generator: Tree, disc_stats: Tree, images: Num[Array, "b H W ..."], keys: jax.Array
    ) -> tuple[Tree, tuple[Tree, Metrics], None]:
        """Returns the same of the discriminator alone, at what the updated generator reconstructs (published order)."""
        x, params = self.inputs(images), state.params["discriminator"]
        x_hat, _ = self.forward(state.step, generator, x, keys[0])
        logits_real, pull_real, disc_stats = self.discriminate(params, disc_stats, x, keys[0], REAL)
        logits_fake, pull_fake, disc_stats = self.discriminate(params, disc_stats, x_hat, keys[0], FAKE)
        by_logits, metrics = self.discriminator_loss(state, logits_real, logits_fake)
        grads = jax.tree.map(jnp.add, pull_real(by_logits[0])[0], pull_fake(by_logits[1])[0])
        return disc_stats, ({"discriminator": grads}, metrics), None

    def forward(
        self, step: Int[Array, ""], generator: Tree, x: Float[Array, "b H W c"], key: jax.Array
    ) -> tuple[Float[Array, "b H W c"], Quantized]:
        """Returns reconstructions and the quantizer's output, in training mode."""
        rngs = dict(zip(("dropout", "gumbel"), jax.random.split(key), strict=True))
        apply = functools.partial(self.model.apply, {"params": generator}, rngs=rngs)
        # Codes that are frozen are those of `encode`: neither dropout nor a quantizer's noise moves them.
        quantized = apply(x, train=not self.freeze, step=step, method="encode")
        codes = quantized.quantized
        if self.perturb.share:
            codes = self.perturbed(step, generator, quantized, jax.random.fold_in(key, PERTURB))
        return apply(codes, train=True, method="decode"), quantized

    def perturbed(
        self, step: Int[Array, ""], generator: Tree, quantized: Quantized, key: jax.Array
    ) -> Float[Array, "b h w d"]:
        """Returns what the decoder reads: of some images, near codes with the gradient of the chosen ones."""
        quantizer, indices, (first, last) = self.model.quantizer, quantized.indices, self.perturb.anneal
        lookup = functools.partial(quantizer.apply, {"params": generator.get("quantizer", {})}, method="lookup")
        keys = jax.random.split(key, 3)
        rate = 1.0 if first == last else 1.0 - jnp.clip((step - first) / (last - first), 0.0, 1.0)
        image = jax.random.bernoulli(keys[0], self.perturb.share, (len(indices), 1, 1))
        code = jax.random.bernoulli(keys[1], rate, indices.shape)
        codebook: Any = jax.lax.stop_gradient(lookup(jnp.arange(quantizer.codebook_size)))
        near = codebook[neighbours(indices, nearest_others(codebook, self.perturb.neighbours), keys[2])]
        moved = quantized.quantized + jax.lax.stop_gradient(near - quantized.quantized)
        return jnp.where((image & code)[..., None], moved, quantized.quantized)

    def code_loss(
        self, frozen: Tree, params: Tree, x: Float[Array, "b H W c"], quantized: Quantized
    ) -> tuple[Float[Array, ""], Metrics]:
        """Returns the weighted sum of the quantizer's loss and the semantic loss, and each one unweighted."""
        if not self.loss.semantic_weight:
            return quantized.loss, quantized.terms
        semantic = self.semantic.apply({"params": params["semantic"]}, quantized.quantized, x, frozen).mean()
        return quantized.loss + self.loss.semantic_weight * semantic, quantized.terms | {"semantic_loss": semantic}

    def reconstruction_loss(
        self, frozen: Tree, x: Float[Array, "b H W c"], x_hat: Float[Array, "b H W c"], key: jax.Array
    ) -> tuple[Float[Array, ""], Metrics]:
        """Returns the weighted sum of pixel and perceptual loss, and each one unweighted."""
        rec = losses.PIXEL[self.loss.pixel](x, x_hat).mean()
        total, terms = self.loss.pixel_weight * rec, {"rec_loss": rec}
        if self.loss.perceptual_weight:
            read = lambda name: self.distances[name].apply({"params": frozen[name]}, x, x_hat, rngs={"dropout": key})
            perceptual = sum(share * read(name).mean() for name, share in PERCEPTUAL[self.loss.perceptual].items())
            total, terms["perceptual_loss"] = total + self.loss.perceptual_weight * perceptual, perceptual
        return total, terms

    def discriminate(
        self, params: Tree, stats: Tree, images: Float[Array, "b H W c"], key: jax.Array, number: int
    ) -> tuple[Float[Array, "b h w"], Callable[[Array], tuple[Tree, Array]], Tree]:
        """Returns logits of one batch, the pull of their gradients to (parameters, batch), and new running statistics.

        Real and reconstructed images are two batches: they never share BatchNorm's statistics. `key` and `number`
        are of their augmentation, through which the gradients pass.
        """

        def apply(params: Tree, images: Array) -> tuple[Array, Tree]:
            variables = {"params": params, "batch_stats": stats}
            shown = augment(images, self.loss.disc_augment, jax.random.fold_in(key, number))
            logits, changed = self.discriminator.apply(variables, shown, train=True, mutable=["batch_stats"])
            return logits, changed.get("batch_stats", {})

        return jax.vjp(apply, params, images, has_aux=True)

    def discriminator_loss(
        self, state: TrainState, logits_real: Float[Array, "b h w"], logits_fake: Float[Array, "b h w"]
    ) -> tuple[tuple[Array, Array], Metrics]:
        """Returns the gradients of the loss by both logits, zero before `disc_train_start`, and metrics."""
        gate = (state.step >= self.loss.disc_train_start).astype(jnp.float32)

        def weighted(real: Array, fake: Array) -> tuple[Array, Metrics]:
            value = losses.ADVERSARIAL[self.loss.adversarial].discriminator_loss(real, fake).mean()
            if not self.loss.lecam_weight:
                return gate * value, {"discriminator_loss": gate * value}
            lecam = losses.lecam_loss(real, fake, state.stats["lecam"])
            terms = {"discriminator_loss": gate * value, "lecam_loss": gate * lecam}
            return gate * (value + self.loss.lecam_weight * lecam), terms

        by_logits, metrics = jax.grad(weighted, argnums=(0, 1), has_aux=True)(logits_real, logits_fake)
        return by_logits, metrics | {"logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}

    def apply_gradients(self, state: TrainState, name: str, grads: Tree) -> tuple[Tree, Any]:
        """Returns new parameters and optimiser state of one network; what has no gradients stays as it is."""
        params = {part: state.params[name][part] for part in grads}
        updates, opt_state = self.optimizers[name].update(grads, state.opt_state[name], params)
        return state.params[name] | optax.apply_updates(params, updates), opt_state

    # Held out

    def reconstruct(
        self, generator: Tree, images: Num[Array, "b H W ..."]
    ) -> tuple[Num[Array, "b H W ..."], Quantized]:
        """Returns reconstructions, as what the images are (rounded pixels, labels or floats), and codes; no chance."""
        rngs = {"gumbel": jax.random.key(0)}
        recon, quantized = self.model.apply({"params": generator}, self.inputs(images), rngs=rngs)
        return to_output(recon, images), quantized

    def evaluate(self, generator: Tree, frozen: Tree, batch: Batch, mask: Bool[Array, "b"]) -> Metrics:
        """Returns sums over the images where `mask` is set: to be added over batches and divided by `count`.

        PSNR is that of each picture rounded to 8 bits; `lpips`, of one channel or three, is of the same rounded
        pictures, without dropout and in float32, as in `vqgan evaluate`. Of label maps there is `error` instead, the
        share of pixels whose label is wrong.
        """
        images = batch["image"]
        recon, quantized = self.reconstruct(generator, images)
        if images.ndim == 3:
            sums = {"error": jnp.mean(images != recon, axis=(1, 2))}
        else:
            original, rounded = self.inputs(images), self.inputs(recon)
            mse = jnp.square(original - rounded).mean((1, 2, 3)) / 4.0  # of values in [0, 1]
            l1 = jnp.abs(original - rounded).mean((1, 2, 3))
            sums = {"psnr": -10.0 * jnp.log10(jnp.maximum(mse, 1e-10)), "l1": l1}
            if images.shape[-1] in SEEN_CHANNELS:
                sums["lpips"] = LPIPS().apply({"params": frozen["lpips"]}, original, rounded)
        sums["count"] = jnp.ones(len(images))
        hits = jnp.zeros(self.model.quantizer.codebook_size, jnp.int32)
        hits = hits.at[quantized.indices].add(mask[:, None, None].astype(jnp.int32))
        return {name: jnp.sum(jnp.where(mask, value, 0.0)) for name, value in sums.items()} | {"code_hits": hits}

    def figures(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Returns the held-out figures of what `evaluate` summed over all batches."""
        sums = dict(sums)
        count, hits = sums.pop("count"), sums.pop("code_hits")
        return code_statistics(hits) | {name: float(value / count) for name, value in sums.items()}

    def preview(self, generator: Tree, frozen: Tree, batch: Batch, key: jax.Array) -> tuple[Array, Array]:
        """Returns images and their reconstructions; nothing is drawn from `key`."""
        return batch["image"], self.reconstruct(generator, batch["image"])[0]

    def sheets(self, arrays: Sequence[np.ndarray], frozen: Tree, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns pictures by name, of what `preview` gave; neither `frozen` nor the classes' `names` are needed."""
        originals, recons = map(pictures.shown, arrays)
        return {"reconstructions": pictures.pairs(originals, recons)}
