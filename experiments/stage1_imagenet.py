"""ImageNet at 256 pixels: the tokenizers of the paper, and what later work would do on the same module.

    pip install 'vqgan-jax[prepare]' && tfds build imagenet2012 --file_format=array_record      # once
    vqgan train --config=stage1_imagenet:f16_1024 --workdir=gs://bucket/run --distributed

Sizes: f16 turns 256 x 256 pixels into 16 x 16 codes, f8 into 32 x 32. 300,000 steps of 256 images are 60 epochs of the
1,281,167 training images. Not run by us: the numbers in the comments are published ones, of the run that a variant
restates, for the 50,000 validation images against themselves (rFID).
"""

from recipe import PAPER_CODES, paper_stage1

from vqgan_jax.config import choose, stage1, vary

GUMBEL_F8 = {
    "model.channel_multipliers": (1, 1, 2, 4),  # 3 halvings
    "model.attn_resolutions": (32,),
    "quantizer.kind": "gumbel",
    "quantizer.codebook_size": 8192,
    "quantizer.temperature": (0.9, 1e-6, 1_000_001),
    "quantizer.kl_weight": 1e-8,
}

# As VQGAN+ (Weber et al. 2024) with 10 bits a code, whose codes have 256 dimensions and which was trained for longer.
MODERN = {
    "model.attn_resolutions": (),
    "quantizer.embed_dim": 8,
    "quantizer.unit_length": True,
    "loss.pixel": "l2",
    "loss.perceptual": "resnet50",
    "loss.perceptual_weight": 0.1,
    "discriminator.kind": "patch_v2",
    "loss.adaptive": False,
    "loss.disc_weight": 0.02,
    "loss.lecam_weight": 0.001,
    "optimizer.b1": 0.9,
    "optimizer.b2": 0.999,
    "optimizer.weight_decay": 1e-4,
}

VARIANTS = {
    # ours                                                                                                       rFID
    "f16_1024": {},  #                                                                                           -
    "f16_16384": {"quantizer.codebook_size": 16384, "quantizer.embed_dim": 8, "quantizer.unit_length": True},  # -
    "f8": {  # the f8 of latent diffusion: 4-dimensional codes                                                   -
        "model.channel_multipliers": (1, 2, 2, 4),
        "model.attn_resolutions": (32,),
        "model.latent_channels": 4,
        "quantizer.codebook_size": 16384,
        "quantizer.embed_dim": 4,
    },
    "gumbel_f8": GUMBEL_F8,  #                                                                                   -
    "alive": {"quantizer.kmeans_batches": 4, "quantizer.revive_below": 0.05},  # a switch on any of these        -
    "ema": {"quantizer.ema": True, "quantizer.codebook_weight": 0.0, "quantizer.revive_below": 0.05},  #              -
    # switches, too: a perceptual loss of ResNet50's logits as in VQGAN+; ten parts of LPIPS to one of logits
    "logits": {"loss.pixel": "l2", "loss.perceptual": "resnet50", "loss.perceptual_weight": 0.1},  #            -
    "blend": {"loss.pixel": "l2", "loss.perceptual": "both", "loss.perceptual_weight": 1.1},  #                 -
    "modern": MODERN,  # the published VQGAN+ has 1.67                                                          -
    "sharded": {"mesh.data": -1, "mesh.fsdp": 4},
    # the published ones, to the letter
    "paper": paper_stage1(batch_size=12, disc_start=250_001) | PAPER_CODES,  #                                   7.94
    "paper_16384": paper_stage1(batch_size=14, disc_start=250_001, disc_weight=0.75)
    | PAPER_CODES
    | {"quantizer.codebook_size": 16384, "discriminator.num_layers": 2},  #                                      4.98
    "paper_gumbel_f8": paper_stage1(batch_size=12, disc_start=250_001)
    | GUMBEL_F8
    | {"quantizer.noisy_eval": True},  # trained on OpenImages, published without its loss's settings            1.49
}


def get_config(variant: str = "f16_1024"):
    """`variant` is a name of VARIANTS, or several, applied from left to right: "f16_16384,alive"."""
    config = vary(stage1(), {"data.source": "tfds:imagenet2012", "data.resize": (256, 288), "steps": 300_000})
    return choose(config, VARIANTS, variant)
