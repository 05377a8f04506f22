"""LlamaGen's image tokenizers and class-conditional transformers.

The tokenizers are upstream's network by other names, with codes compared as directions. The transformers have RMSNorm,
SwiGLU, 2-D rotary positions, and a class that has no position.

References:
  Sun et al. 2024, Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation.
"""

import dataclasses
import math
from collections.abc import Sequence

from vqgan_jax.config import Stage2
from vqgan_jax.convert import infer, names, trees
from vqgan_jax.convert.names import IN, LAYER, OUT, SAME, Entry, Row
from vqgan_jax.convert.tensors import Checkpoint, ConvertError
from vqgan_jax.convert.trees import Converted, Shapes

# Parts of names, upstream's and theirs; their decoder's levels are numbered as they run, from the lowest resolution.
PAIRS = (
    ("encoder.down.#", "encoder.conv_blocks.#"),
    ("decoder.up.~", "decoder.conv_blocks.~"),
    ("conv_blocks.#.block.", "conv_blocks.#.res."),
    (".mid.block_1", ".mid.0"),
    (".mid.attn_1", ".mid.1"),
    (".mid.block_2", ".mid.2"),
)
DROPPED = ("quantize.codebook_used",)  # a log of the codes that were hit last
ROTATIONS = "freqs_cis"  # computed anew; where it is stored, it tells the grid
HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 3200: 32}  # by width
CODES = {1280: 576, 1536: 576, 3200: 576}  # of the published models: the two smaller ones are there for 256 too
CLASSES = "cls_embedding.embedding_table.weight"
DEMO = {"guidance": 4.0, "top_k": 2000}  # how its demo draws


def plan(checkpoint: Checkpoint, *, allow: Sequence[str] = ()) -> Converted:
    """Finds a tokenizer in a file; each array is a `Tensor` of its final shape that is read when it is asked for.

    The codebook stays as it is stored; `quantizer.unit_length` divides it by its lengths wherever it is used.

    Args:
      checkpoint: an opened file.
      allow: patterns, as of file names, of tensors that may be missing, unexpected or of another shape.

    Raises:
      ConvertError: a tensor is missing, unexpected or of another shape.
    """
    tensors = checkpoint.tensors
    levels = infer.count(tensors, r"encoder\.conv_blocks\.(\d+)\.")
    upstream = {names.renamed(name, PAIRS, levels, back=True): tensor.shape for name, tensor in tensors.items()}
    config = infer.stage1(upstream)
    # Its loss has its beta of 0.25 on the commitment, as the paper of the VQ-VAE has it.
    quantizer = config.quantizer.clone(unit_length=True, codebook_weight=1.0, commitment_weight=0.25)
    config = dataclasses.replace(config, quantizer=quantizer)
    return trees.tokenizer(config, lambda shapes: entries(shapes, levels), tensors, DROPPED, allow)


def entries(shapes: Shapes, levels: int) -> dict[str, Entry]:
    """Returns every tensor of a tokenizer of so many levels, by its name there."""
    found = names.entries(names.autoencoder(), shapes)
    return {names.renamed(name, PAIRS, levels): entry for name, entry in found.items()}


def plan_gpt(
    checkpoint: Checkpoint,
    *,
    num_heads: int | None = None,
    num_codes: int | None = None,
    tokenizer: Converted | None = None,
    allow: Sequence[str] = (),
) -> Converted:
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
    config = _config({name: tensor.shape for name, tensor in tensors.items()}, num_heads, num_codes, tokenizer)
    shapes = trees.stage2_shapes(config)
    mine = gpt_entries(shapes, config.tokenizer.codebook_size)
    found = trees.planned(config, shapes, mine, tensors, (ROTATIONS,))
    trees.check(found.report, allow)
    return found._replace(tokenizer=tokenizer)


def gpt_entries(shapes: Shapes, vocab_size: int) -> dict[str, Entry]:
    """Returns every tensor of a transformer by its name there.

    The first `vocab_size` rows of our embedding are the codes, then come the classes. Both sides turn neighbouring
    channels, the first half of a head by the row.
    """
    ours, block, embedding = "transformer/layers", "layers.{layer}", "transformer/embedding"
    table = (
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
    rows, width = shapes[embedding]
    found = names.entries(table, {path: shape for path, shape in shapes.items() if path != embedding})
    found["tok_embeddings.weight"] = Entry(embedding, (slice(vocab_size),), (vocab_size, width), SAME)
    found[CLASSES] = Entry(embedding, (slice(vocab_size, None),), (rows - vocab_size, width), SAME)
    return found


def _config(shapes: infer.Shapes, num_heads: int | None, num_codes: int | None, tokenizer: Converted | None) -> Stage2:
    """Infers a config from names and shapes. The optimiser is as we remember its paper; no weight depends on it."""
    vocab, width = infer.shape(shapes, "output.weight", 2)
    factor = 16
    if tokenizer is not None:
        factor = tokenizer.config.model.downsample_factor
        if tokenizer.config.quantizer.codebook_size != vocab:
            raise ConvertError(
                f"the tokenizer must have the transformer's {vocab} codes; it has "
                f"{tokenizer.config.quantizer.codebook_size}. Give the one that the transformer was trained with."
            )
    gpt = {
        "norm": "rms",
        "mlp": "swiglu",
        "positions": "rope2d_blank",
        "bias": False,
        "dropout": 0.1,
        "depth": infer.count(shapes, r"layers\.(\d+)\."),
        "width": width,
        "num_heads": infer.heads(width, num_heads, HEADS),
    }
    size = _side(shapes, width, num_codes) * factor
    classes = infer.shape(shapes, CLASSES, 2)[0] - 1  # the last row is the class that was dropped
    return infer.parsed(
        {
            "stage": 2,
            "steps": infer.STEPS,
            "batch_size": 256,
            "data": infer.DATA | {"image_size": size, "resize": (size, size)},
            "tokenizer": {"workdir": "tokenizer", "codebook_size": vocab, "downsample_factor": factor},
            "condition": {"kind": "class", "num_classes": classes},
            "transformer": infer.GPT | gpt,
            "sampling": DEMO | {"top_k": min(DEMO["top_k"], vocab)},
            "optimizer": infer.ADAM | {"learning_rate": 1e-4, "weight_decay": 0.05, "clip_norm": 1.0},
        }
    )


def _side(shapes: infer.Shapes, width: int, num_codes: int | None) -> int:
    """Returns the rows of the grid of codes."""
    if num_codes is None and ROTATIONS in shapes:
        num_codes = infer.shape(shapes, ROTATIONS, 3)[0] - 1  # the class has one too
    codes = num_codes or CODES.get(width, 0)
    if not codes or math.isqrt(codes) ** 2 != codes:
        raise ConvertError(
            f"the codes of an image must be a square grid, which no tensor here tells; got {codes or 'none'} of "
            f"width {width}. Give num_codes: 256 for a model of 256 pixels, 576 for one of 384."
        )
    return math.isqrt(codes)
