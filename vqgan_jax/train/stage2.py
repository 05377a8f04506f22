"""Stage 2: pure functions that start a prior, train it by one step and measure it (section 3.2 of the paper)."""

# Flax types the result of `apply` as a union with its variables, which no checker can tell apart.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportReturnType=false

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, UInt8

from vqgan_jax import build, losses
from vqgan_jax import config as configs
from vqgan_jax import prior as priors
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.pixels import to_float, to_uint8
from vqgan_jax.train.state import TrainState, in_parts, moving_average

Metrics = dict[str, Array]
Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a run of stage 2 never changes: modules, optimiser and the numbers of the loss."""

    prior: priors.CodePrior
    tokenizer: VQGAN | None
    optimizer: optax.GradientTransformation
    loss: configs.TokenLoss
    drop: float
    ema_decay: float
    accumulate: int


def from_config(
    config: configs.Stage2,
    tokenizer: VQGAN | None = None,
    condition_tokenizer: VQGAN | None = None,
    *,
    rows: jax.sharding.NamedSharding | None = None,
) -> Task:
    """The task that a config describes.

    Args:
      config: of the run.
      tokenizer, condition_tokenizer: needed where images, and maps, come in.
      rows: how a batch lies on the devices; see `nn.transformer.Transformer`.
    """
    prior = priors.from_config(config, condition_tokenizer)
    return Task(
        prior=dataclasses.replace(prior, transformer=prior.transformer.clone(rows=rows)),
        tokenizer=tokenizer,
        optimizer=build.optimizer(config.optimizer, config.optimizer.learning_rate, config.steps),
        loss=config.loss,
        drop=config.condition.drop,
        ema_decay=config.optimizer.ema_decay,
        accumulate=config.accumulate,
    )


def init(task: Task, key: jax.Array) -> TrainState:
    """A fresh state."""
    alone = task.prior.transformer.clone(rows=None)  # one sequence cannot be cut into rows
    variables = alone.init(key, jnp.zeros((1, task.prior.transformer.max_len), jnp.int32))
    params = {"transformer": variables["params"]}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizers(task, params),
        ema=jax.tree.map(jnp.copy, params) if task.ema_decay else {},
        stats={},
    )


def optimizers(task: Task, params: Tree) -> Tree:
    """State of the optimiser before any step."""
    return {"transformer": task.optimizer.init(params["transformer"])}


def codes(
    prior: priors.CodePrior, tokenizer: VQGAN | None, frozen: Tree, batch: dict[str, Array]
) -> tuple[Int[Array, "b s"], Int[Array, "b h w"]]:
    """The condition's tokens and the codes of a batch, which holds images, or both already ("tokens", b s+t)."""
    if "tokens" in batch:
        length = prior.condition.length
        tokens = batch["tokens"]
        return tokens[:, :length], tokens[:, length:].reshape(-1, *prior.grid)
    assert tokenizer is not None, "images need a tokenizer"
    quantized = tokenizer.apply(
        {"params": frozen["tokenizer"]}, to_float(batch["image"]), method="encode", rngs={"gumbel": jax.random.key(0)}
    )
    return prior.condition.encode(frozen, batch), quantized.indices


def decode(task: Task, frozen: Tree, indices: Int[Array, "b h w"]) -> UInt8[Array, "b H W c"]:
    """Pixels of codes."""
    assert task.tokenizer is not None, "pixels need a tokenizer"
    return to_uint8(task.tokenizer.apply({"params": frozen["tokenizer"]}, indices, method="decode_indices"))


def train_step(
    task: Task, state: TrainState, frozen: Tree, batch: dict[str, Array], key: jax.Array
) -> tuple[TrainState, Metrics]:
    """One update of the transformer (equation 8 of the paper).

    A batch in `task.accumulate` parts has the same loss and gradients; only chance is drawn anew for each part.

    Args:
      task: static; bind it before `jax.jit`.
      state: donated.
      frozen: parameters that are read and never trained: those of the "tokenizer" where images come in, and of the
        "condition" where maps have a tokenizer of their own.
      batch: the global batch, as `codes` takes it.
      key: of the whole run; the step is folded in here.

    Returns:
      The new state; float32 scalars.
    """
    keys = jax.random.split(jax.random.fold_in(key, state.step), 3)
    params = state.params["transformer"]
    part = lambda _, rows, keys: (None, gradients(task, params, frozen, rows, keys), None)
    _, (grads, metrics), _ = in_parts(task.accumulate, part, None, batch, keys)
    updates, opt_state = task.optimizer.update(grads, state.opt_state["transformer"], params)
    params = {"transformer": optax.apply_updates(params, updates)}
    ema = moving_average(state, params, task.ema_decay)
    metrics |= {"grad_norm": optax.tree.norm(grads), "param_norm": optax.tree.norm(params)}
    return TrainState(state.step + 1, params, {"transformer": opt_state}, ema, {}), metrics


def gradients(task: Task, params: Tree, frozen: Tree, batch: dict[str, Array], keys: jax.Array) -> tuple[Tree, Metrics]:
    """The gradients of the mean loss of a batch and what to log; each of the three `keys` is for one kind of chance."""
    condition, indices = codes(task.prior, task.tokenizer, frozen, batch)
    tokens = indices.reshape(len(indices), -1)[:, task.prior.forward]
    condition = dropped(condition, task.prior.null(condition), task.drop, keys[0])
    inputs = corrupted(tokens, task.loss.keep, task.prior.transformer.vocab_size, keys[1])

    def loss_fn(params: Tree) -> tuple[Float[Array, ""], Float[Array, ""]]:
        logits = priors.logits(task.prior, params, condition, inputs, train=True, dropout=keys[2])
        loss = losses.cross_entropy(logits, tokens, task.loss.label_smoothing).mean()
        return loss, jnp.mean(jnp.argmax(logits, axis=-1) == tokens)

    (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    return grads, {"loss": loss, "accuracy": accuracy}


def dropped(tokens: Int[Array, "b s"], null: Int[Array, "b s"], rate: float, key: jax.Array) -> Int[Array, "b s"]:
    """Whole conditions replaced by the null condition, each with probability `rate` (Ho and Salimans 2022)."""
    if not rate:
        return tokens
    return jnp.where(jax.random.bernoulli(key, rate, (len(tokens), 1)), null, tokens)


def corrupted(tokens: Int[Array, "b t"], keep: float, vocab_size: int, key: jax.Array) -> Int[Array, "b t"]:
    """Input tokens, each kept with probability `keep`, else drawn uniformly from the vocabulary."""
    if keep == 1.0:
        return tokens
    kept, noise = jax.random.split(key)
    kept = jax.random.bernoulli(kept, keep, tokens.shape)
    return jnp.where(kept, tokens, jax.random.randint(noise, tokens.shape, 0, vocab_size))


def eval_step(task: Task, transformer: Tree, frozen: Tree, batch: dict[str, Array], mask: Bool[Array, "b"]) -> Metrics:
    """Sums over the sequences where `mask` is set: to be added over batches and divided by `count`.

    `nll` is nats a token; nothing is dropped or corrupted.
    """
    condition, indices = codes(task.prior, task.tokenizer, frozen, batch)
    nll = priors.nll(task.prior, transformer, condition, indices).mean(axis=1)
    return {"nll": jnp.sum(jnp.where(mask, nll, 0.0)), "count": jnp.sum(mask.astype(jnp.float32))}
