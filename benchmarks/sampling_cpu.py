"""Tokens a second of cached sampling on this CPU: ours against the published sampler in PyTorch, with the same weights.

Both draw 256 tokens behind one, from the 100 likeliest of 1,024 at temperature 1, by 12 layers of width 512. Before,
both take the likeliest tokens of a few rows, and these must be the same. `turns.py` says how the two take turns, and
what makes a ratio trustworthy.

    pip install -e '.[parity]' && pip install --no-deps taming-transformers-rom1504==0.0.6
    python benchmarks/sampling_cpu.py [--batch 1 16] [--pairs 5]

Upstream's sampler, `sample_with_past`, keeps every past key and value and puts them together anew at each token.
"""
# pyright: reportMissingImports=false

import argparse
import dataclasses
import functools
import os
from importlib.metadata import version
from typing import Any

import numpy as np
from rich.console import Console
from turns import Contender, from_tests, measure, print_load

VOCAB, GRID, DEPTH, WIDTH, HEADS = 1024, (16, 16), 12, 512, 8
TOKENS, TOP_K = GRID[0] * GRID[1], 100
GREEDY_ROWS = 4


def weights() -> dict[str, np.ndarray]:
    """Random ones under the names of upstream's GPT, large enough that greedy rows do not repeat one token."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: 0.05 * rng.standard_normal(shape, np.float32)
    arrays = {"tok_emb.weight": normal(VOCAB, WIDTH), "pos_emb": normal(1, TOKENS, WIDTH)}
    norms = ["ln_f", *(f"blocks.{i}.ln{j}" for i in range(DEPTH) for j in (1, 2))]
    arrays |= {f"{name}.weight": 1 + normal(WIDTH) for name in norms}
    arrays |= {f"{name}.bias": normal(WIDTH) for name in norms}
    kernels = {f"attn.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value", "proj")}
    kernels |= {"mlp.0": (4 * WIDTH, WIDTH), "mlp.2": (WIDTH, 4 * WIDTH)}
    for block in (f"blocks.{i}" for i in range(DEPTH)):
        arrays |= {f"{block}.{name}.weight": normal(*shape) for name, shape in kernels.items()}
        arrays |= {f"{block}.{name}.bias": normal(shape[0]) for name, shape in kernels.items()}
    return arrays | {"head.weight": normal(VOCAB, WIDTH)}


def start(batch: int) -> np.ndarray:
    """The token that stands before all others of each row."""
    return np.arange(batch, dtype=np.int32)[:, None]


def ours(batches: tuple[int, ...]) -> Contender:
    """`prior.sample`, jitted; splitting the layers' weights is part of it."""
    import jax
    import jax.numpy as jnp

    from vqgan_jax import prior
    from vqgan_jax.conditions.label import Unconditional
    from vqgan_jax.convert.infer import GPT
    from vqgan_jax.nn.transformer import Transformer
    from vqgan_jax.sampling import Settings

    @dataclasses.dataclass(frozen=True)
    class Start(Unconditional):
        """One token that shares its row of the embedding with a code, as upstream has it."""

        length = 1  # type: ignore[assignment]
        vocab_size = VOCAB  # type: ignore[assignment]

    module = Transformer(DEPTH, WIDTH, HEADS, max_len=TOKENS, vocab_size=VOCAB, **GPT)
    code_prior = prior.CodePrior(module, Start(), GRID, "raster")
    params = from_tests("reference").gpt_params(weights(), HEADS)
    sample = jax.jit(functools.partial(prior.sample, code_prior))

    def draw(batch: int, settings: Settings) -> Any:
        keys, prompt = jax.random.split(jax.random.key(0), batch), jnp.zeros((batch, *code_prior.grid), jnp.int32)
        return jax.block_until_ready(sample(params, jnp.asarray(start(batch)), keys, settings, prompt, prompt > 0))

    greedy = np.asarray(draw(GREEDY_ROWS, Settings(greedy=True))).reshape(GREEDY_ROWS, TOKENS)
    about = f"jax {jax.__version__}, flax {version('flax')}, {len(os.sched_getaffinity(0))} threads"
    rows = {f"batch {b}": functools.partial(draw, b, Settings(top_k=TOP_K)) for b in batches}
    return Contender(about, greedy, rows)


def torchs(batches: tuple[int, ...]) -> Contender:
    """Upstream's `sample_with_past`."""
    import torch

    upstream = from_tests("golden/upstream")
    gpt = upstream.GPT(VOCAB, TOKENS, n_layer=DEPTH, n_head=HEADS, n_embd=WIDTH).eval()
    arrays = weights()
    for name, parameter in gpt.named_parameters():
        parameter.data.copy_(torch.tensor(arrays.pop(name)))
    assert not arrays, "upstream's GPT has no place for some weights"

    def draw(batch: int, **settings: Any) -> Any:
        return upstream.sample_with_past(torch.tensor(start(batch)).long(), gpt, TOKENS, **settings)

    about = f"torch {torch.__version__}, taming-transformers-rom1504 {version('taming-transformers-rom1504')}"
    rows = {f"batch {b}": functools.partial(draw, b, top_k=TOP_K, top_p=1.0) for b in batches}
    greedy = draw(GREEDY_ROWS, sample_logits=False).numpy()
    print("greedy: different tokens of a row", *(len(np.unique(row)) for row in greedy))
    return Contender(f"{about}, {torch.get_num_threads()} threads", greedy, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="rows that are drawn at once")
    parser.add_argument("--pairs", type=int, default=5, help="turns of each framework a row")
    flags = parser.parse_args()
    print_load()
    torch, jax = (functools.partial(contender, tuple(flags.batch)) for contender in (torchs, ours))
    rate = lambda row, seconds: int(row.split()[1]) * TOKENS / seconds
    rows = [f"batch {b}" for b in flags.batch]
    Console().print(measure("sampling", torch, jax, rows, pairs=flags.pairs, unit="tokens/s", value=rate))


if __name__ == "__main__":
    main()
