"""The embedded photographs at 64 pixels: a real VQGAN on a laptop in ten minutes, with nothing to download.

    vqgan train --config=experiments/stage1_photos.py --workdir=runs/photos

Eleven photographs and textures out of scikit-image; each step draws four crops of 64 pixels at a random scale, and the
rightmost fifth of every photograph is held out. f4: 16 x 16 codes a crop, 1024 codes a step for a codebook of 512.

The network is narrow: 16, 32, 64 channels instead of 128 to 512, under a million parameters. So it gets 8 groups a
norm: with 32, as in the paper, the last norm of 32 channels would normalise each channel by itself and no image could
have a colour of its own (15 dB instead of 19 dB after 200 steps of the bare autoencoder of 32, 32, 64).
"""

from recipe import choose, paper_stage1, stage1, vary

VARIANTS = {
    "base": {},  # 22.8 dB, LPIPS 0.296, 99.8% of the codes; held out, step 1200
    "no_kmeans": {"quantizer.kmeans_batches": 0},
    "no_revival": {"quantizer.revive_below": 0.0},
    "plain": {"quantizer.unit_length": False, "quantizer.kmeans_batches": 0, "quantizer.revive_below": 0.0},
    "euclidean": {"quantizer.unit_length": False},
    "ema": {"quantizer.unit_length": False, "quantizer.ema": True, "loss.codebook_weight": 0.0},
    "no_disc": {"loss.disc_weight": 0.0},
    "l1_only": {"loss.disc_weight": 0.0, "loss.perceptual_weight": 0.0},
    "two_forwards": {"loss.shared_forward": False},
    "paper": paper_stage1(batch_size=4, disc_start=600) | {"data.resize": (64, 256)},
}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right: "ema,no_disc"."""
    config = vary(
        stage1(),
        {
            "steps": 1_200,
            "batch_size": 4,
            "data.image_size": 64,
            "data.resize": (64, 256),  # from the whole photograph in a crop to a third of it
            "data.num_threads": 1,  # the other core's time belongs to the step
            "model.channels": 16,
            "model.channel_multipliers": (1, 2, 4),
            "model.num_res_blocks": 1,
            "model.attn_resolutions": (),  # there is one in the middle anyway
            "model.resolution": 64,
            "model.latent_channels": 64,
            "model.norm_groups": 8,
            "model.dtype": "float32",
            "quantizer.codebook_size": 512,
            "quantizer.embed_dim": 8,
            "quantizer.unit_length": True,
            "quantizer.kmeans_batches": 8,
            "quantizer.decay": 0.9,  # a dead code is born again after some 20 steps
            "quantizer.revive_below": 0.1,
            "discriminator.channels": 32,
            "discriminator.num_layers": 2,
            "loss.disc_weight": 0.2,  # 0.8 took the held-out PSNR from 22.6 dB down to 21.0, LPIPS from 0.32 up to 0.35
            "loss.disc_start": 600,
            "loss.disc_ramp": 200,
            "optimizer.learning_rate": 1e-3,
            "optimizer.disc_learning_rate": 3e-4,
            "optimizer.b1": 0.9,
            "optimizer.b2": 0.99,
            "optimizer.warmup_steps": 50,
            "optimizer.ema_decay": 0.99,
            "log.metrics_every": 20,
            "log.eval_every": 200,
            "log.eval_examples": 40,  # all that are held out
            "log.checkpoint_every": 200,
        },
    )
    return choose(config, VARIANTS, variant)
