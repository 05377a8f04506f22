"""The smallest run that has every part: k-means start, revived codes, BatchNorm, an adversary from step 4, an EMA."""

from vqgan_jax.config import choose, stage1, vary

VARIANTS = {
    "base": {},
    "smooth": {"loss.pixel": "l2", "loss.adversarial": "non_saturating"},
    "lpips": {"loss.perceptual_weight": 1.0},
    "semantic": {"model.channel_multipliers": (1, 1, 1), "loss.semantic_weight": 0.5},
    "segmentation": {
        "data.field": "segmentation",
        "model.image_channels": 9,
        "loss.pixel": "cross_entropy",
        "loss.perceptual_weight": 0.0,
        "loss.disc_weight": 0.0,
    },
    "depth": {"data.field": "depth", "model.image_channels": 1, "loss.perceptual_weight": 1.0, "loss.disc_weight": 0.0},
}


def get_config(variant: str = ""):
    """A config page like those of the lab book; 16 px, some 300,000 parameters."""
    config = vary(
        stage1(),
        {
            "steps": 10,
            "batch_size": 8,
            "data.source": "scenes",
            "data.image_size": 16,
            "data.resize": (16, 20),
            "data.num_threads": 1,
            "model.channels": 64,  # two a group: a bias before a norm of one channel has no gradient but noise
            "model.channel_multipliers": (1, 1),
            "model.num_res_blocks": 1,
            "model.attn_resolutions": (),
            "model.resolution": 16,
            "model.latent_channels": 64,
            "model.dtype": "float32",
            "quantizer.codebook_size": 32,
            "quantizer.embed_dim": 8,
            "quantizer.kmeans_batches": 2,
            "quantizer.revive_below": 0.1,
            "discriminator.channels": 8,
            "discriminator.num_layers": 2,
            "loss.perceptual_weight": 0.0,
            "loss.disc_start": 3,
            "loss.disc_ramp": 2,
            "optimizer.warmup_steps": 0,
            "log.metrics_every": 1,
            "log.eval_every": 6,
            "log.eval_examples": 16,
            "log.checkpoint_every": 3,
        },
    )
    return choose(config, VARIANTS, variant)
