"""Steps a second of stage 2 on this CPU: ours against the published GPT in PyTorch, from the same weights.

Both train 12 layers of width 512 by AdamW, in float32 and with the paper's switches, on 256 codes behind one token a
row. Before, both take a few steps, and the losses of these must be the same. `turns.py` says how the two take turns,
and what makes a ratio trustworthy.

    pip install -e '.[parity]' && pip install --no-deps taming-transformers-rom1504==0.0.6
    python benchmarks/stage2_cpu.py [--batch 4] [--pairs 5]
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
from sampling_cpu import DEPTH, GRID, HEADS, TOKENS, VOCAB, WIDTH, weights
from turns import ROOT, Contender, from_tests, measure, print_load

ROWS = ("step", "gradient", "forward")
STEPS, DECIMALS, LEARNING_RATE = 3, 3, 1e-3
CHANGES = {
    "data.image_size": 4 * GRID[0],
    "data.resize": (4 * GRID[0], 4 * GRID[0]),
    "tokenizer.codebook_size": VOCAB,
    "transformer.depth": DEPTH,
    "transformer.width": WIDTH,
    "transformer.num_heads": HEADS,
    "optimizer.learning_rate": LEARNING_RATE,
}


def codes(batch: int) -> np.ndarray:
    """A class, which shares its row of the embedding with a code, and the codes of each row."""
    rng = np.random.default_rng(0)
    rows = rng.integers(10, size=(batch, 1)), rng.integers(VOCAB, size=(batch, TOKENS))
    return np.concatenate(rows, axis=1, dtype=np.int32)


def ours(batch: int) -> Contender:
    """Our functions, jitted as the training loop does it."""
    import jax
    import jax.numpy as jnp

    from vqgan_jax import cli, prior
    from vqgan_jax.train import stage2
    from vqgan_jax.train.stage2 import Stage2

    overrides = [f"--config.{key}={value!r}" for key, value in CHANGES.items()]
    config = cli.load_config(str(ROOT / "experiments" / "stage2_cifar10.py:paper"), overrides)
    task, tokens, key = Stage2.from_config(config), jnp.asarray(codes(batch)), jax.random.key(0)
    params = from_tests("reference").gpt_params(weights(), HEADS)
    state = dataclasses.replace(task.init(key), params={"transformer": jax.tree.map(jnp.copy, params)})
    train_step = jax.jit(task.train_step, donate_argnums=0)

    def step() -> Any:
        nonlocal state
        state, metrics = jax.block_until_ready(train_step(state, {}, {"tokens": tokens}, key))
        return metrics["loss"]

    def loss(params: Any) -> Any:
        return prior.nll(task.prior, params, *stage2.codes(task.prior, None, {}, {"tokens": tokens})).mean()

    def timed(function: Any) -> Any:
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(params))

    losses = np.round([float(step()) for _ in range(STEPS)], DECIMALS)
    about = f"jax {jax.__version__}, flax {version('flax')}, {len(os.sched_getaffinity(0))} threads, losses {losses}"
    return Contender(about, losses, dict(zip(ROWS, (step, timed(jax.grad(loss)), timed(loss)), strict=True)))


def torchs(batch: int) -> Contender:
    """Upstream's GPT, loss and optimiser."""
    import torch

    upstream = from_tests("golden/upstream")
    gpt = upstream.GPT(VOCAB, TOKENS, n_layer=DEPTH, n_head=HEADS, n_embd=WIDTH)
    arrays = weights()
    for name, parameter in gpt.named_parameters():
        parameter.data.copy_(torch.tensor(arrays.pop(name)))
    assert not arrays, "upstream's GPT has no place for some weights"
    prior = upstream.Prior(gpt, LEARNING_RATE).train()
    optimizer, tokens = prior.configure_optimizers(), torch.tensor(codes(batch)).long()
    loss = lambda: prior.shared_step((tokens[:, 1:], tokens[:, :1]), 0)

    def step() -> Any:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        return value.detach()

    gradient = lambda: torch.autograd.grad(loss(), list(gpt.parameters()))
    losses = np.round([float(step()) for _ in range(STEPS)], DECIMALS)
    about = f"torch {torch.__version__}, taming-transformers-rom1504 {version('taming-transformers-rom1504')}"
    about = f"{about}, {torch.get_num_threads()} threads, losses {losses}"
    return Contender(about, losses, dict(zip(ROWS, (step, gradient, torch.no_grad()(loss)), strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4, help="rows of a step")
    parser.add_argument("--pairs", type=int, default=5, help="turns of each framework a row")
    flags = parser.parse_args()
    print_load()
    torch, jax = (functools.partial(contender, flags.batch) for contender in (torchs, ours))
    Console().print(measure(f"stage 2, batch {flags.batch}", torch, jax, ROWS, pairs=flags.pairs))


if __name__ == "__main__":
    main()
