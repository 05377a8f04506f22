"""A prior's pure functions: prefix and codes to tokens, their likelihood, and new ones (section 3.2 of the paper)."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from vqgan_jax import build, losses, ordering, sampling
from vqgan_jax import config as configs
from vqgan_jax.conditions import Condition
from vqgan_jax.nn import caches, decoding
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.transformer import Transformer

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CodePrior:
    """What a prior never changes.

    Attributes:
      transformer: the module.
      condition: what its prefix says.
      grid: rows and columns of codes.
      order: name of the order in which they are tokens; see `ordering`.
    """

    transformer: Transformer
    condition: Condition
    grid: tuple[int, int]
    order: str

    @property
    def forward(self) -> Int[np.ndarray, "t"]:
        """Row-major number of each token."""
        return ordering.order(self.order, *self.grid)

    def prefix(self, tokens: Int[Array, "b s"]) -> Int[Array, "b s"]:
        """The condition's tokens as rows of the embedding: behind the codes, unless they share their rows."""
        return tokens + (self.transformer.vocab_size if self.transformer.extra_vocab else 0)

    def places(self, tokens: Int[Array, "b s"]) -> Float[Array, "b s 2"] | None:
        """Where the condition's tokens stand, in rows and columns of codes, if they say that themselves.

        Priors of "rope2d_line" were trained before this, with a layout's tokens in a line to the left of the image.
        """
        return self.condition.places(tokens) if self.transformer.positions == "rope2d" else None

    def null(self, condition: Int[Array, "b s"]) -> Int[Array, "b s"]:
        """The tokens that stand for a condition that was dropped."""
        return jnp.full_like(condition, self.condition.vocab_size - 1)


def from_config(config: configs.Stage2, condition_tokenizer: VQGAN | None = None) -> CodePrior:
    """The prior that a config describes; the tokenizer is needed where maps must be encoded."""
    condition = config.prefix(condition_tokenizer)
    return CodePrior(build.transformer(config), condition, config.grid, config.transformer.order)


def leading(prior: CodePrior, count: int | Int[Array, ""] | Int[Array, "b"], batch: int) -> Bool[Array, "b h w"]:
    """True for the first `count` codes in the prior's order, of all images or of each."""
    position = jnp.asarray(ordering.inverse(prior.forward)).reshape(1, *prior.grid)
    return jnp.broadcast_to(position < jnp.reshape(jnp.asarray(count), (-1, 1, 1)), (batch, *prior.grid))


def logits(
    prior: CodePrior,
    params: Tree,
    condition: Int[Array, "b s"],
    inputs: Int[Array, "b t"],
    *,
    train: bool = False,
    **rngs,
) -> Float[Array, "b t v"]:
    """Teacher-forced: logits of each token, given the condition and the tokens before it.

    Args:
      prior: static.
      params: of the transformer.
      condition: the condition's own tokens.
      inputs: all tokens in order; the last one is not used.
      train: with dropout, from the key `dropout`.
    """
    sequence = jnp.concatenate([prior.prefix(condition), inputs[:, :-1]], axis=1)
    places = prior.places(condition)
    out: Any = prior.transformer.apply({"params": params}, sequence, places=places, train=train, rngs=rngs)
    return out[:, prior.condition.length - 1 :]


def nll(
    prior: CodePrior, params: Tree, condition: Int[Array, "b s"], indices: Int[Array, "b h w"]
) -> Float[Array, "b t"]:
    """Negative log-likelihood of each token, in nats, in the order of generation."""
    tokens = indices.reshape(len(indices), -1)[:, prior.forward]
    return losses.cross_entropy(logits(prior, params, condition, tokens), tokens)


def sample(
    prior: CodePrior,
    params: Tree,
    condition: Int[Array, "b s"],
    keys: Key[Array, "b"],
    settings: sampling.Settings,
    prompt: Int[Array, "b h w"],
    known: Bool[Array, "b h w"],
) -> Int[Array, "b h w"]:
    """Draws grids of codes.

    Args:
      prior: static.
      params: of the transformer.
      condition: the condition's own tokens.
      keys: one an image.
      settings: how to draw; see `sampling.check`.
      prompt: codes that are given.
      known: which of them are; each code that is drawn sees those, given or drawn, that come before it in the order.
    """
    module, length = prior.transformer, prior.condition.length
    ordered = lambda grids: grids.reshape(grids.shape[0], -1)[:, prior.forward]
    if settings.guidance is not None:
        condition = jnp.concatenate([condition, prior.null(condition)])
    weights = decoding.unstack(module, params)
    size, places = length + prior.forward.size - 1, prior.places(condition)

    def run(form: caches.Form) -> Int[Array, "b t"]:
        start = decoding.prefill(module, weights, prior.prefix(condition), size, form, places)
        step = lambda cache, tokens, k: decoding.step(module, weights, cache, tokens, length + k, form)
        return sampling.generate(step, start, ordered(prompt), ordered(known), keys, settings)

    tokens = caches.on_this_platform(run)
    return tokens[:, ordering.inverse(prior.forward)].reshape(-1, *prior.grid)
