"""LlamaGen's class-conditional transformers: RMSNorm, SwiGLU, 2-D rotary positions, and a class that has no place.

References:
  Sun et al. 2024, Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

from vqgan_jax.config import Stage1, Stage2
from vqgan_jax.convert import defaults, infer, names, trees
from vqgan_jax.convert.names import IN, LAYER, OUT, SAME, Entry, Row, Table
from vqgan_jax.convert.trees import Shapes
from vqgan_jax.convert.weights import Checkpoint, ConvertError

ROTATIONS = "freqs_cis"  # computed anew; where it is stored, it tells the grid
HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 3200: 32}  # by width
CODES = {1280: 576, 1536: 576, 3200: 576}  # of the published models: the two smaller ones are there for 256 too
CLASSES = "cls_embedding.embedding_table.weight"
DEMO = {"guidance": 4.0, "top_k": 2000}  # how its demo draws


def plan(
    checkpoint: Checkpoint,
    *,
    num_heads: int | None = None,
    num_codes: int | None = None,
    tokenizer: trees.Converted | None = None,
    allow: Sequence[str] = (),
) -> trees.Converted:
    """Finds a transformer in a file; each array is a `Tensor` of its final shape that is read when it is asked for.

    Args:
      checkpoint: an opened file.
      num_heads: None is that of a published width.
      num_codes: of an image: 256 for the models of 256 pixels, 576 for those of 384; None is the file's own rotations,
        or that of a published width.
      tokenizer: the converted one of its images, which is another file; None leaves it out.
      allow: patterns, as of file names, of tensors that may be missing, unexpected or of another shape.

    Raises:
      ConvertError: a tensor is missing, unexpected or of another shape; heads or codes must be named; or the tokenizer
        has another number of codes.
    """
    tensors = checkpoint.tensors
    found = {name: tensor.shape for name, tensor in tensors.items()}
    config = _config(found, num_heads, num_codes, cast(Stage1, tokenizer.config) if tokenizer else None)
    shapes = trees.stage2_shapes(config)
    mine = entries(shapes, config.tokenizer.codebook_size)
    report = trees.compare(mine, tensors, (ROTATIONS,))
    trees.check(report, allow)
    return trees.Converted(
        config=config,
        params=trees.assemble(shapes, mine, tensors)["transformer"],
        discriminator=None,
        stats={},
        lpips=None,
        moments={},
        step=0,
        tokenizer=tokenizer,
        condition=None,
        report=report,
    )


def entries(shapes: Shapes, vocab_size: int) -> dict[str, Entry]:
    """Every tensor by its name there; the first `vocab_size` rows of our embedding are the codes, then the classes."""
    path = "transformer/embedding"
    rows, width = shapes[path]
    found = names.entries(gpt(), {each: shape for each, shape in shapes.items() if each != path})
    found["tok_embeddings.weight"] = Entry(path, (slice(vocab_size),), (vocab_size, width), SAME)
    found[CLASSES] = Entry(path, (slice(vocab_size, None),), (rows - vocab_size, width), SAME)
    return found


def gpt() -> Table:
    """All but the embedding. Both sides turn neighbouring channels, the first half of a head by the row."""
    ours, block = "transformer/layers", "layers.{layer}"
    return (
        Row(f"{ours}/norm1/scale", f"{block}.attention_norm.weight", SAME, (LAYER,)),
        Row(f"{ours}/norm2/scale", f"{block}.ffn_norm.weight", SAME, (LAYER,)),
        Row(f"{ours}/qkv/kernel", f"{block}.attention.wqkv.weight", OUT, (LAYER,)),
        Row(f"{ours}/proj/kernel", f"{block}.attention.wo.weight", IN, (LAYER,)),
        Row(f"{ours}/gate/kernel", f"{block}.feed_forward.w1.weight", OUT, (LAYER,)),
        Row(f"{ours}/up/kernel", f"{block}.feed_forward.w3.weight", OUT, (LAYER,)),
        Row(f"{ours}/down/kernel", f"{block}.feed_forward.w2.weight", OUT, (LAYER,)),
        Row("transformer/norm/scale", "norm.weight"),
        Row("transformer/head/kernel", "output.weight", OUT),
    )


def _config(shapes: infer.Shapes, num_heads: int | None, num_codes: int | None, tokenizer: Stage1 | None) -> Stage2:
    """Out of names and shapes. The optimiser is as we remember its paper; no weight depends on it."""
    vocab, width = infer.shape(shapes, "output.weight", 2)
    classes = infer.shape(shapes, CLASSES, 2)[0] - 1  # the last row is the class that was dropped
    side = _side(shapes, width, num_codes)
    if tokenizer and tokenizer.quantizer.codebook_size != vocab:
        raise ConvertError(
            f"the tokenizer must have the transformer's {vocab} codes; it has {tokenizer.quantizer.codebook_size}. "
            "Give the one that the transformer was trained with."
        )
    factor = 2 ** (len(tokenizer.model.channel_multipliers) - 1) if tokenizer else 16
    frozen: dict[str, Any] = {"fingerprint": "", "codebook_size": vocab, "downsample_factor": factor}
    sizes = {"depth": infer.count(shapes, r"layers\.(\d+)\."), "width": width, "num_heads": _heads(width, num_heads)}
    gpt = {"norm": "rms", "mlp": "swiglu", "positions": "rope2d_blank", "bias": False, "dropout": 0.1}
    gpt |= {"max_len": 0, "bidirectional_prefix": 0, "order": "raster"}
    condition = {
        **{"kind": "class", "num_classes": classes, "shared_vocab": False, "drop": 0.1},
        **{"num_tokens": vocab, "max_objects": 30, "crop_points": True, "paper": False, "size": 0},
    }
    size = side * factor
    return infer.parsed(
        defaults.RUN
        | {"stage": 2, "batch_size": 256, "data": defaults.DATA | {"image_size": size, "resize": (size, size)}}
        | {"tokenizer": frozen | {"workdir": "tokenizer", "crops": 10}}
        | {"condition": condition | {"tokenizer": frozen | {"workdir": ""}}}
        | {"transformer": defaults.GPT | gpt | sizes, "loss": {"keep": 1.0, "label_smoothing": 0.0}}
        | {"sampling": defaults.SAMPLING | DEMO | {"top_k": min(DEMO["top_k"], vocab)}}
        | {"optimizer": defaults.ADAMW | {"learning_rate": 1e-4, "weight_decay": 0.05, "clip_norm": 1.0}}
    )


def _heads(width: int, num_heads: int | None) -> int:
    if num_heads is None and width not in HEADS:
        raise ConvertError(
            f"the number of heads cannot be seen in the tensors; it is known for widths {', '.join(map(str, HEADS))}, "
            f"this one is {width}. Give num_heads."
        )
    return num_heads or HEADS[width]


def _side(shapes: infer.Shapes, width: int, num_codes: int | None) -> int:
    """Rows of the grid of codes."""
    if num_codes is None and ROTATIONS in shapes:
        num_codes = infer.shape(shapes, ROTATIONS, 3)[0] - 1  # the class has one too
    codes = num_codes or CODES.get(width, 0)
    if not codes or math.isqrt(codes) ** 2 != codes:
        raise ConvertError(
            f"the codes of an image must be a square grid, which no tensor here tells; got {codes or 'none'} of "
            f"width {width}. Give num_codes: 256 for a model of 256 pixels, 576 for one of 384."
        )
    return math.isqrt(codes)
