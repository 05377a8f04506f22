"""Checkpoints of taming-transformers: VQ models of every kind, and transformers together with their tokenizers.

Nothing is read before every name and shape is accounted for, and then one tensor after the other, each into its place.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml

from vqgan_jax import ordering
from vqgan_jax.config import Stage1
from vqgan_jax.convert import infer, names, trees
from vqgan_jax.convert.names import Entry
from vqgan_jax.convert.tensors import Checkpoint, ConvertError, Tensor
from vqgan_jax.convert.trees import Converted, Moments, Report, Shapes, Tensors

# What trained networks do not need: constants, counters, and what can be computed.
DROPPED = (
    "*colorize",
    "*.num_batches_tracked",
    "*.initialized",
    "*.attn.mask",
    "*freqs_cis",
    "*codebook_used",
    "*loss.perceptual_loss.scaling_layer.shift",
    "*loss.perceptual_loss.scaling_layer.scale",
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
LARGEST = 2**20  # bytes of a config file
ORDER = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")  # of upstream's optimiser


def plan(
    checkpoint: Checkpoint,
    *,
    num_heads: int | None = None,
    condition: str | Mapping[str, Any] | None = None,
    num_codes: int | None = None,
    allow: Sequence[str] = (),
) -> Converted:
    """Finds a model in a checkpoint; each array is a `Tensor` of its final shape that is read when it is asked for.

    Args:
      checkpoint: an opened file.
      num_heads: of the transformer; None is 16 for a published width.
      condition: of the transformer: its kind, or keys of the config's section; None goes by its tokenizer or length.
      num_codes: of an image that the transformer makes; None goes by its positions.
      allow: patterns, as of file names, of tensors that may be missing, unexpected or of another shape.

    Raises:
      ConvertError: a tensor is missing, unexpected or of another shape; the shapes fit no model of ours; or something
        that shapes do not tell must be named.
    """
    tensors = checkpoint.tensors
    other = checkpoint.other if isinstance(checkpoint.other, Mapping) else {}
    if "transformer.tok_emb.weight" in tensors:
        converted = _prior(tensors, other, num_codes, num_heads=num_heads, condition=condition)
    elif "encoder.conv_in.weight" not in tensors and f"{FIRST}encoder.conv_in.weight" in tensors:
        # Latent diffusion: its VQ model is all that concerns us.
        rest = tuple(name for name in tensors if not name.startswith(FIRST))
        converted = _tokenizer(tensors, FIRST)
        converted = converted._replace(report=converted.report._replace(dropped=converted.report.dropped + rest))
    else:
        converted = _tokenizer(tensors, "", other)
    trees.check(converted.report, allow)
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
    mine = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    config = infer.stage1({name: tensor.shape for name, tensor in mine.items()})
    shapes = trees.stage1_shapes(
        config,
        discriminator=any(name.startswith("loss.discriminator.") for name in mine),
        lpips=any(name.startswith("loss.perceptual_loss.") for name in mine),
    )
    entries = names.entries(names.vq_model(config), shapes)
    orders = _stage1_orders(mine, entries, config.quantizer.ema)
    found = trees.planned(config, shapes, entries, mine, DROPPED, prefix)
    return found._replace(moments=_moments(other or {}, orders, shapes, entries))


def _prior(tensors: Tensors, other: Mapping[str, Any], num_codes: int | None, **unseen: Any) -> Converted:
    """Returns the transformer and all that is stored with it; `unseen` is what `infer.stage2` cannot infer."""
    mine = {name: tensor for name, tensor in tensors.items() if name.startswith("transformer.")}
    tokenizer, second, shared = _tokenizer(tensors, FIRST), None, ()
    if f"{SECOND}encoder.conv_in.weight" in tensors:
        shared = _shared(tensors)
        second = tokenizer if shared else _tokenizer(tensors, SECOND)
    order, permuted, permuter = _order(tensors)
    config = infer.stage2(
        {name: tensor.shape for name, tensor in mine.items()},
        cast(Stage1, tokenizer.config),
        condition_tokenizer=cast(Stage1, second.config) if second else None,
        own_tokenizer=not shared,
        order=order,
        num_codes=permuted or num_codes,
        bidirectional_prefix=_bidirectional(mine),
        **unseen,
    )
    own = None if shared else second
    shapes = trees.stage2_shapes(config)
    entries = names.entries(names.gpt(), shapes)
    rest = trees.compare({}, _rest(tensors, own is not None or bool(shared)))
    found = trees.planned(config, shapes, entries, mine, DROPPED)
    reports = [tokenizer.report, *([own.report] if own else []), found.report]
    reports += [Report(used=permuter, dropped=shared), rest]
    return found._replace(
        moments=_moments(other, {"transformer": _stage2_order(entries)}, shapes, entries),
        tokenizer=tokenizer,
        condition=own,
        report=trees.joined(reports),
    )


def _rest(tensors: Tensors, condition: bool) -> dict[str, Tensor]:
    """Returns what is neither the transformer's nor a tokenizer's."""
    known = ("transformer.", FIRST, PERMUTER, *([SECOND] if condition else []))
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(known)}


def _shared(tensors: Tensors) -> tuple[str, ...]:
    """Returns names of the condition's tokenizer if it is the images' own, stored twice; else none."""
    ours, second = ({n[len(p) :]: t for n, t in tensors.items() if n.startswith(p)} for p in (FIRST, SECOND))
    if any(name not in ours or ours[name].shape != tensor.shape for name, tensor in second.items()):
        return ()
    if not all(np.array_equal(ours[name].read(), tensor.read()) for name, tensor in second.items()):
        return ()
    return tuple(SECOND + name for name in second)


def _order(tensors: Tensors) -> tuple[str, int | None, tuple[str, ...]]:
    """Returns the order that a permuter's buffers hold, codes of an image, and the buffers; without any, row by row."""
    found = tuple(name for name in tensors if name.startswith(PERMUTER))
    if f"{PERMUTER}forward_shuffle_idx" not in found:
        return "raster", None, ()
    forward = np.asarray(tensors[f"{PERMUTER}forward_shuffle_idx"].read())
    side = math.isqrt(forward.size)
    for name in ordering.ORDERS if side else ():
        try:
            fits = np.array_equal(ordering.order(name, side, side), forward)
        except ValueError:  # an order that this grid does not have
            continue
        if fits:
            return name, forward.size, found
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
) -> dict[str, Moments]:
    """Returns Adam's state of each network that has one in the file, where it fits."""
    states = other.get("optimizer_states")
    found = {}
    for (network, order), state in zip(orders.items(), states if isinstance(states, list) else [], strict=False):
        averages = _averages(state, order, entries)
        if averages is None:
            continue
        count, mu, nu = averages
        mine = {path: shape for path, shape in shapes.items() if path.startswith(f"{network}/")}
        chosen = {name: entry for name, entry in entries.items() if entry.path in mine}
        found[network] = Moments(count, *(trees.assemble(mine, chosen, each)[network] for each in (mu, nu)))
    return found


def _averages(
    state: Any, order: Sequence[str], entries: Mapping[str, Entry]
) -> tuple[int, dict[str, Tensor], dict[str, Tensor]] | None:
    """Returns steps and both running averages by name; None unless each parameter has them, in its shape."""
    try:
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        each = [state["state"][number] for number in numbers]
        averages = [[one[key] for one in each] for key in ("exp_avg", "exp_avg_sq")]
        count = each[0]["step"]
        count = int(count.read() if isinstance(count, Tensor) else count)
    except (KeyError, TypeError, IndexError, ValueError, ArithmeticError):
        return None  # not the state of an Adam
    shapes = [entries[name].shape for name in order]
    found = [[tensor.shape if isinstance(tensor, Tensor) else None for tensor in tensors] for tensors in averages]
    if found != [shapes, shapes]:
        return None
    mu, nu = (dict(zip(order, tensors, strict=True)) for tensors in averages)
    return count, mu, nu
