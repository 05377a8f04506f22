"""The arrays of `golden/`, their torch names and layouts turned into ours, and how near is near enough."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vqgan_jax.conditions.label import Unconditional
from vqgan_jax.convert.infer import GPT as UPSTREAM
from vqgan_jax.nn.transformer import Transformer
from vqgan_jax.prior import CodePrior

Arrays = dict[str, np.ndarray]

# Of an array's largest absolute value. golden/README.md says what float32 alone costs: 2e-6 and 9e-6.
VALUES, GRADIENTS = 1e-5, 1e-4

# From a name in a torch checkpoint to a path in our trees, by the first rule that fits from top to bottom.
NAMES = (
    (r"(encoder|decoder)\.(?:down|up)\.(\d)\.(block|attn)\.(\d)\.", r"\1/level_\2_\3_\4/"),
    (r"(encoder|decoder)\.(?:down|up)\.(\d)\.(downsample|upsample)\.", r"\1/level_\2_\3/"),
    (r"(encoder|decoder)\.mid\.attn_1\.", r"\1/middle_attn/"),
    (r"(encoder|decoder)\.mid\.block_1\.", r"\1/middle_block_0/"),
    (r"(encoder|decoder)\.mid\.block_2\.", r"\1/middle_block_1/"),
    (r"post_quant_conv", "post_quantizer"),
    (r"quant_conv", "pre_quantizer"),
    (r"quantize\.(?:embedding|embed)\.weight", "quantizer/codebook"),
    (r"quantize\.proj", "quantizer/logits"),
)
PARTS = {"nin_shortcut": "shortcut", "proj_out": "out"}
PARTS |= {f"{part}{i}": f"{part}_{i}" for part in ("norm", "conv") for i in (1, 2)}
COUNTERS = ("num_batches_tracked", "initialized")  # of torch's bookkeeping; nothing here needs them


@dataclasses.dataclass(frozen=True)
class Ids(Unconditional):
    """Stage 2's condition: four ids which share the codes' rows of the embedding."""

    @property
    def length(self):
        return 4

    @property
    def num_values(self):
        return 48


GPT = Transformer(3, 32, 4, max_len=40, vocab_size=48, **UPSTREAM)
PRIOR = CodePrior(GPT, Ids(), grid=(6, 6), order="raster")


def golden(name: str, *, stage: int = 1) -> Arrays:
    """Everything in `golden/stage1_NAME.npz`, or in that of another stage."""
    with np.load(Path(__file__).parent / "golden" / f"stage{stage}_{name}.npz") as arrays:
        return dict(arrays)


def under(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The arrays below `prefix/`, without it."""
    return {name.removeprefix(f"{prefix}/"): a for name, a in arrays.items() if name.startswith(f"{prefix}/")}


def translate(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Torch names and layouts to ours: `generator/...`, `discriminator/...` and `batch_stats/...`.

    Scalars in place of arrays, such as norms, only change their names.
    """
    paths = {name: path(name, a) for name, a in arrays.items() if not name.endswith(COUNTERS)}
    translated = {ours: layout(ours, arrays[name]) for name, ours in paths.items()}
    assert len(translated) == len(paths), "two names fell on one path"
    return translated


def path(name: str, array: np.ndarray) -> str:
    """Where the array of a torch name stands in our trees."""
    if name.startswith("loss.discriminator.main."):
        number, leaf = name.split(".")[3:]
        norm = int(number) % 3 == 0 and number != "0"
        layer = "out" if leaf in ("weight", "bias") and array.shape[0] == 1 else (int(number) + 1) // 3
        module = f"norm_{layer}" if norm else f"conv_{layer}"
        if leaf.startswith("running_"):
            return f"batch_stats/{module}/{leaf.removeprefix('running_')}"
        leaf = {"weight": "scale" if norm else "kernel"}.get(leaf, leaf)
        return f"discriminator/{module}/{leaf}"
    for pattern, ours in NAMES:
        name, fits = re.subn(f"^{pattern}", ours, name)
        if fits:
            break
    parts = [PARTS.get(part, part) for part in re.split(r"[./]", name)]
    if parts[-1] == "weight":
        parts[-1] = "scale" if parts[-2].startswith("norm") else "kernel"
    return "/".join(["generator", *parts])


def layout(ours: str, array: np.ndarray) -> np.ndarray:
    """OIHW to HWIO, and ActNorm's (1, c, 1, 1) to (c,)."""
    if ours.endswith("/kernel") and array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.reshape(-1) if ours.endswith(("/loc", "/scale")) and array.ndim == 4 else array


def tree(translated: Mapping[str, np.ndarray], network: str, like: Any) -> Any:
    """One network's arrays as a tree with exactly the paths and shapes of `like`: none missing, none left over."""
    ours = under(network, translated)
    leaves: dict[str, Any] = flatten_dict(like, sep="/")  # type: ignore[assignment]
    shapes = {key: leaf.shape for key, leaf in leaves.items()}
    assert {key: array.shape for key, array in ours.items()} == shapes
    return jax.tree.map(jax.numpy.asarray, unflatten_dict(ours, sep="/"))


def pairs(ours: Any, arrays: Mapping[str, np.ndarray], network: str = "generator") -> Iterator[tuple[Any, np.ndarray]]:
    """Our leaves, each beside the recorded array of the same name; `arrays` need not have all."""
    leaves, recorded = flatten_dict(ours, sep="/"), under(network, translate(arrays))
    assert recorded.keys() <= leaves.keys()
    return ((leaves[key], recorded[key]) for key in recorded)


def error(actual: Any, recorded: np.ndarray) -> float:
    """The largest distance over the largest recorded value."""
    assert actual.shape == recorded.shape
    return float(np.abs(np.asarray(actual, np.float64) - recorded).max() / np.abs(recorded).max())


def gpt_params(arrays: Mapping[str, np.ndarray], num_heads: int = GPT.num_heads) -> Any:
    """Upstream's GPT, or what has its names and shapes, such as gradients, as parameters of our `Transformer`."""
    arrays = {name.removeprefix("transformer."): array for name, array in arrays.items()}
    blocks: dict[str, Arrays] = {}
    for name, array in arrays.items():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            blocks.setdefault(number, {})[rest] = array
    layers = [gpt_layer(blocks[str(i)], num_heads) for i in range(len(blocks))]
    params = {
        "embedding": arrays["tok_emb.weight"],
        "positions": arrays["pos_emb"][0],
        "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers),
        "norm": {"scale": arrays["ln_f.weight"], "bias": arrays["ln_f.bias"]},
        "head": {"kernel": arrays["head.weight"].T},
    }
    return jax.tree.map(jax.numpy.asarray, params)


def gpt_layer(block: Arrays, num_heads: int) -> dict[str, dict[str, np.ndarray]]:
    """One block of upstream's; torch has kernels (out, in), and all heads of a projection in one axis."""

    def dense(name: str) -> dict[str, np.ndarray]:
        return {"kernel": block[f"{name}.weight"].T, "bias": block[f"{name}.bias"]}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": block[f"{name}.weight"], "bias": block[f"{name}.bias"]}

    parts = [dense(f"attn.{part}") for part in ("query", "key", "value")]
    qkv = {leaf: np.stack([part[leaf] for part in parts], axis=-2) for leaf in ("kernel", "bias")}
    qkv = {leaf: array.reshape(*array.shape[:-1], num_heads, -1) for leaf, array in qkv.items()}
    proj = dense("attn.proj")
    proj["kernel"] = proj["kernel"].reshape(num_heads, -1, proj["kernel"].shape[-1])
    return {
        **{"norm1": norm("ln1"), "qkv": qkv, "proj": proj},
        **{"norm2": norm("ln2"), "up": dense("mlp.0"), "down": dense("mlp.2")},
    }
