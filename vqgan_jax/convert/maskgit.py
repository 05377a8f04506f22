"""MaskGIT's ImageNet tokenizers, as Flax wrote them: modules are numbered in the order in which they were called.

References:
  Chang et al. 2022, MaskGIT: Masked Generative Image Transformer; see `nn.maskgit`.
"""

import re

from vqgan_jax.convert import infer, names, trees
from vqgan_jax.convert.tensors import Checkpoint

RULES: names.Rules = (  # of a path whose blocks have theirs
    ("^generator/", "params/"),
    ("encoder/conv_in/", "encoder/Conv_0/"),
    ("pre_quantizer/", "encoder/Conv_1/"),
    ("post_quantizer/", "decoder/Conv_0/"),
    ("norm_out/", "GroupNorm_0/"),
    ("norm_1/", "GroupNorm_0/"),
    ("norm_2/", "GroupNorm_1/"),
    ("conv_1/", "Conv_0/"),
    ("conv_2/", "Conv_1/"),
    ("shortcut/", "Conv_2/"),
)


def plan(checkpoint: Checkpoint) -> trees.Converted:
    """Finds a tokenizer in a file; each array is a `Tensor` of its final shape that is read when it is asked for.

    Args:
      checkpoint: an opened file.

    Raises:
      ConvertError: the shapes are those of another kind of model.
    """
    tensors = checkpoint.tensors
    # One convolution behind the codes, one a doubling, one at the end; the last blocks are those of the middle.
    levels = infer.count(tensors, "params/decoder/Conv_{}/kernel".format) - 1
    blocks = infer.count(tensors, "params/encoder/ResBlock_{}/Conv_0/kernel".format) // max(levels + 1, 1)
    name = lambda path: renamed(path, levels, blocks)
    config = infer.stage1(tensors, name, flax=True, model={"kind": "maskgit"})
    return trees.tokenizer(config, names.autoencoder(name, names.SAME), tensors)


def renamed(path: str, levels: int, blocks: int) -> str:
    """Returns their name for a path of ours, in a tokenizer of `levels` levels with `blocks` residual blocks each."""

    def block(match: re.Match[str]) -> str:
        net, level, number = match.groups()
        if int(level or 0) >= levels or int(number) >= blocks:
            return match[0]  # its number would be that of another block
        run = int(level or levels)  # levels as they run: down and the middle; the middle and up
        return f"{net}/ResBlock_{blocks * (run if net == 'encoder' else levels - run) + int(number)}/"

    path = re.sub(r"(encoder|decoder)/(?:level_(\d+)|middle)_block_(\d+)/", block, path)
    path = re.sub(r"level_(\d+)_upsample/conv/", lambda level: f"Conv_{levels - int(level[1])}/", path)
    return names.renamed(RULES, path.replace("conv_out/", f"Conv_{levels}/"))
