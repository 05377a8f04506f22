"""Stage 1 on this CPU, trained and used: ours against the published modules in PyTorch, and where the time goes.

Both train one architecture on one batch, in turns: `turns.py` says how, and what makes a ratio trustworthy.

    pip install -e '.[parity]' && pip install --no-deps taming-transformers-rom1504==0.0.6
    python benchmarks/stage1_cpu.py [--case photos middle] [--pairs 7]
    python benchmarks/stage1_cpu.py --case f16 --rows encode decode

Torch's step is always upstream's: the generator with its adaptive weight, then a second forward pass and the
discriminator, whose loss measures LPIPS once more in vain. Its trainer computes no gradients of the network that does
not learn at the moment; neither do we here.
"""
# pyright: reportMissingImports=false

import argparse
import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
from rich.console import Console
from turns import ROOT, Contender, from_tests, measure, print_load

from vqgan_jax import cli
from vqgan_jax import config as configs

ROWS = (
    "step",
    "step, upstream's order",  # ours with a second forward pass too, and nothing that upstream has not
    "autoencoder forward",
    "autoencoder gradient",
    "LPIPS gradient",  # at the reconstruction
    "discriminator step",  # of given reconstructions
    "encode",  # pixels to codes; ours as our users call it, with its checks
    "decode",  # codes to pixels
)
CASES: dict[str, dict[str, Any]] = {
    # The page as it is. Its codes may have unit length while torch's have not, which costs next to nothing.
    "photos": {},
    # Half the paper's width: 5 million weights, 16x16 codes with attention.
    "middle": {
        "batch_size": 4,
        "model.channels": 64,
        "model.channel_multipliers": (1, 1, 2),
        "model.num_res_blocks": 2,
        "model.attn_resolutions": (16,),
        "model.norm_groups": 32,
        "quantizer.codebook_size": 512,
        "quantizer.embed_dim": 64,
        "quantizer.unit_length": False,
        "quantizer.kmeans_batches": 0,
        "quantizer.revive_below": 0.0,
        "discriminator.channels": 64,
        "discriminator.num_layers": 3,
    },
}
# The paper's f16, on crops of 128 pixels.
CASES["f16"] = CASES["middle"] | {
    "batch_size": 2,
    "data.image_size": 128,
    "data.resize": (128, 256),
    "model.channels": 128,
    "model.channel_multipliers": (1, 1, 2, 2, 4),
    "model.resolution": 256,
    "model.latent_channels": 256,
    "quantizer.codebook_size": 1024,
    "quantizer.embed_dim": 256,
}
UPSTREAM_ORDER = {
    "loss.shared_forward": False,
    "loss.lpips_dropout": True,
    "optimizer.clip_norm": 0.0,
    "optimizer.ema_decay": 0.0,
}


def load(case: str, **changes: Any) -> configs.Stage1:
    """The embedded config with the changes of a case. Both players are at work from the first step."""
    changes = CASES[case] | {"loss.disc_start": 0, "loss.disc_ramp": 0, "loss.disc_train_start": 0} | changes
    overrides = [f"--config.{key}={value!r}" for key, value in changes.items()]
    return cli.load_config(str(ROOT / "experiments" / "stage1_photos.py"), overrides)


def pixels(config: configs.Stage1) -> np.ndarray:
    """A batch, uint8 b H W c; no row's time depends on what it shows."""
    shape = (config.batch_size, config.data.image_size, config.data.image_size, config.model.image_channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def ours(case: str) -> Contender:
    """Our functions, jitted as the training loop does it."""
    import jax
    import jax.numpy as jnp

    from vqgan_jax import api
    from vqgan_jax.convert.lpips import load_lpips
    from vqgan_jax.models import Tokenizer
    from vqgan_jax.nn.pixels import to_float
    from vqgan_jax.train.stage1 import FAKE, REAL, Stage1

    config = load(case)
    task, batch, key = Stage1.from_config(config), {"image": jnp.asarray(pixels(config))}, jax.random.key(0)
    images, frozen = to_float(batch["image"]), {"lpips": load_lpips()}
    recon = jax.random.uniform(key, images.shape, minval=-1, maxval=1)

    def forward(params: Any) -> Any:
        rngs = {"dropout": key, "gumbel": key}
        recon, quantized = task.model.apply({"params": params}, images, train=True, rngs=rngs)
        return recon, quantized.loss

    def gradient(params: Any) -> Any:
        return jax.grad(lambda params: jnp.mean(forward(params)[0] * recon) + forward(params)[1])(params)

    def lpips_gradient(given: Any) -> Any:
        (weights, images, recon), lpips = given, task.distances["lpips"].clone(dropout=False)
        return jax.grad(lambda recon: lpips.apply({"params": weights}, images, recon).mean())(recon)

    def discriminator_step(state: Any) -> Any:
        params, stats = state.params["discriminator"], state.stats["discriminator"]
        fake, pull_fake, stats = task.discriminate(params, stats, recon, key, FAKE)
        real, pull_real, stats = task.discriminate(params, stats, images, key, REAL)
        by_logits, _ = task.discriminator_loss(state, real, fake)
        grads = jax.tree.map(jnp.add, pull_real(by_logits[0])[0], pull_fake(by_logits[1])[0])
        return task.apply_gradients(state, "discriminator", grads), stats

    def train(config: configs.Stage1) -> Callable[[], object]:
        task, state = Stage1.from_config(config), None
        step = jax.jit(task.train_step, donate_argnums=0)

        def run() -> None:
            nonlocal state
            if state is None:  # made when it is needed: a large one for each row would fill the memory
                state = jax.jit(task.init)(key, batch["image"][None])
            state, _ = jax.block_until_ready(step(state, frozen, batch, key))

        return run

    def timed(function: Callable[[Any], Any], argument: Any) -> Callable[[], object]:
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(argument))

    state = jax.jit(task.init)(key, batch["image"][None])
    generator = state.params["generator"]
    tokenizer = Tokenizer(generator, task.model)
    indices = api.encode(tokenizer, batch["image"])
    runs = (
        train(config),
        train(load(case, **UPSTREAM_ORDER)),
        timed(forward, generator),
        timed(gradient, generator),
        timed(lpips_gradient, (frozen["lpips"], images, recon)),  # as constants they would be worked on in compilation
        timed(discriminator_step, state),
        lambda: jax.block_until_ready(api.encode(tokenizer, batch["image"])),
        lambda: jax.block_until_ready(api.decode(tokenizer, indices)),
    )
    weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    about = f"jax {jax.__version__}, flax {version('flax')}, {len(os.sched_getaffinity(0))} threads"
    return Contender(f"{case}: {about}, {weights:,} weights to train", weights, dict(zip(ROWS, runs, strict=True)))


def torchs(case: str) -> Contender:
    """Upstream's modules of the same sizes, trained in the order of its trainer."""
    import torch

    config, upstream = load(case), from_tests("golden/upstream")
    # Upstream has 32 groups written into its norms.
    groups = functools.partial(torch.nn.GroupNorm, config.model.norm_groups, eps=1e-6)
    sys.modules[upstream.Encoder.__module__].Normalize = groups  # type: ignore[attr-defined]
    m, loss, optimizer = config.model, config.loss, config.optimizer
    network = {
        **dict(ch=m.channels, ch_mult=m.channel_multipliers, num_res_blocks=m.num_res_blocks, dropout=m.dropout),
        **dict(attn_resolutions=m.attn_resolutions, resolution=m.resolution, z_channels=m.latent_channels),
        **dict(in_channels=m.image_channels, out_ch=m.image_channels, double_z=False),
    }
    losses = {
        **dict(disc_start=loss.disc_start, disc_loss=loss.adversarial, disc_weight=loss.disc_weight),
        **dict(disc_ndf=config.discriminator.channels, disc_num_layers=config.discriminator.num_layers),
        **dict(perceptual_weight=loss.perceptual_weight),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        model = upstream.VQModel(network, losses, config.quantizer.codebook_size, config.quantizer.embed_dim).train()
    adam = functools.partial(torch.optim.Adam, betas=(optimizer.b1, optimizer.b2))
    discriminator, lpips, last = model.loss.discriminator, model.loss.perceptual_loss, model.decoder.conv_out.weight
    opt_ae = adam(model.autoencoder_parameters(), optimizer.learning_rate)
    opt_disc = adam(discriminator.parameters(), optimizer.disc_learning_rate)
    images = torch.tensor(pixels(config)).permute(0, 3, 1, 2).contiguous() / 127.5 - 1
    recon = (2 * torch.rand_like(images) - 1).requires_grad_()

    def update(optimizer: Any, loss: Any) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def step() -> None:
        discriminator.requires_grad_(False)
        y = model(images)
        update(opt_ae, model.loss(y["codebook_loss"], images, y["recon"], 0, 0, last_layer=last)[0])
        discriminator.requires_grad_(True)
        with torch.no_grad():
            y = model(images)
        update(opt_disc, model.loss(y["codebook_loss"], images, y["recon"], 1, 0)[0])

    def gradient() -> None:
        y = model(images)
        torch.autograd.grad((y["recon"] * recon.detach()).mean() + y["codebook_loss"], model.autoencoder_parameters())

    def discriminator_step() -> None:
        logits = discriminator(images), discriminator(recon.detach())
        update(opt_disc, model.loss.disc_loss(*logits))

    def lpips_gradient() -> None:
        lpips.eval()
        torch.autograd.grad(lpips(images, recon).mean(), recon)
        lpips.train()  # as upstream's trainer has it

    def encode() -> Any:
        return model.quantize(model.quant_conv(model.encoder(images)))[2][2]

    def decode() -> Any:
        quantized = model.quantize.get_codebook_entry(indices, (*indices.shape, config.quantizer.embed_dim))
        return model.decoder(model.post_quant_conv(quantized))

    forward, encode, decode = map(torch.no_grad(), (lambda: model(images), encode, decode))
    indices = encode()
    runs = (step, step, forward, gradient, lpips_gradient, discriminator_step, encode, decode)
    weights = sum(p.numel() for p in (*model.autoencoder_parameters(), *discriminator.parameters()))
    about = f"torch {torch.__version__}, taming-transformers-rom1504 {version('taming-transformers-rom1504')}"
    about = f"{case}: {about}, {torch.get_num_threads()} threads, {weights:,} weights to train"
    return Contender(about, weights, dict(zip(ROWS, runs, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=["photos", "middle"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--pairs", type=int, default=7, help="turns of each framework a row")
    flags = parser.parse_args()
    print_load()
    for case in flags.case:
        torch, jax = (functools.partial(contender, case) for contender in (torchs, ours))
        Console().print(measure(case, torch, jax, flags.rows, pairs=flags.pairs))


if __name__ == "__main__":
    main()
