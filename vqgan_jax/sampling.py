"""From logits to tokens: filters, guidance, and the loop over positions. It knows a function, not a network.

A draw's order, as upstream's: guide the logits, divide by the temperature, top-k, top-p, softmax, draw.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, Key

SCHEDULES = ("constant", "linear", "cosine")


@struct.dataclass
class Settings:
    """How to draw. Numbers may change without a new compilation; what turns a filter on or off makes one.

    Attributes:
      temperature: divides the logits; above 0.
      top_p: keeps the likeliest tokens until their mass crosses this, in (0, 1]; None is off.
      guidance: s of null + s (conditional - null); None is off, and no null half runs.
      power: p of the cosine schedule.
      top_k: keeps the k largest logits, and what ties with the smallest of them; None is off.
      schedule: of the guidance over the positions, a name of SCHEDULES.
      greedy: takes the likeliest token; the filters do nothing then.
    """

    temperature: Any = 1.0  # a float, or traced: hence no stricter type
    top_p: Any = None
    guidance: Any = None
    power: Any = 1.0
    top_k: Any = None
    schedule: str = struct.field(pytree_node=False, default="constant")
    greedy: bool = struct.field(pytree_node=False, default=False)


def check(settings: Settings, vocab_size: int) -> None:
    """Raises ValueError for settings out of range; call it before they are traced."""
    s = settings
    for name, value, fine, range_ in (
        ("temperature", s.temperature, s.temperature > 0, "above 0"),
        ("top_k", s.top_k, s.top_k is None or 1 <= s.top_k <= vocab_size, f"in 1 .. {vocab_size}, the vocabulary"),
        ("top_p", s.top_p, s.top_p is None or 0 < s.top_p <= 1, "in (0, 1]"),
        ("guidance", s.guidance, s.guidance is None or s.guidance >= 0, "0 or more; 1 is no guidance"),
        ("power", s.power, s.power >= 0, "0 or more; 0 is a constant guidance"),
        ("schedule", s.schedule, s.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
    ):
        if not fine:
            raise ValueError(f"`{name}` must be {range_}; got {value!r}. Change it, or leave it out to turn it off.")


def keep_top_k(logits: Float[Array, "b v"], k: int | Int[Array, ""]) -> Float[Array, "b v"]:
    """-inf for all but the k largest of a row and those equal to the smallest of these."""
    return jnp.where(logits < kth_largest(logits, k), -jnp.inf, logits)


def kth_largest(x: Float[Array, "b v"], k: int | Int[Array, ""]) -> Float[Array, "b 1"]:
    """The k-th largest of each row, exactly, without a sort, which is many times slower on a CPU.

    Bit by bit it finds the largest number that at least k of a row reach, with floats as integers of the same order.
    """
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    rank = jnp.where(bits < sign, bits | sign, ~bits)  # negative numbers below, the other way round

    def narrow(threshold: Array, bit: Array) -> tuple[Array, None]:
        reached = jnp.sum(rank >= (threshold | bit), axis=-1, keepdims=True) >= k
        return jnp.where(reached, threshold | bit, threshold), None

    masks = sign >> jnp.arange(32, dtype=jnp.uint32)
    threshold, _ = jax.lax.scan(narrow, jnp.zeros_like(rank[:, :1]), masks, unroll=8)
    return jnp.min(jnp.where(rank >= threshold, x, jnp.inf), axis=-1, keepdims=True)


def keep_top_p(logits: Float[Array, "b v"], p: float | Float[Array, ""]) -> Float[Array, "b v"]:
    """-inf for tokens before which, in falling order of probability, there is more mass than `p`.

    The token that crosses p stays (Holtzman et al. 2020, section 3.1); p = 1 keeps everything.
    """
    order = jnp.argsort(-logits, axis=-1)
    ranked = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
    before = jnp.cumsum(ranked, axis=-1) - ranked
    keep = jnp.take_along_axis((before <= p) | (p >= 1.0), jnp.argsort(order, axis=-1), axis=-1)
    return jnp.where(keep, logits, -jnp.inf)


def filtered(logits: Float[Array, "b v"], settings: Settings) -> Float[Array, "b v"]:
    """Logits of the distribution to draw from."""
    logits = logits / settings.temperature
    if settings.top_k is not None:
        logits = keep_top_k(logits, settings.top_k)
    if settings.top_p is not None:
        logits = keep_top_p(logits, settings.top_p)
    return logits


def guidance_scale(settings: Settings, index: Int[Array, ""], length: int) -> Float[Array, ""]:
    """Scale at position `index` of `length`: constant s, 1 + (s-1) i/T, or 1 + (s-1) (1 - cos(pi (i/T)^p)) / 2."""
    assert settings.guidance is not None
    x = index / length
    cosine = (1.0 - jnp.cos(jnp.pi * x**settings.power)) / 2.0
    share = {"constant": jnp.ones(()), "linear": x, "cosine": cosine}[settings.schedule]
    return 1.0 + (settings.guidance - 1.0) * share


def draw(logits: Float[Array, "b v"], keys: Key[Array, "b"], settings: Settings) -> Int[Array, "b"]:
    """One token a row, each with its own key."""
    if settings.greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, filtered(logits, settings)).astype(jnp.int32)


def next_tokens(
    logits: Float[Array, "_ v"], k: Int[Array, ""], length: int, keys: Key[Array, "b"], settings: Settings
) -> Int[Array, "b"]:
    """Draws the k-th of `length` tokens of each row.

    Args:
      logits: of the rows; with guidance twice as many, first all with their condition, then all without.
      k: position, folded into the keys.
      length: of the whole sequence, for the schedule of the guidance.
      keys: one a row.
      settings: how to draw.
    """
    if settings.guidance is not None:
        guided, null = jnp.split(logits, 2)
        logits = null + guidance_scale(settings, k, length) * (guided - null)
    return draw(logits, jax.vmap(jax.random.fold_in, (0, None))(keys, k), settings)


Step = Callable[[Any, Int[Array, "b"], Int[Array, ""]], tuple[Float[Array, "b v"], Any]]


def generate(
    step: Step,
    start: tuple[Float[Array, "_ v"], Any],
    prompt: Int[Array, "b t"],
    known: Bool[Array, "b t"],
    keys: Key[Array, "b"],
    settings: Settings,
) -> Int[Array, "b t"]:
    """Draws tokens one after the other, in one `lax.scan`.

    Row i depends on key i and on its own prompt only: the same whatever the batch. With guidance the rows of `start`
    and those that `step` sees are twice as many: first all with their condition, then all without.

    Args:
      step: `(cache, tokens, k) -> (logits, cache)`: feeds the k-th tokens and gives the logits of the ones after.
      start: logits of the first tokens, and the cache that the prefix filled.
      prompt: tokens that are given.
      known: which of them are; the others are drawn, and what `prompt` says there does not matter. It may change
        without a new compilation.
      keys: one a row; position k is folded in.
      settings: how to draw.

    Returns:
      What was given and what was drawn, as many tokens as `prompt` is long.
    """
    length = prompt.shape[1]
    guided = settings.guidance is not None

    def choose(logits: Array, k: Array) -> Array:
        at = lambda rows: jax.lax.dynamic_index_in_dim(rows, k, axis=1, keepdims=False)
        return jnp.where(at(known), at(prompt), next_tokens(logits, k, length, keys, settings))

    def body(carry: tuple[Array, Any], k: Array) -> tuple[tuple[Array, Any], Array]:
        logits, cache = carry
        tokens = choose(logits, k)
        return step(cache, jnp.concatenate([tokens, tokens]) if guided else tokens, k), tokens

    (logits, _), tokens = jax.lax.scan(body, start, jnp.arange(length - 1))  # nothing follows the last token
    return jnp.concatenate([tokens.T, choose(logits, jnp.asarray(length - 1))[:, None]], axis=1)
