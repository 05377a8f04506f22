"""Statistics of any parts in any order are those of the whole; distances of Gaussians have closed forms.

Planted clusters have known precision, recall, density and coverage; brute force tells the rest.
"""

import itertools

import numpy as np
import pytest
import scipy.linalg

from vqgan_jax.evaluate import distances
from vqgan_jax.evaluate.distances import (
    Moments,
    density_coverage,
    frechet_distance,
    inception_score,
    kid,
    nearest,
    precision_recall,
    square_root,
)


def features(n, d=24, seed=0, mean=0.0):
    draws = np.random.default_rng(seed)
    return (draws.normal(size=(n, d)) @ draws.normal(size=(d, d)) + mean).astype(np.float32)


def of(x):
    return distances.add(distances.empty(x.shape[1]), x)


def gaussian(mean, covariance, count=101):
    return Moments(count, np.asarray(mean, float), (count - 1) * np.asarray(covariance, float))


def close(a, b, rtol=1e-10):
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=rtol)
    np.testing.assert_allclose(a.scatter, b.scatter, rtol=rtol, atol=rtol * np.abs(b.scatter).max())


def test_parts_of_any_size_in_any_order_are_one_pass():
    x = features(1003, mean=3.0)
    whole = of(x)
    parts = [of(part) for part in np.split(x, [1, 64, 64, 500, 1000])]
    assert [part.count for part in parts] == [1, 63, 0, 436, 500, 3]
    for order in itertools.islice(itertools.permutations(parts), 0, None, 97):
        merged = distances.empty(x.shape[1])
        for part in order:
            merged = distances.merge(merged, part)
        close(merged, whole)
    left = distances.merge(distances.merge(parts[0], parts[1]), parts[3])
    right = distances.merge(parts[0], distances.merge(parts[1], parts[3]))
    close(left, right)


def test_batches_are_one_pass_and_padding_is_not_counted():
    x = features(70)
    found = distances.empty(x.shape[1])
    for start in range(0, 70, 16):
        found = distances.add(found, x[start : start + 16])
    close(found, of(x))
    assert found.count == 70


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_a_covariance_is_numpys_in_float64_even_far_from_zero(mean):
    x = features(500, mean=mean)
    expected = np.cov(x.astype(np.float64), rowvar=False)
    found = distances.covariance(of(x))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())
    # What would fail: sums of squares in float32.
    raw = (x.T @ x - len(x) * np.outer(x.mean(0), x.mean(0))) / (len(x) - 1)
    assert mean == 0.0 or np.abs(raw - expected).max() > 1e-3 * np.abs(expected).max()


def test_features_that_are_not_finite_are_told_by_their_place():
    x = features(5)
    x[3, 2] = np.inf
    with pytest.raises(ValueError, match=r"those of images \[3\] of 5 are not"):
        of(x)


def test_one_vector_has_no_covariance():
    with pytest.raises(ValueError, match="two vectors or more; got 1"):
        distances.covariance(of(features(1)))


# Fréchet distances


def test_of_two_gaussians_with_closed_form():
    # Diagonal covariances: sum of squared differences of means and of deviations.
    a, b = gaussian([1.0, 2.0, 0.0], np.diag([4.0, 9.0, 0.0])), gaussian([0.0, 0.0, 0.0], np.diag([1.0, 16.0, 25.0]))
    assert frechet_distance(a, b) == pytest.approx(5.0 + 1.0 + 1.0 + 25.0, rel=1e-12)
    # Turned alike, they are as far apart.
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turned = [Moments(m.count, turn @ m.mean, turn @ m.scatter @ turn.T) for m in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(32.0, rel=1e-7)
    # In two dimensions, tr (AB)^1/2 = sqrt(tr AB + 2 sqrt(det AB)).
    first, second = np.array([[2.0, 1.0], [1.0, 3.0]]), np.array([[1.0, -0.5], [-0.5, 2.0]])
    expected = 8.0 - 2 * np.sqrt(np.trace(first @ second) + 2 * np.sqrt(np.linalg.det(first @ second)))
    assert frechet_distance(gaussian([0, 0], first), gaussian([0, 0], second)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("n", [20, 200])
def test_of_a_set_and_itself_is_nothing_even_when_the_covariance_is_singular(n):
    x = of(features(n, d=64))
    assert 0.0 <= frechet_distance(x, x) < 1e-3


def test_equals_scipys_root():
    a, b = of(features(2000, d=100)), of(features(2000, d=100, seed=1, mean=0.5))
    root = scipy.linalg.sqrtm(distances.covariance(a) @ distances.covariance(b))
    expected = np.sum(np.square(a.mean - b.mean)) + np.trace(
        distances.covariance(a) + distances.covariance(b) - 2 * root
    )
    assert frechet_distance(a, b) == pytest.approx(np.real(expected), rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_the_root_squares_to_its_matrix():
    matrix = distances.covariance(of(features(10, d=20)))
    np.testing.assert_allclose(square_root(matrix) @ square_root(matrix), matrix, atol=1e-10 * np.abs(matrix).max())


def test_features_of_two_networks_cannot_be_compared():
    with pytest.raises(ValueError, match="got 24 and 12"):
        frechet_distance(of(features(30)), of(features(30, d=12)))


# Single features


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
