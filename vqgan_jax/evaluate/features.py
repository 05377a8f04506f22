"""From pixels to the vectors that statistics are made of, with each network's own resize and scaling."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vqgan_jax.nn.inception import Inception, resize_tf1
from vqgan_jax.nn.perceptual import VGG16, imagenet
from vqgan_jax.nn.pixels import check_levels, to_float

Images = UInt8[Array, "b H W 3"]


@jax.jit
def inception_features(params: dict[str, Any], images: Images) -> tuple[Float[Array, "b 2048"], Float[Array, "b 1008"]]:
    """Features for FID and KID, and logits without bias for the Inception Score, of rounded pictures of any size.

    Args:
      params: of `nn.inception.Inception`; see `convert.inception.load_inception`.
      images: levels 0 to 255.
    """
    check_levels(images)
    pair: Any = Inception().apply({"params": params}, (resize_tf1(images) - 128.0) / 128.0)
    return pair


@jax.jit
def vgg_features(params: dict[str, Any], images: Images) -> Float[Array, "b 512"]:
    """The last activation of VGG16's convolutions, averaged over the picture: for `fd_vgg`, which is not FID.

    Args:
      params: of `nn.perceptual.LPIPS`, of which only VGG16 is used.
      images: levels 0 to 255, not resized: at least 16 pixels a side.
    """
    features: Any = VGG16().apply({"params": params["vgg"]}, imagenet(to_float(images)))
    return jnp.mean(features[-1], axis=(1, 2))
