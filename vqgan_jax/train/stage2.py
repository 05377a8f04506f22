"""Stage 2: a frozen dataclass that starts a prior, trains it by one step and measures it (section 3.2 of the paper)."""

# Flax types the result of `apply` as a union with its variables, which no checker can tell apart.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from vqgan_jax import config as configs
from vqgan_jax import losses, pictures, sampling
from vqgan_jax import prior as priors
from vqgan_jax.config.sections import TokenLoss
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.pixels import to_input, to_uint8
from vqgan_jax.train.state import TrainState, in_parts, make_optimizer, moving_average

Metrics = dict[str, Array]
Tree = dict[str, Any]
Batch = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Stage2:
    """What a run of stage 2 never changes: modules, optimiser and the numbers of the loss.

    Attributes:
      prior: network, condition, grid and order.
      tokenizer: encodes images; None where only token caches come in.
      optimizer: of the network.
      loss: how inputs and targets are softened.
      drop: probability of the null condition.
      ema_decay: of the running average of the parameters; 0 is off.
      accumulate: parts of a batch.
      settings: how a sheet's samples are drawn.
      previews: images of each kind on a sheet.
    """

    prior: priors.CodePrior
    tokenizer: VQGAN | None
    optimizer: optax.GradientTransformation
    loss: TokenLoss
    drop: float
    ema_decay: float
    accumulate: int
    settings: sampling.Settings = dataclasses.field(default_factory=sampling.Settings)
    previews: int = 16

    network: ClassVar[str] = "transformer"  # the one that is evaluated
    best: ClassVar[str] = "nll"  # the held-out figure that is lowest at the best checkpoint
    start_batches: ClassVar[int] = 0  # that `init` reads
    progress_metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "grad_norm", "nll", "images_per_second")

    @classmethod
    def from_config(
        cls,
        config: configs.Stage2,
        tokenizer: VQGAN | None = None,
        condition_tokenizer: VQGAN | None = None,
        *,
        rows: jax.sharding.NamedSharding | None = None,
    ) -> "Stage2":
        """Returns the stage that a config describes.

        Args:
          config: of the run.
          tokenizer, condition_tokenizer: needed where images, and maps, come in.
          rows: how a batch lies on the devices; see `nn.network.PriorNetwork`.
        """
        prior = priors.from_config(config, condition_tokenizer)
        return cls(
            prior=dataclasses.replace(prior, network=prior.network.clone(rows=rows)),
            tokenizer=tokenizer,
            optimizer=make_optimizer(config.optimizer, config.optimizer.learning_rate, config.steps),
            loss=config.loss.in_steps(config.steps),
            drop=config.condition.drop,
            ema_decay=config.optimizer.ema_decay,
            accumulate=config.accumulate,
            settings=config.sampling.settings,
            previews=config.sampling.previews,
        )

    @staticmethod
    def without_remat(config: Any) -> Any:
        """Returns the config of the same run that computes nothing twice."""
        return dataclasses.replace(config, transformer=config.transformer.without_remat())

    @property
    def items(self) -> int:
        """What an example counts as in a plan: its codes."""
        return self.prior.forward.size

    # Shapes

    def batch_shapes(self, config: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns a batch of a token cache; a run from images encodes them in front of the same step."""
        length = self.prior.condition.length + self.prior.forward.size
        return {"tokens": jax.ShapeDtypeStruct((config.batch_size, length), jnp.int32)}

    def frozen_shapes(self) -> Tree:
        """Returns the shapes of what a step on tokens reads and never trains: nothing."""
        return {}

    def state_shapes(self, config: Any) -> TrainState:
        """Returns the shapes and dtypes of a run's state."""
        del config
        return jax.eval_shape(self.init, jax.random.key(0))

    # Training

    def init(self, key: jax.Array, images: None = None) -> TrainState:
        """Returns a fresh state; no `images` are needed."""
        alone = self.prior.network.clone(rows=None)  # one sequence cannot be cut into rows
        variables = alone.init(key, jnp.zeros((1, self.prior.network.max_len), jnp.int32))
        params = {"transformer": variables["params"]}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.optimizer_state(params),
            ema=jax.tree.map(jnp.copy, params) if self.ema_decay else {},
            stats={},
        )

    def optimizer_state(self, params: Tree) -> Tree:
        """Returns the state of the optimiser before any step."""
        return {"transformer": self.optimizer.init(params["transformer"])}

    def train_step(self, state: TrainState, frozen: Tree, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        """Updates the network once (equation 8 of the paper).

        A batch in `accumulate` parts has the same loss and gradients; only chance is drawn anew for each part.

        Args:
          state: donated.
          frozen: parameters that are read and never trained: those of the "tokenizer" where images come in, and of the
            "condition" where maps have a tokenizer of their own.
          batch: the global batch, as `codes` takes it.
          key: of the whole run; the step is folded in here.

        Returns:
          The new state; float32 scalars.
        """
        keys = jax.random.split(jax.random.fold_in(key, state.step), 4)
        params = state.params["transformer"]
        part = lambda _, rows, keys: (None, self.gradients(state, frozen, rows, keys), None)
        _, (grads, metrics), _ = in_parts(self.accumulate, part, None, batch, keys)
        updates, opt_state = self.optimizer.update(grads, state.opt_state["transformer"], params)
        params = {"transformer": optax.apply_updates(params, updates)}
        ema = moving_average(state, params, self.ema_decay)
        metrics |= {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
        return TrainState(state.step + 1, params, {"transformer": opt_state}, ema, {}), metrics

    def gradients(self, state: TrainState, frozen: Tree, batch: Batch, keys: jax.Array) -> tuple[Tree, Metrics]:
        """Returns the gradients of a batch's mean loss, and metrics; each of four `keys` is for one kind of chance."""
        condition, indices = codes(self.prior, self.tokenizer, frozen, batch)
        tokens, order = indices.reshape(len(indices), -1)[:, self.prior.forward], None
        if any(self.loss.random_order):
            order = orders(self.loss.random_order, state.step, tokens.shape, keys[3])
            tokens = jnp.take_along_axis(tokens, order, axis=1)
        condition = dropped(condition, self.prior.null(condition), self.drop, keys[0])
        inputs = corrupted(tokens, self.loss.keep, self.prior.network.vocab_size, keys[1])

        def loss_fn(params: Tree) -> tuple[Float[Array, ""], Float[Array, ""]]:
            logits = priors.logits(self.prior, params, condition, inputs, order=order, train=True, dropout=keys[2])
            loss = losses.cross_entropy(logits, tokens, self.loss.label_smoothing).mean()
            return loss, jnp.mean(jnp.argmax(logits, axis=-1) == tokens)

        (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params["transformer"])
        return grads, {"loss": loss, "accuracy": accuracy}

    # Held out

    def evaluate(self, transformer: Tree, frozen: Tree, batch: Batch, mask: Bool[Array, "b"]) -> Metrics:
        """Returns sums over the sequences where `mask` is set: to be added over batches and divided by `count`.

        `nll` is nats a token; nothing is dropped or corrupted.
        """
        condition, indices = codes(self.prior, self.tokenizer, frozen, batch)
        nll = priors.nll(self.prior, transformer, condition, indices).mean(axis=1)
        return {"nll": jnp.sum(jnp.where(mask, nll, 0.0)), "count": jnp.sum(mask.astype(jnp.float32))}

    def figures(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Returns the held-out figures of what `evaluate` summed over all batches."""
        nll = float(sums["nll"] / sums["count"])
        return {"nll": nll, "bits_per_token": nll / math.log(2)}

    def preview(self, transformer: Tree, frozen: Tree, batch: Batch, key: jax.Array) -> tuple[Array, ...]:
        """Returns the conditions' tokens; images as the tokenizer sees them, their second half redrawn, and samples."""
        condition, indices = codes(self.prior, self.tokenizer, frozen, batch)
        batch_size, twice = len(indices), lambda x: jnp.concatenate([x, x])
        half = jnp.where(jnp.arange(2 * batch_size) < batch_size, math.prod(self.prior.grid) // 2, 0)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(2 * batch_size))
        known = priors.leading(self.prior, half, 2 * batch_size)
        drawn = priors.sample(self.prior, transformer, twice(condition), keys, self.settings, twice(indices), known)
        completed, sampled = jnp.split(self.decode(frozen, drawn), 2)
        return condition, self.decode(frozen, indices), completed, sampled

    def sheets(self, arrays: Sequence[np.ndarray], frozen: Tree, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Returns pictures by name, of what `preview` gave: a row of each kind; `names` are of the classes."""
        condition, *images = arrays
        titles = self.prior.condition.picture(frozen, condition, images[0].shape[1], names)
        rows = np.stack([titles, *map(pictures.shown, images)])
        return {"samples": pictures.grid(rows.reshape(-1, *rows.shape[2:]), columns=len(condition))}

    def decode(self, frozen: Tree, indices: Int[Array, "b h w"]) -> UInt8[Array, "b H W c"]:
        """Returns the pixels of codes."""
        assert self.tokenizer is not None, "pixels need a tokenizer"
        return to_uint8(self.tokenizer.apply({"params": frozen["tokenizer"]}, indices, method="decode_indices"))


def codes(
    prior: priors.CodePrior, tokenizer: VQGAN | None, frozen: Tree, batch: Batch
) -> tuple[Int[Array, "b s"], Int[Array, "b h w"]]:
    """Returns the condition's tokens and the codes of a batch: of images, or of both already ("tokens", b s+t)."""
    if "tokens" in batch:
        length = prior.condition.length
        tokens = batch["tokens"]
        return tokens[:, :length], tokens[:, length:].reshape(-1, *prior.grid)
    assert tokenizer is not None, "images need a tokenizer"
    images, rngs = to_input(batch["image"], tokenizer.image_channels), {"gumbel": jax.random.key(0)}
    quantized = tokenizer.apply({"params": frozen["tokenizer"]}, images, method="encode", rngs=rngs)
    return prior.condition.encode(frozen, batch), quantized.indices


def dropped(tokens: Int[Array, "b s"], null: Int[Array, "b s"], rate: float, key: jax.Array) -> Int[Array, "b s"]:
    """Returns conditions, each replaced by the null one with probability `rate` (Ho and Salimans 2022)."""
    if not rate:
        return tokens
    return jnp.where(jax.random.bernoulli(key, rate, (len(tokens), 1)), null, tokens)


def orders(
    times: tuple[float, float], step: Int[Array, ""], shape: tuple[int, ...], key: jax.Array
) -> Int[Array, "b t"]:
    """Returns an order of the tokens of each sequence: a random one or 0, 1, 2, ... (Yu et al. 2024).

    The share of the random ones is 1 until the first of `times`, in steps, and falls to 0 at the second.
    """
    share = jnp.clip((times[1] - step) / max(times[1] - times[0], 1.0), 0.0, 1.0)
    keys = jax.random.split(key)
    shuffled = jnp.argsort(jax.random.uniform(keys[0], shape), axis=1)
    return jnp.where(jax.random.bernoulli(keys[1], share, (shape[0], 1)), shuffled, jnp.arange(shape[1])[None])


def corrupted(tokens: Int[Array, "b t"], keep: float, vocab_size: int, key: jax.Array) -> Int[Array, "b t"]:
    """Returns input tokens, each kept with probability `keep`, else drawn uniformly from the vocabulary."""
    if keep == 1.0:
        return tokens
    kept, noise = jax.random.split(key)
    kept = jax.random.bernoulli(kept, keep, tokens.shape)
    return jnp.where(kept, tokens, jax.random.randint(noise, tokens.shape, 0, vocab_size))
