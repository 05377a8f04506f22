"""draft"""
from recipe import choose, stage1, vary

VARIANTS = {"base": {}}

def get_config(variant: str = ""):
    config = vary(stage1(), {
        "steps": 1500, "batch_size": 16,
        "data.source": "photos", "data.image_size": 64, "data.resize": (64, 256), "data.num_threads": 1,
        "model.channels": 32, "model.channel_multipliers": (1, 1, 2, 2), "model.num_res_blocks": 1, "model.attn_resolutions": (),
        "model.resolution": 64, "model.latent_channels": 64, "model.dtype": "float32",
        "quantizer.codebook_size": 512, "quantizer.embed_dim": 8, "quantizer.unit_length": True,
        "quantizer.kmeans_batches": 8, "quantizer.revive_below": 0.1, "discriminator.channels": 32, "discriminator.num_layers": 2,
        "loss.disc_start": 800, "loss.disc_ramp": 200, "optimizer.learning_rate": 1e-3, "optimizer.disc_learning_rate": 1e-3,
        "optimizer.warmup_steps": 50,
    })
    return choose(config, VARIANTS, variant)
