"""Planted clusters have known precision, recall, density and coverage; brute force tells the rest."""

import numpy as np
import pytest

from vqgan_jax.evaluate import distances
from vqgan_jax.evaluate.distances import density_coverage, kid, nearest, precision_recall
from vqgan_jax.evaluate.inception_score import inception_score


def cloud(n, centre=0.0, d=16, seed=0):
    return (np.random.default_rng(seed).normal(size=(n, d)) + centre).astype(np.float32)


def squares(x, y):
    return np.square(x[:, None].astype(np.float64) - y[None]).sum(-1)


# Precision and recall, density and coverage


def test_samples_of_one_of_two_modes_are_precise_and_recall_half():
    reference = np.concatenate([cloud(300), cloud(300, 50.0, seed=1)])
    samples = reference[:300] + np.float32(1e-3)
    assert precision_recall(reference, samples) == (1.0, 0.5)
    assert precision_recall(samples, reference) == (0.5, 1.0)
    density, coverage = density_coverage(reference, samples)
    # Each lies in its own reference's ball and on average in k more, at the rim of one of them: half of that counts.
    assert density == pytest.approx((1 + 4.5) / 5, abs=0.01)
    assert coverage == 0.5
    assert density_coverage(samples, reference) == (pytest.approx((1 + 4.5) / 5 / 2, abs=0.01), 1.0)


def test_sets_apart_share_nothing():
    assert precision_recall(cloud(50), cloud(50, 50.0)) == (0.0, 0.0)
    assert density_coverage(cloud(50), cloud(50, 50.0)) == (0.0, 0.0)


@pytest.mark.parametrize("block", [7, 512])
def test_all_equal_brute_force_whatever_the_blocks(block, monkeypatch):
    monkeypatch.setattr(distances, "_BLOCK", block)
    x, y, k = cloud(40, d=3), cloud(60, 0.7, d=3, seed=1), 3

    def radii(points):
        return np.sort(np.sqrt(squares(points, points)), axis=1)[:, k]  # the first is the point itself

    between = np.sqrt(squares(x, y))
    in_x, in_y = between <= radii(x)[:, None], between <= radii(y)[None]
    assert 0.0 < in_x.any(0).mean() < 1.0
    assert precision_recall(x, y, k) == (in_x.any(0).mean(), in_y.any(1).mean())
    assert density_coverage(x, y, k) == (pytest.approx(in_x.sum() / (k * 60)), in_x.any(1).mean())
    order, distance = nearest(y, x, 2)
    np.testing.assert_array_equal(order, np.argsort(between.T, axis=1)[:, :2])
    np.testing.assert_allclose(distance, np.square(np.sort(between.T, axis=1)[:, :2]), rtol=1e-9)


def test_distances_far_from_zero_keep_their_digits():
    x = cloud(30, 1000.0)
    order, distance = nearest(x + np.float32(2**-10), x)
    np.testing.assert_array_equal(order[:, 0], np.arange(30))
    np.testing.assert_allclose(distance[:, 0], 16 * 2.0**-20, rtol=1e-3)


def test_a_ball_needs_more_points_than_neighbours():
    with pytest.raises(ValueError, match="got 3 for 3"):
        precision_recall(cloud(3), cloud(10))
    with pytest.raises(ValueError, match="`count` must be 1 to the number of references, 3; got 4"):
        nearest(cloud(5), cloud(3), 4)


# KID


def test_kid_is_the_unbiased_estimate():
    x, y = cloud(6, d=4), cloud(6, 1.0, d=4, seed=1)
    kernel = lambda a, b: (float(a.astype(np.float64) @ b) / 4 + 1) ** 3
    within = [np.mean([kernel(s[i], s[j]) for i in range(6) for j in range(6) if i != j]) for s in (x, y)]
    between = np.mean([kernel(a, b) for a in x for b in y])
    mean, deviation = kid(x, y, subsets=3, size=6, seed=0)
    assert mean == pytest.approx(sum(within) - 2 * between, rel=1e-9)
    assert deviation == pytest.approx(0.0, abs=1e-9)  # each subset is the whole set


def test_kid_of_one_distribution_is_around_zero_and_of_two_is_not():
    same, spread = kid(cloud(500), cloud(500, seed=1), subsets=50, size=100, seed=0)
    assert abs(same) < 3 * spread
    far, _ = kid(cloud(500), cloud(500, 0.5, seed=1), subsets=50, size=100, seed=0)
    assert far > 10 * abs(same)
    # A biased estimate, with the diagonals, would be the mean of k(x, x) / size above 0.
    biased = 2 * np.mean((np.square(cloud(500)).sum(1) / 16 + 1) ** 3) / 100
    assert abs(same) < 0.1 * biased


def test_kid_is_told_by_its_seed_and_draws_no_image_twice():
    x, y = cloud(50), cloud(40, seed=1)
    assert kid(x, y, subsets=2, size=10, seed=3) == kid(x, y, subsets=2, size=10, seed=3)
    assert kid(x, y, subsets=2, size=10, seed=3) != kid(x, y, subsets=2, size=10, seed=4)
    with pytest.raises(ValueError, match="got 41 for 50 and 40"):
        kid(x, y, size=41, seed=0)


# Inception Score


def test_sure_and_even_predictions_score_the_number_of_classes():
    logits = 1e4 * np.eye(10, dtype=np.float32)[np.arange(1000) % 10]
    score, spread = inception_score(logits, split=1000, seed=0)
    assert score == pytest.approx(10.0, rel=1e-6)
    assert spread == 0.0


def test_unsure_predictions_score_one():
    assert inception_score(np.zeros((64, 1008), np.float32), seed=0) == (pytest.approx(1.0, rel=1e-9), 0.0)


def test_the_score_is_that_of_the_definition():
    logits = cloud(200, d=7)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    expected = np.exp(np.mean(np.sum(p * np.log(p / p.mean(0)), axis=1)))
    assert inception_score(logits, seed=0)[0] == pytest.approx(expected, rel=1e-12)


def test_the_order_of_the_samples_does_not_matter():
    classes = np.repeat(np.arange(100), 20)
    logits = 20 * np.eye(100, dtype=np.float32)[classes]
    ordered = inception_score(logits, split=500, seed=0)
    mixed = inception_score(np.random.default_rng(1).permutation(logits), split=500, seed=0)
    assert ordered[0] == pytest.approx(mixed[0], rel=0.02)
    assert ordered[0] > 80.0  # four splits of 25 classes each would score 25


def test_splits_are_equal_parts():
    logits = cloud(1100, d=7)
    parts = np.array_split(np.random.default_rng(5).permutation(logits), 2)
    scores = [inception_score(part, split=10_000, seed=0)[0] for part in parts]
    assert inception_score(logits, split=500, seed=5) == (
        pytest.approx(np.mean(scores), rel=1e-9),
        pytest.approx(np.std(scores), rel=1e-6),
    )


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        inception_score(np.full((2, 3), np.inf), seed=0)
