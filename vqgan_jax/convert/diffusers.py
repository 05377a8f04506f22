"""The folders in which diffusers keeps a `VQModel`, with the old names of its attention and the new ones."""

import functools
from typing import Any

from vqgan_jax.config import Stage1
from vqgan_jax.convert import infer, names, trees
from vqgan_jax.convert.tensors import Checkpoint, ConvertError
from vqgan_jax.convert.trees import Converted

# From upstream's names; the levels of their decoder are numbered as they run, from the lowest resolution.
MODULES: names.Rules = (
    (r"\.down\.", ".down_blocks."),
    (r"\.up\.", ".up_blocks."),
    (r"\.block\.", ".resnets."),
    (r"\.attn\.", ".attentions."),
    (r"\.(down|up)sample\.", r".\1samplers.0."),
    (r"\.mid\.block_1", ".mid_block.resnets.0"),
    (r"\.mid\.attn_1", ".mid_block.attentions.0"),
    (r"\.mid\.block_2", ".mid_block.resnets.1"),
    ("nin_shortcut", "conv_shortcut"),
    ("norm_out", "conv_norm_out"),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
)
NEW: names.Rules = (
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    ("proj_out", "to_out.0"),
)
OLD: names.Rules = (  # before 2023
    (r"(attentions\.\d+)\.q\.", r"\1.query."),
    (r"(attentions\.\d+)\.k\.", r"\1.key."),
    (r"(attentions\.\d+)\.v\.", r"\1.value."),
    ("proj_out", "proj_attn"),
)
NEEDED = {"_class_name": "VQModel", "norm_type": "group", "act_fn": "silu"}  # of config.json, where it is told


def plan(checkpoint: Checkpoint) -> Converted:
    """Finds a VQ model in a folder; each array is a `Tensor` of its final shape that is read when it is asked for.

    Args:
      checkpoint: an opened folder, or its file of weights alone, which then has 32 groups a norm.

    Raises:
      ConvertError: the model is none that we have.
    """
    settings = checkpoint.other.get("config")
    settings = settings if isinstance(settings, dict) else {}
    for key, ours in NEEDED.items():
        if settings.get(key, ours) != ours:
            raise ConvertError(f"`{key}` in config.json must be {ours!r}; got {settings[key]!r}. Give another VQModel.")
    tensors = checkpoint.tensors
    levels = infer.count(tensors, "encoder.down_blocks.{}.resnets.0.conv1.weight".format)
    old = any(name.endswith(".proj_attn.weight") for name in tensors)
    model = {"norm_groups": settings.get("norm_num_groups", 32)}
    config = infer.stage1(tensors, functools.partial(renamed, levels=levels, old=old), model=model)
    return trees.tokenizer(config, vq_model(levels, old=old), tensors)


def renamed(path: str, levels: int, *, old: bool = False) -> str:
    """Returns their name for a path of ours, in a model of `levels` levels."""
    return names.renamed((*names.TORCH, *MODULES, *(OLD if old else NEW)), names.flipped(path, levels))


def vq_model(levels: int, *, old: bool = False) -> names.Table:
    """Returns the table of a model of `levels` levels; the projections of its attention are linear maps."""
    name = functools.partial(renamed, levels=levels, old=old)
    attention = names.Row("generator/.*attn.*/kernel", name, names.LINEAR_OF_CONV)
    return (attention, *names.autoencoder(name))


def config_json(config: Stage1) -> dict[str, Any]:
    """Returns the `config.json` of a `VQModel`."""
    m, q = config.model, config.quantizer
    levels = range(len(m.channel_multipliers))
    kinds = ["Attn" if m.resolution >> level in m.attn_resolutions else "" for level in levels]
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "norm_type": "group",
        "norm_num_groups": m.norm_groups,
        "scaling_factor": 1.0,
        "in_channels": m.image_channels,
        "out_channels": m.image_channels,
        "latent_channels": m.latent_channels,
        "block_out_channels": [m.channels * n for n in m.channel_multipliers],
        "down_block_types": [f"{kind}DownEncoderBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpDecoderBlock2D" for kind in reversed(kinds)],
        "layers_per_block": m.num_res_blocks,
        "sample_size": config.data.image_size,
        "num_vq_embeddings": q.codebook_size,
        "vq_embed_dim": q.embed_dim,
        "mid_block_add_attention": True,
    }
