"""From our models to other people's files: the tables of `names` from right to left."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vqgan_jax import ordering
from vqgan_jax.config import Stage1, Stage2
from vqgan_jax.convert import diffusers, llamagen, names, native, taming, trees, writers
from vqgan_jax.convert.names import Entry, Table
from vqgan_jax.convert.trees import Converted
from vqgan_jax.convert.weights import ConvertError


class Target(NamedTuple):
    """A format that is written.

    Attributes:
      table: of a tokenizer's names.
      networks: that it has a place for.
      needs: of the config, by key of a section, what the format takes for granted.
    """

    table: Callable[[Stage1], Table]
    networks: tuple[str, ...]
    needs: Mapping[str, Mapping[str, Any]]


def _levels(config: Stage1) -> int:
    return len(config.model.channel_multipliers)


PLAIN = {"kind": "paper", "norm_groups": 32}
TARGETS = {
    "taming": Target(
        lambda c: names.vq_model(c.quantizer.kind, c.discriminator.num_layers, c.discriminator.norm),
        ("generator", "codebook", "discriminator", "batch_stats", "lpips"),
        {"quantizer": {"unit_length": False}, "model": PLAIN},
    ),
    "llamagen": Target(
        lambda c: llamagen.vq_model(_levels(c)),
        ("generator",),
        {"quantizer": {"unit_length": True, "kind": "vq"}, "model": PLAIN},
    ),
    "diffusers": Target(
        lambda c: diffusers.vq_model(_levels(c)),
        ("generator",),
        {"quantizer": {"unit_length": False, "kind": "vq"}, "model": {"kind": "paper"}},
    ),
}
GPT_NEEDS = {
    "transformer": {"norm": "layer", "mlp": "gelu", "positions": "learned", "qk_norm": False, "bias": True},
    "condition": {"shared_vocab": True},
}


def write(converted: Converted, to: str, path: Path) -> None:
    """Writes a model that was read whole.

    Args:
      converted: the model; the state of its optimisers is not written.
      to: "safetensors", our own names, or a name of `TARGETS`; a prior only with its tokenizers, as ours or "taming".
      path: of the file, see `writers.write`; for "diffusers" of a folder.

    Raises:
      ConvertError: the format cannot hold this model, or the path does not fit it.
    """
    if to == "safetensors":
        if path.suffix != ".safetensors":
            raise ConvertError(f"a file of safetensors must end in .safetensors; got {path}. Name it so.")
        writers.write(path, own_tensors(converted), native.metadata(converted))
    elif to == "diffusers" and isinstance(converted.config, Stage1):
        found = tensors(converted, to)
        writers.write(path / "diffusion_pytorch_model.safetensors", found, {"format": "pt"})
        with writers.whole(path / "config.json") as file:
            file.write(json.dumps(diffusers_config(converted.config), indent=2).encode() + b"\n")
    else:
        writers.write(path, tensors(converted, to), {"format": "pt"})


def own_tensors(converted: Converted) -> dict[str, np.ndarray]:
    """Arrays of a model and of its tokenizers by our own names."""
    found = trees.arrays(converted)
    for part in native.PARTS:
        below = getattr(converted, part)
        found |= {f"{part}/{path}": array for path, array in trees.arrays(below).items()} if below is not None else {}
    return found


def tensors(converted: Converted, to: str) -> dict[str, np.ndarray]:
    """Arrays of a model by their names in a format of `TARGETS`, as they lie there; views where NumPy can."""
    config = converted.config
    if isinstance(config, Stage1):
        target = TARGETS[to]
        _check(config, target.needs, to)
        arrays = {path: a for path, a in trees.arrays(converted).items() if path.split("/")[0] in target.networks}
        return _renamed(target.table(config), arrays)
    if to != "taming":
        raise ConvertError(f"a prior is written as 'taming' or 'safetensors'; got {to!r}. Export its tokenizer alone.")
    return dict(_taming_prior(converted, config))


def _taming_prior(converted: Converted, config: Stage2) -> Iterator[tuple[str, np.ndarray]]:
    """A transformer together with its tokenizers and its order."""
    _check(config, GPT_NEEDS, "taming")
    for prefix, part in ((taming.FIRST, converted.tokenizer), (taming.SECOND, converted.condition)):
        if part is not None:
            below = part._replace(discriminator=None, lpips=None)
            yield from ((prefix + name, array) for name, array in tensors(below, "taming").items())
    if config.transformer.order != "raster":
        side = config.data.image_size // config.tokenizer.downsample_factor
        forward = np.asarray(ordering.order(config.transformer.order, side, side), np.int64)
        yield f"{taming.PERMUTER}forward_shuffle_idx", forward
        yield f"{taming.PERMUTER}backward_shuffle_idx", np.argsort(forward).astype(np.int64)
    yield from _renamed(names.gpt(), trees.arrays(converted)).items()


def _renamed(table: Table, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    entries: dict[str, Entry] = names.entries(table, {path: array.shape for path, array in arrays.items()})
    return {name: names.take(entry, arrays[entry.path]) for name, entry in entries.items()}


def _check(config: Stage1 | Stage2, needs: Mapping[str, Mapping[str, Any]], to: str) -> None:
    """ConvertError if the network computes something else than the format's."""
    for section, keys in needs.items():
        for key, wanted in keys.items():
            found = getattr(getattr(config, section), key)
            if found != wanted:
                raise ConvertError(
                    f"a model in the format {to!r} must have {section}.{key} {wanted!r}; this one has {found!r}, which "
                    "would be another network there. Export to 'safetensors' or 'stablehlo'."
                )


def diffusers_config(config: Stage1) -> dict[str, Any]:
    """The `config.json` of a diffusers `VQModel`."""
    m, q = config.model, config.quantizer
    attended = [m.resolution >> level in m.attn_resolutions for level in range(_levels(config))]
    block = lambda side, has: f"{'Attn' if has else ''}{side}{'Encoder' if side == 'Down' else 'Decoder'}Block2D"
    return {
        "_class_name": "VQModel",
        **{"act_fn": "silu", "norm_type": "group", "norm_num_groups": m.norm_groups, "scaling_factor": 1.0},
        **{"in_channels": m.image_channels, "out_channels": m.image_channels, "latent_channels": m.latent_channels},
        "block_out_channels": [m.channels * n for n in m.channel_multipliers],
        "down_block_types": [block("Down", has) for has in attended],
        "up_block_types": [block("Up", has) for has in reversed(attended)],
        **{"layers_per_block": m.num_res_blocks, "sample_size": config.data.image_size},
        **{"num_vq_embeddings": q.codebook_size, "vq_embed_dim": q.embed_dim},
        "mid_block_add_attention": True,
    }
