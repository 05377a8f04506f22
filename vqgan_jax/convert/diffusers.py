"""The folders in which diffusers keeps a `VQModel`, with the old names of its attention and the new ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from vqgan_jax.config import Stage1
from vqgan_jax.convert import infer, names, trees
from vqgan_jax.convert.names import CONV, LINEAR_OF_CONV, Entry
from vqgan_jax.convert.tensors import Checkpoint, ConvertError
from vqgan_jax.convert.trees import Converted, Shapes

# Parts of names, upstream's and theirs; their decoder's levels are numbered as they run, from the lowest resolution.
MODULES = (
    ("encoder.down.#.block.#", "encoder.down_blocks.#.resnets.#"),
    ("encoder.down.#.attn.#", "encoder.down_blocks.#.attentions.#"),
    ("encoder.down.#.downsample", "encoder.down_blocks.#.downsamplers.0"),
    ("decoder.up.~.block.#", "decoder.up_blocks.~.resnets.#"),
    ("decoder.up.~.attn.#", "decoder.up_blocks.~.attentions.#"),
    ("decoder.up.~.upsample", "decoder.up_blocks.~.upsamplers.0"),
    (".mid.block_1", ".mid_block.resnets.0"),
    (".mid.attn_1", ".mid_block.attentions.0"),
    (".mid.block_2", ".mid_block.resnets.1"),
    (".nin_shortcut", ".conv_shortcut"),
    (".norm_out", ".conv_norm_out"),
    ("attentions.#.norm", "attentions.#.group_norm"),
)
NEW = (
    ("attentions.#.q", "attentions.#.to_q"),
    ("attentions.#.k", "attentions.#.to_k"),
    ("attentions.#.v", "attentions.#.to_v"),
    ("attentions.#.proj_out", "attentions.#.to_out.0"),
)
OLD = (  # before 2023
    ("attentions.#.q.", "attentions.#.query."),
    ("attentions.#.k.", "attentions.#.key."),
    ("attentions.#.v.", "attentions.#.value."),
    ("attentions.#.proj_out", "attentions.#.proj_attn"),
)
NEEDED = {"_class_name": "VQModel", "norm_type": "group", "act_fn": "silu"}  # of config.json, where it is told


def plan(checkpoint: Checkpoint, *, allow: Sequence[str] = ()) -> Converted:
    """Finds a VQ model in a folder; each array is a `Tensor` of its final shape that is read when it is asked for.

    Args:
      checkpoint: an opened folder, or its file of weights alone, which then has 32 groups a norm.
      allow: patterns, as of file names, of tensors that may be missing, unexpected or of another shape.

    Raises:
      ConvertError: a tensor is missing, unexpected or of another shape, or the model is none that we have.
    """
    settings = checkpoint.other.get("config") if isinstance(checkpoint.other, Mapping) else None
    settings = settings if isinstance(settings, Mapping) else {}
    for key, ours in NEEDED.items():
        if settings.get(key, ours) != ours:
            raise ConvertError(
                f"a diffusers model must have {key} {ours!r} in its config.json; got {settings[key]!r}, a network that "
                "is none of ours. Give a VQModel of that kind."
            )
    tensors = checkpoint.tensors
    levels = infer.count(tensors, r"encoder\.down_blocks\.(\d+)\.")
    old = any(name.endswith(".proj_attn.weight") for name in tensors)
    pairs = MODULES + (OLD if old else NEW)
    upstream = {names.renamed(name, pairs, levels, back=True): tensor.shape for name, tensor in tensors.items()}
    config = infer.stage1(upstream, norm_groups=settings.get("norm_num_groups", 32))
    return trees.tokenizer(config, lambda shapes: entries(shapes, levels, old=old), tensors, allow=allow)


def entries(shapes: Shapes, levels: int, *, old: bool = False) -> dict[str, Entry]:
    """Returns every tensor of a model of so many levels by its name there; attention is linear maps."""
    found = {}
    for name, entry in names.entries(names.autoencoder(), shapes).items():
        name = names.renamed(name, MODULES + (OLD if old else NEW), levels)
        if ".attentions." in name and entry.layout is CONV:
            entry = entry._replace(layout=LINEAR_OF_CONV, shape=entry.shape[:2])
        found[name] = entry
    return found


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
