"""What no tensor tells: upstream's published training and sampling, as sections of our configs."""

from typing import Any

RATE = 4.5e-6  # upstream's learning rate of one example in the batch

DATA: dict[str, Any] = {
    "source": "folder:images",
    "data_dir": "",
    "train_split": "train",
    "eval_split": "validation",
    "image_size": 256,
    "resize": (256, 256),
    "crop": "random",
    "flip": False,
    "small": "upscale",
    "field": "image",
    "low_resolution_factor": 4,
    "edge_sigma": 2.0,
    "shift_labels": False,
    "num_threads": 16,
    "timeout_seconds": 600,
}
LOSS: dict[str, Any] = {
    "pixel": "l1",
    "pixel_weight": 1.0,
    "perceptual_weight": 1.0,
    "lpips_dropout": True,
    "codebook_weight": 0.25,  # upstream's 0.25 sits on the codebook's term
    "commitment_weight": 1.0,
    "kl_weight": 0.0,
    "adversarial": "hinge",
    "disc_weight": 0.8,
    "adaptive": True,
    "disc_start": 0,
    "disc_ramp": 0,
    "disc_train_start": 0,
    "shared_forward": False,
}
GUMBEL_LOSS = {"codebook_weight": 0.0, "commitment_weight": 0.0, "kl_weight": 1e-8}
LABEL_LOSS = {"pixel": "binary_cross_entropy", "perceptual_weight": 0.0, "disc_weight": 0.0}
ADAM: dict[str, Any] = {
    "b1": 0.5,
    "b2": 0.9,
    "weight_decay": 0.0,
    "clip_norm": 0.0,
    "schedule": "constant",
    "warmup_steps": 0,
    "final_fraction": 1.0,
    "ema_decay": 0.0,
    "nonfinite": "stop",
}
ADAMW = ADAM | {"learning_rate": 2 * RATE, "b1": 0.9, "b2": 0.95, "weight_decay": 0.01}
RUN: dict[str, Any] = {
    "seed": 0,
    "steps": 1_000_000,
    "accumulate": 1,
    "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "zero1": False},
    "log": {
        "metrics_every": 100,
        "eval_every": 5_000,
        "eval_examples": 2_048,
        "eval_metrics": (),
        "checkpoint_every": 2_500,
        "keep": 2,
    },
}
GPT: dict[str, Any] = {
    "norm": "layer",
    "mlp": "gelu",
    "positions": "learned",
    "qk_norm": False,
    "bias": True,
    "dropout": 0.0,
    "remat": "none",
    "dtype": "float32",
}
CONDITION: dict[str, Any] = {
    "max_objects": 30,
    "max_tokens": 128,
    "num_ids": 0,
    "crop_points": True,
    "paper": False,
    "size": 0,
    "shared_vocab": True,
    "drop": 0.0,
}
SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "guidance": 1.0,
    "schedule": "constant",
    "power": 1.0,
    "greedy": False,
    "previews": 8,
}
