"""The networks that see the images: their weights, and from pixels to features with each network's own resize."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vqgan_jax.convert import inception, lpips
from vqgan_jax.evaluate import protocol
from vqgan_jax.nn.inception import Inception, resize_tf1
from vqgan_jax.nn.perceptual import VGG16, imagenet
from vqgan_jax.nn.pixels import check_levels, to_float
from vqgan_jax.train import sharding

Images = UInt8[Array, "b H W 3"]


class Networks(NamedTuple):
    """What sees the images.

    Attributes:
      run: from images (uint8 b H W 3) to features by name.
      lpips: parameters of LPIPS and its VGG16.
      files: name and hash of the weights' file, by network.
      keep: features that a metric needs one by one; of the others it needs moments.
    """

    run: Callable[[Any], Mapping[str, Any]]
    lpips: Any
    files: dict[str, tuple[str, str]]
    keep: frozenset[str]


def open_networks(metrics: Collection[protocol.Metric], path: str | None) -> Networks:
    """Loads what the metrics need, before any work.

    Args:
      metrics: those that will be measured.
      path: file of Inception's weights; None looks for it where `convert.inception` says.

    Raises:
      FileNotFoundError: Inception's weights are needed and not there.
    """
    files, everywhere = {"vgg": lpips.lpips_path()}, sharding.replicated(sharding.local_mesh())
    needed = {metric.network for metric in metrics if metric.compare is not None}
    if "inception" in needed:
        files["inception"] = Path(path) if path else inception.find_inception()
        inception_params = jax.device_put(inception.load_inception(files["inception"]), everywhere)
    vgg = jax.device_put(lpips.load_lpips(), everywhere)

    def run(images: Any) -> dict[str, Any]:
        features = {"vgg": vgg_features(vgg, images)} if "vgg" in needed else {}
        if "inception" in needed:
            features["inception"], features["logits"] = inception_features(inception_params, images)
        return features

    hashes = {name: (file.name, protocol.file_hash(file)) for name, file in files.items()}
    return Networks(run, vgg, hashes, keep=frozenset(metric.rows for metric in metrics if metric.rows))


@jax.jit
def inception_features(params: dict[str, Any], images: Images) -> tuple[Float[Array, "b 2048"], Float[Array, "b 1008"]]:
    """Returns features for FID and KID, and logits without bias for the Inception Score, of pictures of any size.

    Args:
      params: of `nn.inception.Inception`; see `convert.inception.load_inception`.
      images: levels 0 to 255.
    """
    check_levels(images)
    pair: Any = Inception().apply({"params": params}, (resize_tf1(images) - 128.0) / 128.0)
    return pair


@jax.jit
def vgg_features(params: dict[str, Any], images: Images) -> Float[Array, "b 512"]:
    """Returns the last activation of VGG16's convolutions, averaged over the picture: for `fd_vgg`, which is not FID.

    Args:
      params: of `nn.perceptual.LPIPS`, of which only VGG16 is used.
      images: levels 0 to 255, not resized: at least 16 pixels a side.
    """
    features: Any = VGG16().apply({"params": params["vgg"]}, imagenet(to_float(images)))
    return jnp.mean(features[-1], axis=(1, 2))
