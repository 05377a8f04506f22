"""What references and tests draw alike, wherever they run: weights of published networks, pictures. NumPy only."""

import zlib

import numpy as np


def weight(name, shape):
    """A tensor of the published file, by its name alone: activations stay near 1, and nothing is 0."""
    draws = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):  # of a norm
        small = 0.25 if name.endswith("bn3.weight") else 1.0  # else 16 residual blocks add up to thousands
        return (small * draws.uniform(0.5, 1.5, shape)).astype(np.float32)
    if len(shape) in (1, 3):  # a bias, or a table of positions
        return (0.2 * draws.standard_normal(shape)).astype(np.float32)
    gain = 1.0 if name == "fc.weight" else 2.0
    return np.sqrt(gain / np.prod(shape[1:])).astype(np.float32) * draws.standard_normal(shape, np.float32)


def pictures():
    """Coloured tiles with noise, uint8, of 64x64, 320x320 and 299x299 pixels; of whole numbers only."""
    draws = np.random.default_rng(0)
    images = []
    for size in (64, 320, 299):
        tiles = draws.integers(20, 236, (11, 11, 3)).repeat(size // 11 + 1, 0).repeat(size // 11 + 1, 1)
        images.append((tiles[:size, :size] + draws.integers(-20, 20, (size, size, 3))).astype(np.uint8))
    return images


def pairs():
    """Three crops of 48x48 pixels of the second picture, and three that lie a little beside them."""
    image = pictures()[1]
    crop = lambda i, shift: image[60 * i : 60 * i + 48, 80 * i + shift : 80 * i + shift + 48]
    return np.stack([crop(i, 0) for i in range(3)]), np.stack([crop(i, 9 * i + 3) for i in range(3)])


def mirrored():
    """The second picture, and its mirror image, as batches of one."""
    image = pictures()[1]
    return image[None], image[None, :, ::-1]
