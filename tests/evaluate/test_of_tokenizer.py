"""Values and histograms of whole sets, not means of batches (E15, E18, E19)."""

import numpy as np
import pytest
import sets

from vqgan_jax.evaluate.of_images import Collector
from vqgan_jax.evaluate.of_tokenizer import measure

K = 8


def plain(images):
    """A feature."""
    return {"vgg": np.asarray(images, np.float32).reshape(len(images), -1)[:, :2]}


def measured(indices: np.ndarray, sizes: tuple[int, ...], values: np.ndarray | None = None):
    """Of images whose codes are planted, in batches of the given sizes; `values` are their LPIPS."""
    images = sets.blobs(len(indices), size=8)
    values = np.arange(len(indices), dtype=np.float64) if values is None else values
    rows = np.split(np.arange(len(indices)), np.cumsum(sizes)[:-1])
    batches = [(row, {"image": images[row], "row": row}) for row in rows]
    told = iter(rows)

    def reconstruct(shown):
        at = next(told)
        return 255 - shown, indices[at]

    places = {image.tobytes(): value for image, value in zip(images, values, strict=True)}
    compare = lambda shown, recons: {"lpips_vgg": np.array([places[image.tobytes()] for image in shown])}
    return measure(
        batches, reconstruct, compare, codebook_size=K, collectors=(Collector(plain), Collector(plain)), batch_size=8
    )


def random_codes(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, K, (n, 4, 4))


@pytest.mark.parametrize("sizes", [(65,), (64, 1), (1,) * 65, (20, 0, 45)])
def test_a_smaller_last_batch_counts_by_its_images(sizes):
    values = np.append(np.zeros(64), 65.0)
    found = measured(random_codes(65), sizes, values)
    assert found.means["lpips_vgg"] == pytest.approx(1.0, rel=1e-12)
    assert found.originals.count == found.recons.count == 65
    assert found.originals.fingerprint != found.recons.fingerprint


@pytest.mark.parametrize(("used", "sizes"), [(K, (2, 2)), (K // 2, (4,)), (1, (1, 1, 1, 1))])
def test_perplexity_and_usage_are_of_one_histogram_in_nats(used, sizes):
    """Each image has few codes, all of them together `used`: a mean over batches would show less."""
    indices = (np.arange(4)[:, None, None] * 2 + np.arange(16).reshape(1, 4, 4) % 2) % used
    found = measured(indices, sizes)
    assert found.hits.dtype == np.int64
    assert found.hits.sum() == 64
    assert found.means["perplexity"] == pytest.approx(used, rel=1e-12)
    assert found.means["codebook_usage"] == used / K


def test_the_extremes_are_those_of_all_images():
    values = np.random.default_rng(1).permutation(np.arange(33, dtype=np.float64))
    found = measured(random_codes(33), (16, 16, 1), values)
    chosen = {kind: values[numbers].tolist() for kind, numbers in found.extremes(3).items()}
    assert chosen == {"best": [0, 1, 2], "median": [15, 16, 17], "worst": [30, 31, 32]}
    assert {kind: len(numbers) for kind, numbers in measured(random_codes(2), (2,)).extremes(3).items()} == {
        "best": 2, "median": 2, "worst": 2
    }  # fmt: skip
