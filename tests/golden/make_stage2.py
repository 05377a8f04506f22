"""Writes the reference arrays of stage 2: what upstream's published GPT computes, in float32 on a CPU.

As in make_stage1.py, every number comes out of upstream's own code; this script seeds it, feeds it and records it. The
loss, the optimiser's groups and the samplers are those of `Net2NetTransformer` and `mingpt`. The one exception is the
filter that upstream imported from `transformers`: it is long gone from there, see upstream.py. Install what
make_stage1.py says, then

    python tests/golden/make_stage2.py

`--float64 --out DIR` computes the same in double precision: the distance to the committed arrays is what rounding
costs. README.md beside this file says what each array is.
"""
# pyright: reportMissingImports=false

import argparse
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import upstream
from make_stage1 import prefixed, save, tensor

NETWORK = dict(vocab_size=48, block_size=40, n_layer=3, n_head=4, n_embd=32)
B, PREFIX, CODES = 3, 4, 36  # 40 ids: as long as the network can read
STEPS, LEARNING_RATE, SEED = 10, 1e-3, 13

# Standard deviations: of embeddings, so small that LayerNorm's epsilon shows in the logits (1e-6 in place of 1e-5 moves
# them by 3e-3), and of all other parameters, so large that greedy rows do not repeat one token.
SMALL, LARGE = 0.05, 0.3
GRID = 1 / 64  # parameters are rounded to multiples of it, which makes their arrays three times smaller
BITS = 16  # of gradients and ways, for the same reason; it costs at most 1.5e-5 of the largest

# (temperature, top_k, top_p) as upstream takes them, 0 and 1 being off; of five rows of 40 logits with ties in them.
DRAWS = (
    (1.0, 0, 1.0),
    (0.7, 1, 1.0),
    (1.0, 3, 1.0),
    (1.3, 6, 1.0),
    (1.0, 100, 1.0),  # more than there are
    (1.0, 0, 0.9),
    (2.0, 0, 0.6),
    (0.25, 0, 0.5),  # less than the likeliest of a row has: that one stays
    (0.8, 12, 0.9),
    (1.5, 40, 0.6),
)
TOP_K = (1, 3, 6, 40)


def make_prior(n_unmasked=0):
    """Upstream's model with every parameter away from zero, and LayerNorms' scales away from one."""
    rng = np.random.default_rng(SEED)
    prior = upstream.Prior(upstream.GPT(**NETWORK, n_unmasked=n_unmasked), LEARNING_RATE).eval()
    for name, parameter in prior.named_parameters():
        centre = torch.round(parameter.data)  # upstream's start less its randomness: 1 for LayerNorms' scales, else 0
        noise = (SMALL if "_emb" in name else LARGE) * rng.standard_normal(parameter.shape)
        parameter.data = torch.round((centre + tensor(noise)) / GRID) * GRID
    return prior


def rounded(value):
    """The value in steps of 2**-BITS of the power of two above its largest."""
    step = 2.0 ** (torch.ceil(torch.log2(value.abs().max())) - BITS)
    return torch.round(value / step) * step


def ids(rng, *shape):
    return torch.as_tensor(rng.integers(NETWORK["vocab_size"], size=shape))


def gpt_arrays(rng):
    prior = make_prior()
    c, z = ids(rng, B, PREFIX), ids(rng, B, CODES)
    tokens = torch.cat([c, z], 1)
    logits, _ = prior.transformer(tokens)
    loss = prior.shared_step((z, c), 0)
    loss.backward()
    arrays = prefixed("state", prior.state_dict())
    arrays |= dict(c=c, z=z, logits=logits, loss=loss)
    arrays |= {f"grad/{name}": rounded(parameter.grad) for name, parameter in prior.named_parameters()}
    prior = make_prior(n_unmasked=6)  # longer than the condition: two codes see each other
    unmasked = dict(logits=prior.transformer(tokens[:1])[0], loss=prior.shared_step((z, c), 0))
    return arrays | prefixed("unmasked", unmasked)


def ten_steps_arrays(rng):
    prior = make_prior()
    optimizer = prior.configure_optimizers()
    cs, zs, losses = ids(rng, STEPS, B, PREFIX), ids(rng, STEPS, B, CODES), []
    for c, z in zip(cs, zs, strict=True):
        loss = prior.shared_step((z, c), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    print("losses", *(f"{loss:.4f}" for loss in losses))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    decay = torch.tensor([decay[id(parameter)] for parameter in prior.parameters()])
    start = dict(make_prior().named_parameters())
    way = {name: rounded(parameter.data - start[name].data) for name, parameter in prior.named_parameters()}
    return dict(c=cs, z=zs, losses=torch.stack(losses), decay=decay) | prefixed("way", way)


def greedy_arrays(rng):
    """Upstream's two samplers, with a cache and without, which must agree."""
    prior = make_prior()
    c = ids(rng, B, PREFIX)
    tokens = upstream.sample_with_past(c, prior.transformer, CODES, sample_logits=False)
    assert torch.equal(tokens, prior.sample(c[:, :0], c, CODES, sample=False))
    with torch.no_grad():
        logits, _ = prior(tokens, c)
    best = torch.topk(logits, 2, dim=-1)
    assert torch.equal(best.indices[..., 0], tokens)
    margin = (best.values[..., 0] - best.values[..., 1]).min()
    assert margin > 1e-3, "a greedy token hangs on rounding: take another SEED"
    print("greedy: tokens of a row", *(len(row.unique()) for row in tokens), "margin", f"{margin:.3g}")
    return dict(c=c, tokens=tokens, margin=margin)


def drawn_from(logits, temperature, top_k, top_p):
    """The probabilities from which `sample_with_past` would draw the first token."""
    network = SimpleNamespace(forward_with_past=lambda *_, **__: (logits[:, None], None, None))
    start = torch.zeros(len(logits), 1, dtype=torch.long)
    with mock.patch.object(torch, "multinomial", wraps=torch.multinomial) as multinomial:
        upstream.sample_with_past(start, network, 1, temperature, top_k=int(top_k), top_p=top_p)
    return multinomial.call_args.args[0]


def tied_logits(rng):
    """Normal logits; in each row neighbours in rank are made equal, among them the largest of the last row."""
    logits = 2.0 * rng.standard_normal((5, 40))
    order = np.argsort(-logits, axis=1)
    for row, ranks in enumerate(((2, 3), (5, 6, 7), (2, 3, 4, 5, 6), (11, 12), (0, 1))):
        logits[row, order[row, ranks]] = logits[row, order[row, ranks[0]]]
    return tensor(logits)


def assert_unambiguous(logits, probs, temperature, top_k, top_p):
    """No kept token may equal a dropped one in a top-p filter, nor a mass lie within rounding of p."""
    if top_p == 1.0:
        return
    for row, kept in zip(logits, probs > 0, strict=True):
        assert not np.isin(row[kept].numpy(), row[~kept].numpy()).any(), "top-p parts a tie: take other numbers"
    survivors = drawn_from(logits, temperature, top_k, 1.0)
    mass = torch.sort(survivors, descending=True).values.cumsum(-1)
    assert (mass - top_p).abs().min() > 1e-4, "a filter hangs on rounding: take other numbers"


def filter_arrays(rng):
    logits = tied_logits(rng)
    probs = [drawn_from(logits, *draw) for draw in DRAWS]
    for draw, kept in zip(DRAWS, probs, strict=True):
        assert_unambiguous(logits, kept, *draw)
        print(*draw, "keeps", *(kept > 0).sum(-1).tolist())
    top_k = [torch.softmax(upstream.Prior.top_k_logits(None, logits, k), -1) for k in TOP_K]
    arrays = dict(logits=logits, draws=np.asarray(DRAWS), probs=torch.stack(probs))
    return arrays | dict(top_k=np.asarray(TOP_K), top_k_probs=torch.stack(top_k))


def main():
    parser = argparse.ArgumentParser(description="Write the reference arrays of stage 2.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--float64", action="store_true", help="compute in double precision")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64 if flags.float64 else torch.float32)
    rngs = np.random.default_rng(SEED + 1).spawn(4)
    save(flags.out, "stage2_gpt", gpt_arrays(rngs[0]))
    save(flags.out, "stage2_ten_steps", ten_steps_arrays(rngs[1]))
    sampling = prefixed("greedy", greedy_arrays(rngs[2])) | prefixed("filters", filter_arrays(rngs[3]))
    save(flags.out, "stage2_sampling", sampling)


if __name__ == "__main__":
    main()
