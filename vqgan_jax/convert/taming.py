"""Checkpoints of taming-transformers: VQ models of every kind, and transformers together with their tokenizers.

Nothing is read before every name and shape is accounted for, and then one tensor after the other, each into its place.
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vqgan_jax import ordering
from vqgan_jax.convert import infer, names, trees
from vqgan_jax.convert.names import Entry
from vqgan_jax.convert.tensors import Checkpoint, ConvertError, Tensor
from vqgan_jax.convert.trees import Converted, Report, Shapes, Tensors, Tree

# What trained networks do not need: constants, counters, what can be computed, and what they were trained with.
DROPPED = (
    "*colorize",
    "*.num_batches_tracked",
    "*.initialized",
    "*.attn.mask",
    "*freqs_cis",
    "*codebook_used",
    # LPIPS, which is the same in every file and comes with a package.
    "*loss.perceptual_loss.scaling_layer.*",
    "*loss.perceptual_loss.net.*",
    "*loss.perceptual_loss.lin[0-4].*",
)
FIRST, SECOND, PERMUTER = "first_stage_model.", "cond_stage_model.", "permuter."
# Upstream's names of the condition's entry in a batch, by our kinds, and of modules that make one of nothing.
KINDS = {
    "class": ("class_label", "class", "label"),
    "depth": ("depth",),
    "coordinates": ("coord",),
    "segmentation": ("segmentation", "seg"),
    "keypoints": ("pkeypoints", "keypoints"),
    "boxes": ("objects_bbox",),
    "centers": ("objects_center_points",),
    "edges": ("edge", "canny"),
    "low_resolution": ("lr", "LR_image"),
}
NOTHING = ("__is_unconditional__", "SOSProvider")
# Encodes to its likeliest codes, without noise.
GUMBEL = {"kind": "gumbel", "temperature": (0.9, 1e-6, 1_000_001), "kl_weight": 1e-8}
LARGEST = 2**20  # bytes of a config file
ORDER = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")  # of upstream's optimiser


def plan(
    checkpoint: Checkpoint,
    *,
    num_heads: int | None = None,
    condition: str | Mapping[str, Any] | None = None,
    num_codes: int | None = None,
) -> Converted:
    """Finds a model in a checkpoint; each array is a `Tensor` of its final shape that is read when it is asked for.

    Args:
      checkpoint: an opened file.
      num_heads: of the transformer; None is 16 for a published width.
      condition: of the transformer: its kind, or keys of the config's section; None goes by its tokenizer or length.
      num_codes: of an image that the transformer makes; None goes by its positions.

    Raises:
      ConvertError: the shapes fit no model of ours, or something that shapes do not tell must be named.
    """
    tensors, other = checkpoint
    if "transformer.tok_emb.weight" in tensors:
        converted = _prior(tensors, other, num_codes, num_heads=num_heads, condition=condition)
    elif "encoder.conv_in.weight" not in tensors and f"{FIRST}encoder.conv_in.weight" in tensors:
        # Latent diffusion: its VQ model is all that concerns us.
        rest = tuple(name for name in tensors if not name.startswith(FIRST))
        converted = _tokenizer(tensors, FIRST)
        converted = converted._replace(report=converted.report._replace(dropped=converted.report.dropped + rest))
    else:
        converted = _tokenizer(tensors, "", other)
    step = other.get("global_step", 0)
    return converted._replace(step=step if isinstance(step, int) else 0)


def read_options(path: str | Path) -> dict[str, Any]:
    """Reads options of `plan` out of upstream's YAML, or the same as JSON: "num_heads" and "condition" where told.

    Raises:
      ConvertError: the file is not of that kind.
      OSError: there is no such file.
    """
    path = Path(path)
    if path.stat().st_size > LARGEST:
        raise ConvertError(f"a model's config must have at most {LARGEST} bytes; {path} has {path.stat().st_size}.")
    try:
        text = path.read_text()
        params = (json.loads(text) if path.suffix == ".json" else yaml.safe_load(text))["model"]["params"]
        heads = params.get("transformer_config", {}).get("params", {}).get("n_head")
        stage = params.get("cond_stage_config", "")
        target = stage if isinstance(stage, str) else str(stage.get("target"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise ConvertError(
            f"a model's config must be upstream's YAML, or JSON, with `model.params`; {path} gives "
            f"{type(error).__name__}: {str(error)[:200]}. Leave it out, and give --heads and --condition."
        ) from error
    key = params.get("cond_stage_key")
    kind = "none" if target.endswith(NOTHING) else next((kind for kind, keys in KINDS.items() if key in keys), None)
    options = {"num_heads": heads if isinstance(heads, int) else None, "condition": kind}
    return {key: value for key, value in options.items() if value is not None}


def _tokenizer(tensors: Tensors, prefix: str, other: Mapping[str, Any] | None = None) -> Converted:
    """Returns the VQ model whose names begin with `prefix`."""
    mine, kind, codes = _below(tensors, prefix), "vq", infer.CODES
    if "quantize.embedding.cluster_size" in mine:
        codes = codes | {"ema": True, "codebook_weight": 0.0}  # an average has no loss
    if "quantize.embed.weight" in mine:
        kind, codes = "gumbel", GUMBEL
    name = functools.partial(names.renamed, names.UPSTREAM[kind])
    config = infer.stage1(mine, name, quantizer=codes, discriminator=_discriminator(mine))
    shapes = trees.network_shapes(config)
    entries = names.entries(names.vq_model(config), shapes)
    orders = _stage1_orders(mine, entries, config.quantizer.ema)
    converted = trees.planned(config, shapes, entries, mine, DROPPED, prefix)
    return converted._replace(moments=_moments(other or {}, orders, shapes, entries))


def _discriminator(tensors: Tensors) -> dict[str, Any]:
    """Returns the config's section; empty where there is no discriminator."""
    prefix = "loss.discriminator.main."
    weights = [name for name in tensors if name.startswith(prefix) and name.endswith(".weight")]
    convolutions = [name for name in weights if len(tensors[name].shape) == 4]
    if not convolutions:
        return {}
    return {
        "channels": infer.shape(tensors, f"{prefix}0.weight", 4)[0],
        "num_layers": max(len(convolutions) - 2, 1),
        "norm": "act" if f"{prefix}3.loc" in tensors else "batch",
    }


def _prior(tensors: Tensors, other: Mapping[str, Any], num_codes: int | None, **unseen: Any) -> Converted:
    """Returns the transformer and all that is stored with it; `unseen` is what `infer.stage2` cannot infer."""
    parts = ["transformer.", FIRST, PERMUTER]
    tokenizer, own, shared, maps = _tokenizer(tensors, FIRST), None, (), {}
    if f"{SECOND}encoder.conv_in.weight" in tensors:
        parts.append(SECOND)
        if _same(_below(tensors, FIRST), _below(tensors, SECOND)):
            shared = tuple(name for name in tensors if name.startswith(SECOND))
        else:
            own = _tokenizer(tensors, SECOND)
        maps = infer.map_condition((own or tokenizer).config, own=own is not None)
    order, permuted, permuter = _order(tensors)
    config = infer.stage2(
        tensors,
        tokenizer.config,
        maps,
        order=order,
        num_codes=permuted or num_codes,
        bidirectional_prefix=_bidirectional(tensors),
        **unseen,
    )
    mine = {name: tensor for name, tensor in tensors.items() if name.startswith("transformer.")}
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(parts))}
    shapes = trees.network_shapes(config)
    entries = names.entries(names.GPT, shapes)
    prior = trees.planned(config, shapes, entries, mine, DROPPED)
    reports = [each.report for each in (tokenizer, own, prior) if each]
    reports += [Report(used=permuter, dropped=shared), trees.compare({}, rest)]
    return prior._replace(
        moments=_moments(other, {"transformer": _stage2_order(entries)}, shapes, entries),
        tokenizer=tokenizer,
        condition=own,
        report=trees.joined(reports),
    )


def _below(tensors: Tensors, prefix: str) -> Tensors:
    """Returns the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _same(first: Tensors, second: Tensors) -> bool:
    """Returns whether the condition's tokenizer is the images' own, stored twice; of others few tensors are read."""
    alike = lambda a, b: a.shape == b.shape and np.array_equal(a.read(), b.read())
    return all(name in first and alike(first[name], tensor) for name, tensor in second.items())


def _order(tensors: Tensors) -> tuple[str, int | None, tuple[str, ...]]:
    """Returns the order that a permuter's buffers hold, codes of an image, and the buffers; without any, row by row."""
    orders = tuple(name for name in tensors if name.startswith(PERMUTER))
    if f"{PERMUTER}forward_shuffle_idx" not in orders:
        return "raster", None, ()
    forward = np.asarray(tensors[f"{PERMUTER}forward_shuffle_idx"].read())
    side = math.isqrt(forward.size)
    for name in ordering.ORDERS if side else ():
        try:
            fits = np.array_equal(ordering.order(name, side, side), forward)
        except ValueError:  # an order that this grid does not have
            continue
        if fits:
            return name, forward.size, orders
    raise ConvertError(
        f"the order in `{PERMUTER}forward_shuffle_idx` must be one of {', '.join(ordering.ORDERS)} of a square grid; "
        f"it begins {forward[:8].tolist()}, of {forward.size}, and is none. Such a prior cannot be used here."
    )


def _bidirectional(tensors: Tensors) -> int:
    """Returns how many positions see each other both ways: ones in the first row of the mask; 1 is the causal mask."""
    mask = tensors.get("transformer.blocks.0.attn.mask")
    if mask is None or len(mask.shape) != 4 or 0 in mask.shape:
        return 0
    seen = int(np.count_nonzero(mask.read()[0, 0, 0]))
    return seen if seen > 1 else 0


def _stage1_orders(tensors: Tensors, entries: Mapping[str, Entry], ema: bool) -> dict[str, list[str]]:
    """Returns names in the order of upstream's two optimisers, which is the file's; a moving codebook has none."""
    of = lambda network, name: name in entries and entries[name].path.startswith(f"{network}/")
    parts = [part for part in ORDER if not (ema and part == "quantize.")]
    generator = [name for part in parts for name in tensors if name.startswith(part) and of("generator", name)]
    return {"generator": generator, "discriminator": [name for name in tensors if of("discriminator", name)]}


def _stage2_order(entries: Mapping[str, Entry]) -> list[str]:
    """Returns names in upstream's order: what decays, then the rest, each as strings, block 10 before block 2."""
    decays = lambda name: name.endswith(".weight") and any(part in name for part in (".attn.", ".mlp.", ".head."))
    return sorted(filter(decays, entries)) + sorted(name for name in entries if not decays(name))


def _moments(
    other: Mapping[str, Any], orders: Mapping[str, Sequence[str]], shapes: Shapes, entries: Mapping[str, Entry]
) -> dict[str, Tree]:
    """Returns Adam's state of each network that has one in the file, where every parameter has one in its shape."""
    states = other.get("optimizer_states")
    moments = {}
    for (network, order), state in zip(orders.items(), states if isinstance(states, list) else [], strict=False):
        try:
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            each = [state["state"][number] for number in numbers]
            averages = [[one[key] for one in each] for key in ("exp_avg", "exp_avg_sq")]
            count = each[0]["step"]
            count = int(count.read() if isinstance(count, Tensor) else count)
        except (KeyError, TypeError, IndexError, ValueError, ArithmeticError):
            continue  # not the state of an Adam
        wanted = [entries[name].shape for name in order]
        if any([getattr(tensor, "shape", None) for tensor in tensors] != wanted for tensors in averages):
            continue
        mine = {path: shape for path, shape in shapes.items() if path.startswith(f"{network}/")}
        chosen = {name: entries[name] for name in order}
        mu, nu = (trees.assemble(mine, chosen, dict(zip(order, tensors, strict=True))) for tensors in averages)
        moments[network] = {"count": count, "mu": mu[network], "nu": nu[network]}
    return moments
