"""Writes the reference arrays of the resize before FID's Inception: what TensorFlow 1's operator gives, on a CPU.

TensorFlow is needed here and nowhere else, so give this script an environment of its own:

    pip install tensorflow-cpu==2.20.0
    python tests/golden/make_resize.py
"""
# pyright: reportMissingImports=false, reportMissingModuleSource=false

import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parents[1]))
import drawn


def resize(image):
    """Every thirteenth row and column of the picture with 299x299 pixels."""
    resized = tf.compat.v1.image.resize_bilinear(image[None].astype(np.float32), (299, 299), align_corners=False)
    return resized.numpy()[0, ::13, ::13]


if __name__ == "__main__":
    arrays = {str(len(image)): resize(image) for image in drawn.pictures()}
    np.savez_compressed(Path(__file__).parent / "resize.npz", **arrays)
