"""Pixels as codes: a palette and nothing else, with which section 4.3 of the paper compares (Chen et al. 2020)."""

from jaxtyping import Array, Float, Int

from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.quantizer import Quantized


class Colours(VQGAN):
    """A `VQGAN` without encoder and decoder: the quantizer reads pixels, so its codes are colours.

    The quantizer has as many channels as the images. With `quantizer.ema` and a k-means start its steps are k-means.
    """

    has_decoder = False

    channel_multipliers: tuple[int, ...] = (1,)
    attn_resolutions: tuple[int, ...] = ()

    def check(self) -> None:
        """Raises ValueError where fields say what this network does not have."""
        if self.channel_multipliers != (1,) or self.attn_resolutions or self.dropout or self.remat != "none":
            raise ValueError(
                "`config.model.kind` 'colours' has one level and no blocks: set channel_multipliers to (1,), "
                "attn_resolutions to (), dropout to 0 and remat to none."
            )

    def setup(self):
        if self.quantizer.embed_dim != self.image_channels:
            raise ValueError(
                f"the codes of 'colours' are pixels of {self.image_channels} channels; `config.quantizer.embed_dim` is "
                f"{self.quantizer.embed_dim}. Set it to {self.image_channels}."
            )

    def encode(
        self, images: Float[Array, "b H W c"], *, train: bool = False, step: int | Int[Array, ""] = 0
    ) -> Quantized:
        """Finds the nearest colour of each pixel."""
        return self.quantizer(images, train=train, step=step)

    def decode(self, quantized: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        """Returns the colours as they are."""
        del train
        return quantized
