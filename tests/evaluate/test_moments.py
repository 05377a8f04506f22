"""Statistics of any parts in any order are those of the whole; distances of Gaussians have closed forms."""

import itertools

import numpy as np
import pytest
import scipy.linalg

from vqgan_jax.evaluate import moments
from vqgan_jax.evaluate.frechet import frechet_distance, square_root
from vqgan_jax.evaluate.moments import Moments


def features(n, d=24, seed=0, mean=0.0):
    draws = np.random.default_rng(seed)
    return (draws.normal(size=(n, d)) @ draws.normal(size=(d, d)) + mean).astype(np.float32)


def of(x):
    return moments.add(moments.empty(x.shape[1]), x)


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
        merged = moments.empty(x.shape[1])
        for part in order:
            merged = moments.merge(merged, part)
        close(merged, whole)
    left = moments.merge(moments.merge(parts[0], parts[1]), parts[3])
    right = moments.merge(parts[0], moments.merge(parts[1], parts[3]))
    close(left, right)


def test_batches_are_one_pass_and_padding_is_not_counted():
    x = features(70)
    found = moments.empty(x.shape[1])
    for start in range(0, 70, 16):
        found = moments.add(found, x[start : start + 16])
    close(found, of(x))
    assert found.count == 70


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_a_covariance_is_numpys_in_float64_even_far_from_zero(mean):
    x = features(500, mean=mean)
    expected = np.cov(x.astype(np.float64), rowvar=False)
    found = moments.covariance(of(x))
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
        moments.covariance(of(features(1)))


def test_files_give_back_every_bit(tmp_path):
    path = tmp_path / "reference.npz"
    written = of(features(50))
    moments.save(path, written)
    read = moments.load(path)
    assert read.count == 50
    np.testing.assert_array_equal(read.mean, written.mean)
    np.testing.assert_array_equal(read.scatter, written.scatter)
    with pytest.raises(ValueError, match=r"that of .*, 50; got 49"):
        moments.load(path, count=49)


def test_adms_references_are_read(tmp_path):
    path, x, images = tmp_path / "adm.npz", features(50), np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.savez(path, mu=x.mean(0), sigma=np.cov(x, rowvar=False), mu_s=0, sigma_s=0, arr_0=images)
    close(moments.load(path, count=50), of(x), rtol=1e-5)
    np.testing.assert_array_equal(moments.load_images(path), images)
    with pytest.raises(ValueError, match="`count` must be told"):
        moments.load(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, features=features(3))
    with pytest.raises(ValueError, match="it has \\['features'\\]"):
        moments.load(path)
    with pytest.raises(ValueError, match="it has \\['features'\\]"):
        moments.load_images(path)
    np.savez(path, arr_0=np.zeros((2, 4, 4, 3)), mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="float64"):
        moments.load_images(path)
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2, 2\)"):
        moments.load(path, count=3)
    np.savez(path, arr_0=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        moments.load_images(path)


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
    root = scipy.linalg.sqrtm(moments.covariance(a) @ moments.covariance(b))
    expected = np.sum(np.square(a.mean - b.mean)) + np.trace(moments.covariance(a) + moments.covariance(b) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(np.real(expected), rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_the_root_squares_to_its_matrix():
    matrix = moments.covariance(of(features(10, d=20)))
    np.testing.assert_allclose(square_root(matrix) @ square_root(matrix), matrix, atol=1e-10 * np.abs(matrix).max())


def test_features_of_two_networks_cannot_be_compared():
    with pytest.raises(ValueError, match="got 24 and 12"):
        frechet_distance(of(features(30)), of(features(30, d=12)))
