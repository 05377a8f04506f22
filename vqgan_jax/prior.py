"""A prior's pure functions: likelihood and samples of codes, of the training size (section 3.2) and of any (4.3)."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from vqgan_jax import config as configs
from vqgan_jax import losses, ordering, sampling
from vqgan_jax.conditions import Condition
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.network import PriorNetwork

Tree = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class CodePrior:
    """What a prior never changes.

    Attributes:
      network: the module.
      condition: what its prefix says.
      grid: rows and columns of codes.
      order: name of the order in which they are tokens; see `ordering`.
    """

    network: PriorNetwork
    condition: Condition
    grid: tuple[int, int]
    order: str

    @property
    def forward(self) -> Int[np.ndarray, "t"]:
        """Row-major number of each token."""
        return ordering.order(self.order, *self.grid)

    def prefix(self, tokens: Int[Array, "b s"]) -> Int[Array, "b s"]:
        """The condition's tokens as rows of the embedding: behind the codes, unless they share their rows."""
        return tokens + (self.network.vocab_size if self.network.extra_vocab else 0)

    def places(self, tokens: Int[Array, "b s"]) -> Float[Array, "b s 2"] | None:
        """Rows and columns of codes where the condition's tokens stand; None if its kind or the network has none."""
        return self.condition.places(tokens) if self.network.takes_places else None

    def null(self, condition: Int[Array, "b s"]) -> Int[Array, "b s"]:
        """The tokens that stand for a condition that was dropped."""
        return jnp.full_like(condition, self.condition.vocab_size - 1)


def from_config(config: configs.Stage2, condition_tokenizer: VQGAN | None = None) -> CodePrior:
    """The prior that a config describes; the tokenizer is needed where maps must be encoded."""
    condition = config.prefix(condition_tokenizer)
    return CodePrior(config.make_network(), condition, config.grid, config.transformer.order)


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
    order: Int[Array, "b t"] | None = None,
    train: bool = False,
    **rngs,
) -> Float[Array, "b t v"]:
    """Teacher-forced: logits of each token, given the condition and the tokens before it.

    Args:
      prior: static.
      params: of the network.
      condition: the condition's own tokens.
      inputs: all tokens in order; the last one is not used.
      order: number of each token in the prior's own order, where they come in another; of a network that `takes_order`.
      train: with dropout, from the key `dropout`.
    """
    sequence = jnp.concatenate([prior.prefix(condition), inputs[:, :-1]], axis=1)
    places, length, at = prior.places(condition), prior.condition.length, None
    if order is not None:
        at = jnp.concatenate([jnp.broadcast_to(jnp.arange(length), (len(order), length)), length + order], axis=1)
    out: Any = prior.network.apply({"params": params}, sequence, places=places, at=at, train=train, rngs=rngs)
    return out[:, length - 1 :]


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
      params: of the network.
      condition: the condition's own tokens.
      keys: one an image.
      settings: how to draw; see `sampling.check`.
      prompt: codes that are given.
      known: which of them are; each code that is drawn sees those, given or drawn, that come before it in the order.
    """
    length = prior.condition.length
    ordered = lambda grids: grids.reshape(grids.shape[0], -1)[:, prior.forward]
    if settings.guidance is not None:
        condition = jnp.concatenate([condition, prior.null(condition)])
    weights, places = prior.network.prepare(params), prior.places(condition)
    size = length + prior.forward.size - 1

    def draw(network: PriorNetwork) -> Int[Array, "b t"]:
        start = network.prefill(weights, prior.prefix(condition), size, places)
        step = lambda cache, tokens, k: network.step(weights, cache, tokens, length + k)
        return sampling.generate(step, start, ordered(prompt), ordered(known), keys, settings)

    tokens = prior.network.on_this_platform(draw)
    return tokens[:, ordering.inverse(prior.forward)].reshape(-1, *prior.grid)


# Images larger than those of training: a window of the prior's grid slides along (section 4.3 of the paper). Every code
# is drawn from the window around it, in raster order. Positions belong to the window, so a cache of keys and values is
# valid only while the window stands still: codes are drawn in runs, and each run has a cache of its own.

PrefixAt = Callable[[Int[Array, ""], Int[Array, ""]], Int[Array, "b s"]]

# Codes of the window in front of the one that is drawn, along each axis and far from the borders.
RULES = {
    "center": lambda window: window // 2,  # upstream's for maps, classes and nothing
    "scene": lambda window: window // 2 - 1,  # upstream's for layouts
}


class Runs(NamedTuple):
    """Stretches of codes, in raster order, through which the window stands still.

    Attributes:
      first: raster index of the first code of each.
      count: how many codes.
      row, column: the window's origin.
      before: codes of the window in front of the first one.
    """

    first: Int[np.ndarray, "n"]
    count: Int[np.ndarray, "n"]
    row: Int[np.ndarray, "n"]
    column: Int[np.ndarray, "n"]
    before: Int[np.ndarray, "n"]


def origins(length: int, window: int, rule: str, stride: int = 1) -> Int[np.ndarray, "{length}"]:
    """Where the window starts for each position along an axis.

    Args:
      length: of the axis.
      window: its part that the window covers.
      rule: a name of RULES.
      stride: the window is centred anew at every `stride`-th position only; 1 is upstream's.

    Raises:
      ValueError: an unknown rule, a window that is longer than the axis, or a stride with which a position could lie
        outside of its window.
    """
    if rule not in RULES:
        raise ValueError(f"`rule` must be one of {', '.join(RULES)}; got {rule!r}. Choose one.")
    if not window <= length:
        raise ValueError(
            f"the grid must have at least the {window} codes of the prior's along each axis; got {length}. Sample a "
            "larger one and crop it."
        )
    if not 1 <= stride <= window // 2:
        raise ValueError(f"`stride` must be in 1 .. {window // 2}, half the window; got {stride}. Change it.")
    position = np.arange(length)
    return np.clip(position // stride * stride - RULES[rule](window), 0, length - window)


def runs(grid: tuple[int, int], window: tuple[int, int], rule: str, stride: int = 1) -> Runs:
    """The longest stretches of raster order in which the window does not move; arguments and errors: `origins`.

    Their codes follow each other in the window, too: at the end of a row the window goes back to the left, unless it
    is as wide as the grid.
    """
    axes = [origins(length, part, rule, stride) for length, part in zip(grid, window, strict=True)]
    row, column = (origin.reshape(-1) for origin in np.meshgrid(*axes, indexing="ij"))
    moves = (np.diff(row) != 0) | (np.diff(column) != 0)
    first = np.flatnonzero(np.append(True, moves))
    count, row, column = np.diff(first, append=row.size), row[first], column[first]
    return Runs(first, count, row, column, (first // grid[1] - row) * window[1] + first % grid[1] - column)


def buckets(lengths: Int[np.ndarray, "n"]) -> list[int]:
    """At most two lengths, in rising order: if each of `lengths` is rounded up to one of them, least is wasted."""
    longest = int(lengths.max())
    waste = lambda short: np.where(lengths <= short, short, longest).sum()
    return sorted({int(min(np.unique(lengths), key=waste)), longest})


def visited(runs: Runs) -> Int[np.ndarray, "n 2"]:
    """Row and column of each origin at which the window stands, each once."""
    return np.unique(np.stack([runs.row, runs.column], axis=1), axis=0)


def to_scan(runs: Runs, lengths: list[int], known: Bool[Array, "b t"]) -> tuple[Int[Array, "n"], ...]:
    """Returns the fields of runs, the number of the bucket of each, and 1 where no image has a code to draw in it."""
    unknown = jnp.append(0, jnp.cumsum(~known.all(axis=0)))  # codes to draw before each
    is_known = unknown[runs.first + runs.count] == unknown[runs.first]
    return tuple(jnp.asarray(x, jnp.int32) for x in (*runs, np.searchsorted(lengths, runs.before), is_known))


def check_order(prior: CodePrior) -> None:
    """ValueError if the codes do not come row by row."""
    if prior.order != "raster":
        raise ValueError(
            f"a sliding window needs a prior whose order is 'raster'; this one's is {prior.order!r}. Sample its own "
            f"grid, {prior.grid[0]} x {prior.grid[1]}."
        )


def sample_larger(
    prior: CodePrior,
    params: Tree,
    prefix_at: PrefixAt,
    grid: tuple[int, int],
    keys: Key[Array, "b"],
    settings: sampling.Settings,
    prompt: Int[Array, "b H W"] | None = None,
    known: Bool[Array, "b H W"] | None = None,
    *,
    rule: str = "center",
    stride: int = 1,
) -> Int[Array, "b H W"]:
    """Draws grids of codes that may be larger than the prior's. Of the prior's own size they are `prior.sample`'s.

    What the window holds of codes that are not drawn yet cannot be seen, because the transformer is causal. Image i
    depends on key i and on its own prefixes and prompt only.

    Args:
      prior: static; its order must be "raster".
      params: of the network.
      prefix_at: from the window's origin, row and column of codes, both traced, to the condition's own tokens there.
      grid: rows and columns, static.
      keys: one an image; the raster index of a code is folded in.
      settings: how to draw; see `sampling.check`. A schedule of the guidance runs over the whole grid.
      prompt: codes that may be given.
      known: which of them are; none by default, and then `prompt` does not matter. Where all codes of a stretch are
        known, in all images, nothing is computed: an image may be drawn a few rows at a time at little more cost.
      rule: where the window is; see `RULES`.
      stride: the window is centred anew at every `stride`-th row and column only. 1 is upstream's; larger ones are
        faster, because a cache lasts for as many codes.

    Raises:
      ValueError: another order, a grid that is smaller than the prior's along an axis, an unknown rule, or a stride
        that is not in 1 .. half the window.
    """
    check_order(prior)
    stretches = runs(grid, prior.grid, rule, stride)
    lengths = buckets(stretches.before)
    batch, total = len(keys), grid[0] * grid[1]
    flat = lambda codes, dtype: jnp.zeros((batch, total), dtype) if codes is None else codes.reshape(batch, total)
    given, is_given = flat(prompt, jnp.int32), flat(known, bool)
    window, length, weights = prior.grid, prior.condition.length, prior.network.prepare(params)
    twice = lambda rows: rows if settings.guidance is None else jnp.concatenate([rows, rows])

    def sequence(codes: Array, row: Array, column: Array) -> tuple[Array, Array | None]:
        prefix = prefix_at(row, column)
        if settings.guidance is not None:
            prefix = jnp.concatenate([prefix, prior.null(prefix)])
        part = jax.lax.dynamic_slice(codes.reshape(batch, *grid), (0, row, column), (batch, *window))
        tokens = jnp.concatenate([prior.prefix(prefix), twice(part.reshape(batch, -1))], axis=1)
        return tokens, prior.places(prefix)

    size = length + window[0] * window[1] - 1
    stretches = to_scan(stretches, lengths, is_given)

    def draw_all(network: PriorNetwork) -> Int[Array, "b t"]:
        fill = lambda tokens, places, last: network.prefill(weights, tokens, size, places, last)
        fills = [lambda tokens, *rest, n=n: fill(tokens[:, : length + n], *rest) for n in lengths]

        def choose(codes: Array, logits: Array, k: Array) -> tuple[Array, Array]:
            """The codes with the k-th, and that one alone."""
            at = lambda rows: jax.lax.dynamic_index_in_dim(rows, k, axis=1, keepdims=False)
            drawn = jnp.where(at(is_given), at(given), sampling.next_tokens(logits, k, total, keys, settings))
            return jax.lax.dynamic_update_index_in_dim(codes, drawn, k, axis=1), drawn

        def run(codes: Array, stretch: tuple[Array, ...]) -> Array:
            first, count, row, column, before, bucket, _ = stretch
            tokens, places = sequence(codes, row, column)
            last = length + before - 1
            logits, cache = jax.lax.switch(bucket, fills, tokens, places, last)

            def follow(i: Array, carry: tuple[Array, Array, Any]) -> tuple[Array, Array, Any]:
                codes, drawn, cache = carry
                logits, cache = network.step(weights, cache, twice(drawn), last + i)
                return *choose(codes, logits, first + i), cache

            return jax.lax.fori_loop(1, count, follow, (*choose(codes, logits, first), cache))[0]

        advance = lambda codes, stretch: (jax.lax.cond(stretch[-1], lambda codes, _: codes, run, codes, stretch), None)
        return jax.lax.scan(advance, given.astype(jnp.int32), stretches)[0]

    return prior.network.on_this_platform(draw_all).reshape(batch, *grid)
