"""Tokens a second of the sliding window on this CPU: runs with a cache against a whole forward for every token.

Both are ours and share module and weights, 12 layers of width 512 over a window of 16 x 16 codes; the second is the
published way of drawing images larger than the window. It costs the same wherever the window is, so it draws only so
many codes from the middle of each grid on, after those that the first has drawn; and with stride 1, where both follow
the same rule, its codes must be the same. The likeliest is taken each time.

    python benchmarks/sliding_cpu.py [--grid 16x64 32x32] [--stride 1 8] [--prefix 1] [--batch 1] [--depth 12]

The two take turns, and every ratio is of two neighbours; above 1 the cache is faster. Measure on an idle machine.
"""

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from turns import from_tests, print_load

from vqgan_jax import prior as priors
from vqgan_jax.conditions.label import ClassLabel
from vqgan_jax.convert.infer import GPT
from vqgan_jax.nn.transformer import Transformer
from vqgan_jax.sampling import Settings

VOCAB, WINDOW, WIDTH, HEADS = 1024, (16, 16), 512, 8


def code_prior(prefix: int, depth: int) -> priors.CodePrior:
    """With so many condition tokens in front, of which only the number matters here."""

    class Tokens(ClassLabel):
        length = prefix  # type: ignore[assignment]

    sizes = {"max_len": prefix + 255, "vocab_size": VOCAB, "extra_vocab": 1}
    module = Transformer(depth, WIDTH, HEADS, **(GPT | sizes))
    return priors.CodePrior(module, Tokens(num_classes=1), WINDOW, "raster")


def parameters(module: Transformer) -> Any:
    """Random ones, large enough that the likeliest tokens differ."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    return from_tests("untrained").randomised(shapes, 0.05)


def cached(prior: priors.CodePrior, grid: tuple[int, int], stride: int, batch: int) -> Callable[[Any], jax.Array]:
    """`prior.sample_larger` as a function of the parameters."""
    at = lambda row, column: jnp.zeros((batch, prior.condition.length), jnp.int32)
    keys, settings = jax.random.split(jax.random.key(0), batch), Settings(greedy=True)
    return jax.jit(lambda params: priors.sample_larger(prior, params, at, grid, keys, settings, stride=stride))


def recomputed(prior: priors.CodePrior, grid: tuple[int, int]) -> Callable[[Any, jax.Array, int], jax.Array]:
    """Draws code k as upstream does: all positions of the window around it, the last one dropped, in one forward."""
    length, (height, width) = prior.condition.length, prior.grid

    @functools.partial(jax.jit, donate_argnums=1)
    def draw(params: Any, codes: jax.Array, k: jax.Array) -> jax.Array:
        i, j = k // grid[1], k % grid[1]
        top, left = jnp.clip(i - height // 2, 0, grid[0] - height), jnp.clip(j - width // 2, 0, grid[1] - width)
        window = jax.lax.dynamic_slice(codes, (0, top, left), (len(codes), height, width)).reshape(len(codes), -1)
        condition = jnp.zeros((len(codes), length), jnp.int32)
        tokens = jnp.concatenate([prior.prefix(condition), window], axis=1)[:, :-1]
        logits: Any = prior.network.apply({"params": params}, tokens)
        drawn = jnp.argmax(logits[:, length + (i - top) * width + j - left - 1], axis=-1).astype(codes.dtype)
        return codes.at[:, i, j].set(drawn)

    return draw


def seconds(run: Callable[[], jax.Array]) -> tuple[float, jax.Array]:
    start = time.perf_counter()
    result = jax.block_until_ready(run())
    return time.perf_counter() - start, result


def measure(
    params: Any, fast: Callable[..., Any], slow: Callable[..., Any], grid: tuple[int, int], flags: argparse.Namespace
) -> tuple[list[tuple[float, float]], bool]:
    """Tokens a second of the slow and of the fast one, turn by turn; and whether their codes are the same."""
    middle, rates, same = grid[0] * grid[1] // 2, [], True
    flat = lambda grids: grids.reshape(len(grids), -1)

    def go_on(codes: jax.Array) -> jax.Array:
        for k in range(middle, middle + flags.tokens):
            codes = slow(params, codes, k)
        return codes

    for turn in range(flags.pairs + 1):
        fast_time, drawn = seconds(lambda: fast(params))
        known = flat(drawn).at[:, middle:].set(0).reshape(drawn.shape)
        slow_time, again = seconds(lambda known=known: go_on(known))
        part = slice(middle, middle + flags.tokens)
        same &= bool((flat(drawn)[:, part] == flat(again)[:, part]).all())
        if turn:  # the first one compiles
            rates.append((flags.batch * flags.tokens / slow_time, drawn.size / fast_time))
    print(f"{grid}: {len(np.unique(drawn[0]))} different codes in an image", flush=True)
    return rates, same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", nargs="+", default=["16x64", "32x32"], help="rows x columns of codes")
    parser.add_argument("--stride", type=int, nargs="+", default=[1, 8], help="see prior.sample_larger")
    parser.add_argument("--prefix", type=int, default=1, help="tokens of the condition; 256 for a map")
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--depth", type=int, default=12, help="layers")
    parser.add_argument("--tokens", type=int, default=32, help="codes that the slow one draws a turn")
    parser.add_argument("--pairs", type=int, default=3, help="turns of each, after one that compiles")
    flags = parser.parse_args()
    print_load()
    prior = code_prior(flags.prefix, flags.depth)
    params = parameters(prior.network)
    table = Table(title=f"sliding window, prefix {flags.prefix}, batch {flags.batch}, {flags.depth} layers: tokens/s")
    for heading in ("grid", "stride", "recomputed", "cached", "ratio, median \\[min, max]"):
        table.add_column(heading, justify="right")
    for name, stride in itertools.product(flags.grid, flags.stride):
        height, _, width = name.partition("x")
        grid = (int(height), int(width))
        fast = cached(prior, grid, stride, flags.batch)
        rates, same = measure(params, fast, recomputed(prior, grid), grid, flags)
        assert same or stride > 1, "the two do not compute the same"
        ratios = [fast / slow for slow, fast in rates]
        spread = f"{statistics.median(ratios):.1f} [{min(ratios):.1f}, {max(ratios):.1f}]"
        medians = (statistics.median(side) for side in zip(*rates, strict=True))
        table.add_row(name, str(stride), *(f"{rate:.1f}" for rate in medians), spread)
    Console().print(table)


if __name__ == "__main__":
    main()
