"""Many samples: the same ones however they are batched, on one device and on eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import untrained
from jax.sharding import AxisType

import vqgan_jax as vq
from vqgan_jax.evaluate import drawing
from vqgan_jax.train import sharding

LABELS, NUMBERS = np.array([0, 0, 0, 4, 4, 1, 2, 3, 3, 3, 4], np.int32), np.array([0, 1, 2, 0, 1, 7, 0, 0, 1, 2, 2])
SEED = 3


@pytest.fixture(scope="module")
def prior():
    return untrained.prior()


@pytest.fixture(scope="module")
def everything(prior):
    """All eleven, on eight devices: sixteen at a time."""
    return drawing.draw(prior, LABELS, NUMBERS, seed=SEED, batch_size=100, options={"top_k": 8})


def one_device():
    return jax.make_mesh((1, 1, 1), sharding.AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])


def test_a_draw_is_its_pixels_and_codes(prior, everything):
    pixels, codes = everything
    assert (pixels.shape, pixels.dtype, codes.shape) == ((11, 8, 8, 3), np.uint8, (11, 4, 4))
    decoded = vq.to_uint8(vq.decode(prior.tokenizer, codes))
    np.testing.assert_allclose(decoded.astype(int), pixels.astype(int), atol=1)  # other batches round otherwise
    assert len(np.unique(codes.reshape(11, -1), axis=0)) == 11


def test_a_draw_is_its_seed_class_and_number_by_hand(prior, everything):
    fold = lambda label, number: jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), label), number)
    keys = jnp.stack([fold(*which) for which in zip(LABELS, NUMBERS, strict=True)])
    np.testing.assert_array_equal(vq.sample_indices(prior, keys, labels=LABELS, top_k=8), everything[1])


def test_batches_of_eight_draw_the_same_on_eight_devices(prior, everything):
    done = []
    _, codes = drawing.draw(
        prior, LABELS, NUMBERS, seed=SEED, batch_size=3, options={"top_k": 8}, progress=done.append
    )  # rounded up to eight
    np.testing.assert_array_equal(codes, everything[1])
    assert done == [8, 11]


@pytest.mark.parametrize("batch_size", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_small_batches_draw_the_same_on_one_device(prior, everything, batch_size, monkeypatch):
    monkeypatch.setattr(sharding, "local_mesh", one_device)
    pixels, codes = drawing.draw(prior, LABELS, NUMBERS, seed=SEED, batch_size=batch_size, options={"top_k": 8})
    np.testing.assert_array_equal(codes, everything[1])
    np.testing.assert_allclose(pixels.astype(int), everything[0].astype(int), atol=1)


def test_completions_keep_their_own_prompts(prior):
    prompt = np.random.default_rng(0).integers(0, 16, (11, 4, 4), dtype=np.int32)
    _, codes = drawing.draw(
        prior, LABELS, NUMBERS, seed=SEED, batch_size=8, options={"prompt_length": 4}, rows={"prompt": prompt}
    )
    middle = np.pad(np.ones((2, 2), bool), 1)  # where the spiral begins
    np.testing.assert_array_equal(codes[:, middle], prompt[:, middle])
    assert (codes[:, ~middle] != prompt[:, ~middle]).any(axis=1).all()


def test_an_unconditional_prior_draws_by_number():
    prior = untrained.prior("unconditional", drop=0.0)
    draw = lambda numbers: drawing.draw(
        prior, np.zeros(len(numbers), np.int32), np.array(numbers), seed=0, batch_size=8, options={}
    )[1]
    np.testing.assert_array_equal(draw([5, 2]), draw([2, 9, 5])[[2, 0]])


# Rejection


def test_the_best_of_each_class_in_the_order_in_which_they_came():
    scores = np.array([0.1, 0.9, 0.5, 0.2, 0.8, 0.7])
    labels = np.array([0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(drawing.best(scores, labels, 2), [1, 2, 4, 5])
    np.testing.assert_array_equal(drawing.best(scores, labels, 1), [1, 4])
    np.testing.assert_array_equal(drawing.best(scores[::-1], labels[::-1], 1), [1, 4])
    np.testing.assert_array_equal(drawing.best(scores, labels, 3), range(6))
    np.testing.assert_array_equal(drawing.best(np.zeros(6), labels, 1), [0, 3])  # of equals the first


@pytest.mark.parametrize(
    "scores", [np.zeros(5), np.zeros((6, 1)), np.full(6, np.nan), np.array([0, 1, 2, 3, 4, np.inf])]
)
def test_scores_that_do_not_rank_are_refused(scores):
    with pytest.raises(ValueError, match="must return 6 finite numbers, one an image"):
        drawing.scored(lambda images, labels: scores, np.zeros((6, 2, 2, 3), np.uint8), np.zeros(6, np.int32))
