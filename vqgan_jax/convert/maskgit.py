"""MaskGIT's ImageNet tokenizers, as Flax wrote them: modules are numbered in the order in which they were called.

References:
  Chang et al. 2022, MaskGIT: Masked Generative Image Transformer; see `nn.maskgit`.
"""

import functools
from collections.abc import Sequence

from vqgan_jax.convert import infer, names, trees
from vqgan_jax.convert.names import Row, Table
from vqgan_jax.convert.tensors import Checkpoint, ConvertError

ENCODER, DECODER = "params/encoder", "params/decoder"
CODEBOOK = "params/quantizer/codebook"
PARTS = {"norm_1": "GroupNorm_0", "conv_1": "Conv_0", "norm_2": "GroupNorm_1", "conv_2": "Conv_1", "shortcut": "Conv_2"}


def plan(checkpoint: Checkpoint, *, allow: Sequence[str] = ()) -> trees.Converted:
    """Finds a tokenizer in a file; each array is a `Tensor` of its final shape that is read when it is asked for.

    Args:
      checkpoint: an opened file.
      allow: patterns, as of file names, of tensors that may be missing, unexpected or of another shape.

    Raises:
      ConvertError: a tensor is missing, unexpected or of another shape.
    """
    tensors = checkpoint.tensors
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    levels = infer.count(shapes, rf"{DECODER}/Conv_(\d+)/") - 1  # one behind the codes, one a doubling, one at the end
    blocks = infer.count(shapes, rf"{ENCODER}/ResBlock_(\d+)/") // (levels + 1) if levels > 0 else 0
    if not blocks:
        raise ConvertError(
            f"a tokenizer of MaskGIT's must have `{ENCODER}/ResBlock_0` and the like; among {len(shapes)} tensors "
            "there are not enough. Give its whole file."
        )
    config = infer.stage1(_renamed(shapes, levels, blocks), kind="maskgit")
    return trees.tokenizer(config, functools.partial(names.entries, vq_model(levels, blocks)), tensors, allow=allow)


def vq_model(levels: int, blocks: int) -> Table:
    """Returns the table of a tokenizer of so many levels, and residual blocks a level."""
    last = levels - 1
    # Levels as they run: down and the middle; the middle and up.
    runs = {
        "encoder": [*(f"level_{level}" for level in range(levels)), "middle"],
        "decoder": ["middle", *(f"level_{last - i}" for i in range(levels))],
    }
    pairs = [
        (f"{net}/{level}_block_{block}/{part}", f"params/{net}/ResBlock_{blocks * i + block}/{theirs}")
        for net, run in runs.items()
        for i, level in enumerate(run)
        for block in range(blocks)
        for part, theirs in PARTS.items()
    ]
    pairs += [(f"decoder/level_{last - i}_upsample/conv", f"{DECODER}/Conv_{i + 1}") for i in range(last)]
    pairs += [
        ("encoder/conv_in", f"{ENCODER}/Conv_0"),
        ("encoder/norm_out", f"{ENCODER}/GroupNorm_0"),
        ("pre_quantizer", f"{ENCODER}/Conv_1"),
        ("post_quantizer", f"{DECODER}/Conv_0"),
        ("decoder/norm_out", f"{DECODER}/GroupNorm_0"),
        ("decoder/conv_out", f"{DECODER}/Conv_{levels}"),
    ]
    rows = [Row(rf"generator/{ours}/(\w+)", rf"{theirs}/\1") for ours, theirs in pairs]
    return (*rows, Row("generator/quantizer/codebook", CODEBOOK))


def _renamed(shapes: infer.Shapes, levels: int, blocks: int) -> dict[str, tuple[int, ...]]:
    """Returns as much as a config is inferred from, in taming's names and layout."""
    kernels = {
        "encoder.conv_in": f"{ENCODER}/Conv_0",
        # What stands between features and codes is one convolution, which counts as three.
        "encoder.conv_out": f"{ENCODER}/Conv_1",
        "quant_conv": f"{ENCODER}/Conv_1",
        "decoder.conv_in": f"{ENCODER}/Conv_1",
        "decoder.conv_out": f"{DECODER}/Conv_{levels}",
    }
    kernels |= {
        f"encoder.down.{i}.block.{j}.conv1": f"{ENCODER}/ResBlock_{blocks * i + j}/Conv_0"
        for i in range(levels)
        for j in range(blocks)
    }
    found = {f"{name}.weight": infer.shape(shapes, f"{theirs}/kernel", 4) for name, theirs in kernels.items()}
    renamed = {name: (out, into, *sides) for name, (*sides, into, out) in found.items()}
    return renamed | {"quantize.embedding.weight": infer.shape(shapes, CODEBOOK, 2)}
