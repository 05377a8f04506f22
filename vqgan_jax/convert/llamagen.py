"""LlamaGen's image tokenizers and class-conditional transformers.

The tokenizers are upstream's network by other names, with codes compared as directions. The transformers have RMSNorm,
SwiGLU, 2-D rotary positions, and a class that has no position.

References:
  Sun et al. 2024, Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation.
"""

import functools

from vqgan_jax.config import Stage2
from vqgan_jax.convert import infer, names, trees
from vqgan_jax.convert.names import IN, LAYER, OUT, SAME, Entry, Row
from vqgan_jax.convert.tensors import Checkpoint, ConvertError
from vqgan_jax.convert.trees import Converted, Shapes

# From upstream's names; the levels of their decoder are numbered as they run, from the lowest resolution.
RULES: names.Rules = (
    *names.TORCH,
    (r"\.(down|up)\.", ".conv_blocks."),
    (r"\.block\.", ".res."),
    (r"\.mid\.block_1", ".mid.0"),
    (r"\.mid\.attn_1", ".mid.1"),
    (r"\.mid\.block_2", ".mid.2"),
)
# Its loss has its beta of 0.25 on the commitment, as the paper of the VQ-VAE has it. Codes are compared as directions.
CODES = {"unit_length": True, "codebook_weight": 1.0, "commitment_weight": 0.25}
DROPPED = ("quantize.codebook_used",)  # a log of the codes that were hit last
ROTATIONS = "freqs_cis"  # computed anew; where it is stored, it tells the grid
HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 3200: 32}  # by width
CODES_OF_WIDTH = {
    1280: 576,
    1536: 576,
    3200: 576,
}  # of the published models: the two smaller ones are there for 256 too
CLASSES = "cls_embedding.embedding_table.weight"
# Of a transformer, but for its embedding.
OURS, BLOCK = "transformer/layers", "layers.{}"
GPT: names.Table = (
    Row(f"{OURS}/norm1/scale", f"{BLOCK}.attention_norm.weight", SAME, (LAYER,)),
    Row(f"{OURS}/norm2/scale", f"{BLOCK}.ffn_norm.weight", SAME, (LAYER,)),
    Row(f"{OURS}/qkv/kernel", f"{BLOCK}.attention.wqkv.weight", OUT, (LAYER,)),
    Row(f"{OURS}/proj/kernel", f"{BLOCK}.attention.wo.weight", IN, (LAYER,)),
    Row(f"{OURS}/gate/kernel", f"{BLOCK}.feed_forward.w1.weight", OUT, (LAYER,)),
    Row(f"{OURS}/up/kernel", f"{BLOCK}.feed_forward.w3.weight", OUT, (LAYER,)),
    Row(f"{OURS}/down/kernel", f"{BLOCK}.feed_forward.w2.weight", OUT, (LAYER,)),
    Row("transformer/norm/scale", "norm.weight"),
    Row("transformer/head/kernel", "output.weight", OUT),
)


def plan(checkpoint: Checkpoint) -> Converted:
    """Finds a tokenizer in a file; each array is a `Tensor` of its final shape that is read when it is asked for.

    The codebook stays as it is stored; `quantizer.unit_length` divides it by its lengths wherever it is used.

    Args:
      checkpoint: an opened file.

    Raises:
      ConvertError: the shapes are those of another kind of model.
    """
    tensors = checkpoint.tensors
    table = vq_model(infer.count(tensors, "encoder.conv_blocks.{}.res.0.conv1.weight".format))
    config = infer.stage1(tensors, functools.partial(names.renamed, RULES), quantizer=CODES)
    return trees.tokenizer(config, table, tensors, DROPPED)


def vq_model(levels: int) -> names.Table:
    """Returns the table of a tokenizer of `levels` levels."""
    return names.autoencoder(lambda path: names.renamed(RULES, names.flipped(path, levels)))


def plan_gpt(
    checkpoint: Checkpoint,
    *,
    num_heads: int | None = None,
    num_codes: int | None = None,
    tokenizer: Converted | None = None,
) -> Converted:
    """Finds a transformer in a file; each array is a `Tensor` of its final shape that is read when it is asked for.

    Args:
      checkpoint: an opened file.
      num_heads: None is that of a published width.
      num_codes: of an image: 256 for the models of 256 pixels, 576 for those of 384; None is the file's own rotations,
        or that of a published width.
      tokenizer: the converted one of its images, which is another file; None leaves it out.

    Raises:
      ConvertError: heads or codes must be named, or the tokenizer has another number of codes.
    """
    tensors = checkpoint.tensors
    config = _config(tensors, num_heads, num_codes, tokenizer)
    shapes = trees.network_shapes(config)
    mine = gpt_entries(shapes, config.tokenizer.codebook_size)
    transformer = trees.planned(config, shapes, mine, tensors, (ROTATIONS,))
    return transformer._replace(tokenizer=tokenizer)


def gpt_entries(shapes: Shapes, vocab_size: int) -> dict[str, Entry]:
    """Returns every tensor of a transformer by its name there.

    The first `vocab_size` rows of our embedding are the codes, then come the classes. Both sides turn neighbouring
    channels, the first half of a head by the row.
    """
    embedding = "transformer/embedding"
    rows, width = shapes[embedding]
    entries = names.entries(GPT, {path: shape for path, shape in shapes.items() if path != embedding})
    entries["tok_embeddings.weight"] = Entry(embedding, (slice(vocab_size),), (vocab_size, width), SAME)
    entries[CLASSES] = Entry(embedding, (slice(vocab_size, None),), (rows - vocab_size, width), SAME)
    return entries


def _config(
    tensors: infer.Tensors, num_heads: int | None, num_codes: int | None, tokenizer: Converted | None
) -> Stage2:
    """Infers a config from names and shapes. The optimiser is as we remember its paper; no weight depends on it."""
    vocab, width = infer.shape(tensors, "output.weight", 2)
    factor = tokenizer.config.model.downsample_factor if tokenizer else 16
    if tokenizer and tokenizer.config.quantizer.codebook_size != vocab:
        codes = tokenizer.config.quantizer.codebook_size
        raise ConvertError(f"the tokenizer must have the transformer's {vocab} codes; it has {codes}. Give its own.")
    if num_codes is None and ROTATIONS in tensors:
        num_codes = infer.shape(tensors, ROTATIONS, 3)[0] - 1  # the class has one too
    return infer.prior(
        vocab,
        factor,
        num_codes or CODES_OF_WIDTH.get(width, 0),
        batch_size=256,
        # The last row is the class that was dropped.
        condition={"kind": "class", "num_classes": infer.shape(tensors, CLASSES, 2)[0] - 1},
        transformer={
            "norm": "rms",
            "mlp": "swiglu",
            "positions": "rope2d_blank",
            "bias": False,
            "dropout": 0.1,
            "depth": infer.count(tensors, "layers.{}.attention.wqkv.weight".format),
            "width": width,
            "num_heads": infer.heads(width, num_heads, HEADS),
        },
        sampling={"guidance": 4.0, "top_k": min(2000, vocab)},  # as its demo draws
        optimizer={"learning_rate": 1e-4, "weight_decay": 0.05, "clip_norm": 1.0},
    )
