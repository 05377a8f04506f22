"""VQGAN: encoder, 1x1, quantizer, 1x1, decoder (equations 2 to 4 of the paper)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqgan_jax.nn import maskgit
from vqgan_jax.nn.autoencoder import Decoder, Encoder
from vqgan_jax.nn.blocks import Conv, conv1x1
from vqgan_jax.nn.quantizer import GumbelQuantizer, Quantized, VectorQuantizer


class VQGAN(nn.Module):
    """Images in [-1, 1] to code indices and back.

    Sizes must be multiples of `downsample_factor`: `encode` of any other would not decode to the same size.
    `post_kernel` is the side of the kernel behind the codes: 1, or MaskGIT's 3.
    """

    encoder: Encoder | maskgit.Encoder
    quantizer: VectorQuantizer | GumbelQuantizer
    decoder: Decoder | maskgit.Decoder
    post_kernel: int = 1

    def setup(self):
        self.pre_quantizer = conv1x1(self.quantizer.embed_dim, jnp.float32, "pre_quantizer")
        reach = self.post_kernel // 2
        self.post_quantizer = Conv(
            self.encoder.out_channels, self.post_kernel, padding=(reach, reach), dtype=self.decoder.dtype
        )

    @property
    def downsample_factor(self) -> int:
        """Side of an image over the side of its grid of indices."""
        return 2 ** (len(self.encoder.channel_multipliers) - 1)

    def __call__(
        self, images: Float[Array, "b H W c"], *, train: bool = False, temperature: float | Float[Array, ""] = 1.0
    ) -> tuple[Float[Array, "b H W _"], Quantized]:
        """Reconstructs; also gives what the losses on the codes need."""
        quantized = self.encode(images, train=train, temperature=temperature)
        return self.decode(quantized.quantized, train=train), quantized

    def encode(
        self, images: Float[Array, "b H W c"], *, train: bool = False, temperature: float | Float[Array, ""] = 1.0
    ) -> Quantized:
        """Encodes and quantizes. `temperature` is that of the Gumbel softmax; the other quantizer has none."""
        latents = self.pre_quantizer(self.encoder(images, train=train))
        return self.quantizer(latents, train=train, temperature=temperature)

    def decode(self, quantized: Float[Array, "b h w d"], *, train: bool = False) -> Float[Array, "b H W c"]:
        """Decodes quantized latents to float32 images, about in [-1, 1], not clipped."""
        return self.decoder(self.post_quantizer(quantized), train=train)

    def decode_indices(self, indices: Int[Array, "b h w"]) -> Float[Array, "b H W c"]:
        """Decodes codebook rows."""
        return self.decode(self.quantizer.lookup(indices))
