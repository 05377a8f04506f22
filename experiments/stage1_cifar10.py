"""CIFAR-10 on a laptop: f4 codes of the whole 32-pixel images, half an hour on two cores.

    pip install 'vqgan-jax[prepare]' && tfds build cifar10 --file_format=array_record      # once
    vqgan train --config=experiments/stage1_cifar10.py --workdir=runs/cifar10

Each image becomes 8 x 8 codes: 1024 codes a step of 16 images. The network is that of stage1_photos.
"""

from recipe import choose, paper_stage1, stage1, vary

VARIANTS = {
    "base": {},
    "no_kmeans": {"quantizer.kmeans_batches": 0},
    "no_revival": {"quantizer.revive_below": 0.0},
    "plain": {"quantizer.unit_length": False, "quantizer.kmeans_batches": 0, "quantizer.revive_below": 0.0},
    "ema": {"quantizer.unit_length": False, "quantizer.ema": True, "loss.codebook_weight": 0.0},
    "no_disc": {"loss.disc_weight": 0.0},
    "paper": paper_stage1(batch_size=16, disc_start=2_000) | {"data.resize": (32, 32)},
}


def get_config(variant: str = "base"):
    """`variant` is a name of VARIANTS, or several, applied from left to right."""
    config = vary(
        stage1(),
        {
            "steps": 4_000,
            "batch_size": 16,
            "data.source": "tfds:cifar10",
            "data.eval_split": "test",
            "data.image_size": 32,
            "data.resize": (32, 32),
            "data.num_threads": 1,
            "model.channels": 16,
            "model.channel_multipliers": (1, 2, 4),
            "model.num_res_blocks": 1,
            "model.attn_resolutions": (),
            "model.resolution": 32,
            "model.latent_channels": 64,
            "model.norm_groups": 8,
            "model.dtype": "float32",
            "quantizer.codebook_size": 512,
            "quantizer.embed_dim": 8,
            "quantizer.unit_length": True,
            "quantizer.kmeans_batches": 8,
            "quantizer.decay": 0.9,
            "quantizer.revive_below": 0.1,
            "discriminator.channels": 32,
            "discriminator.num_layers": 2,
            "loss.disc_weight": 0.2,
            "loss.disc_start": 2_000,
            "loss.disc_ramp": 500,
            "optimizer.learning_rate": 1e-3,
            "optimizer.disc_learning_rate": 3e-4,
            "optimizer.b1": 0.9,
            "optimizer.b2": 0.99,
            "optimizer.warmup_steps": 50,
            "optimizer.ema_decay": 0.99,
            "log.metrics_every": 50,
            "log.eval_every": 500,
            "log.eval_examples": 512,
            "log.checkpoint_every": 500,
        },
    )
    return choose(config, VARIANTS, variant)
