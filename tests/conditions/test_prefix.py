"""What callers say becomes a prefix, or a clear error; and windows see the part of it that is theirs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import untrained

import vqgan_jax as vq
from vqgan_jax import api

KEY = jax.random.key(0)


def given(prior, **said):
    return api.prefix(prior, **{"labels": None, "condition": None, "count": None, "size": None} | said)


@pytest.fixture(scope="module")
def segmentation():
    return untrained.prior("segmentation", classes=9)


@pytest.fixture(scope="module")
def boxes():
    return untrained.prior("boxes", classes=8)


def maps(count=2, height=8, width=8):
    return np.random.default_rng(0).integers(0, 9, (count, height, width)).astype(np.int32)


def test_a_map_is_the_codes_of_its_own_tokenizer(segmentation):
    prefix = given(segmentation, condition=maps())
    assert prefix.grid == (4, 4)
    np.testing.assert_array_equal(prefix.tokens, vq.encode(segmentation.condition, maps()).reshape(2, 16))


def test_edges_may_be_codes_of_the_images_tokenizer():
    prior = untrained.prior("edges")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    tokens = given(prior, condition=pictures).tokens
    np.testing.assert_array_equal(tokens, vq.encode(prior.tokenizer, pictures).reshape(2, 16))


def test_a_large_map_says_the_size_and_windows_see_their_part(segmentation):
    prefix = given(segmentation, condition=maps(1, 12, 20))
    codes = vq.encode(segmentation.condition, maps(1, 12, 20))
    assert (prefix.grid, prefix.tokens.shape) == ((6, 10), (1, 6, 10))
    at = functools.partial(segmentation.module.condition.window_of, prefix.tokens)
    np.testing.assert_array_equal(at(jnp.asarray(2), jnp.asarray(5)), codes[:, 2:6, 5:9].reshape(1, 16))


def test_coordinates_are_those_of_the_size():
    prior = untrained.prior("coordinates")
    small, large = (given(prior, count=2, size=size) for size in (None, (8, 16)))
    assert (small.tokens.shape, large.tokens.shape) == ((2, 16), (2, 4, 8))
    expected = np.arange(8 * 16).reshape(4, 2, 8, 2).mean((1, 3)) / (8 * 16)
    np.testing.assert_array_equal(large.tokens[1], np.rint(expected * 64))
    assert int(large.tokens.max()) < 64


def test_layouts_of_large_images_have_tokens_for_every_window(boxes):
    objects = np.array([[0.0, 0.0, 0.4, 0.9], [0.7, 0.2, 0.3, 0.3]]), np.array([3, 5]), np.zeros(2, int)
    windows = boxes.module.condition.encode_windows(*objects, grid=(4, 6), seed=0)[None]
    prefix = given(boxes, condition=windows, size=(8, 12))
    at = functools.partial(boxes.module.condition.window_of, prefix.tokens)
    np.testing.assert_array_equal(at(jnp.asarray(0), jnp.asarray(2)), windows[:, 0, 2])
    assert vq.sample_indices(boxes, KEY, condition=windows, size=(8, 12)).shape == (1, 4, 6)


@pytest.mark.slow
def test_samples_of_any_size_are_decoded(segmentation):
    images = vq.sample(segmentation, KEY, condition=maps(1, 8, 12), stride=2)
    assert images.shape == (1, 8, 12, 3)


def test_a_shuffled_condition_has_another_likelihood(segmentation):
    codes = np.random.default_rng(1).integers(0, 16, (2, 4, 4)).astype(np.int32)
    own = vq.log_likelihood(segmentation, codes, condition=maps())
    other = vq.log_likelihood(segmentation, codes, condition=maps()[::-1].copy())
    assert np.all(np.abs(own - other) > 1e-3)
    with pytest.raises(ValueError, match=r"training images, 8 pixels a side; got one of an image of \(4, 6\) codes"):
        vq.log_likelihood(segmentation, codes, condition=maps(2, 8, 12))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, "condition is 'segmentation': it needs `condition`, the segmentation of each image; none were given"),
        ({"labels": np.array([1])}, "`labels` are for a class-conditional prior; the condition of this one is 'segm"),
        ({"condition": maps() + 1}, r"`condition` must be in \[0, 9\); got values in \[1, 9\]"),
        ({"condition": maps()[..., None]}, r"must be the segmentation of each image, integers of shape \(b, H, W\)"),
        ({"condition": maps() / 9}, r"integers of shape \(b, H, W\).* got float32"),
        ({"condition": maps(2, 8, 9)}, "multiples of 2, its tokenizer's downsample factor"),
        ({"condition": maps(2, 6, 8)}, r"`size` must be at least \(8, 8\), the window that the prior was trained on"),
        ({"condition": maps(), "size": (8, 10)}, r"`size` must be that of the condition, \(8, 8\); got \(8, 10\)"),
        ({"condition": maps(), "count": 3}, "`condition` must be as many as the images, 3; got 2"),
    ],
)
def test_what_does_not_fit_a_prior_over_maps_is_refused(segmentation, said, message):
    with pytest.raises(ValueError, match=message):
        given(segmentation, **said)


def test_what_does_not_fit_other_priors_is_refused(boxes):
    plain = untrained.prior("unconditional", drop=0.0, transformer__order="raster")
    layout = np.zeros((1, 20), np.int32)
    for prior, said, message in (
        (plain, {"count": 1, "condition": maps()}, "`condition` is for a prior over maps or objects"),
        (plain, {"count": 1, "size": (9, 8)}, r"multiples of 2 pixels; got \(9, 8\). Ask for \(10, 8\)"),
        (
            boxes,
            {"condition": layout[:, 1:]},
            r"shape \('b', 20\), as .*encode_objects` gives them; got int32 of shape",
        ),
        (boxes, {"condition": layout, "size": (8, 10)}, r"shape \('b', 1, 2, 20\), as .*encode_windows`"),
        (boxes, {"condition": layout + 65}, r"`condition` must be in \[0, 65\)"),
    ):
        with pytest.raises(ValueError, match=message):
            given(prior, **said)


def test_a_large_image_needs_raster_order_and_a_stride_within_the_window():
    spiral, raster = untrained.prior(), untrained.prior("raster")
    with pytest.raises(ValueError, match="a sliding window needs a prior whose order is 'raster'"):
        vq.sample_indices(spiral, KEY, labels=np.array([1]), size=(8, 12))
    with pytest.raises(ValueError, match=r"`stride` must be in 1 \.\. 2"):
        vq.sample_indices(raster, KEY, labels=np.array([1]), size=(8, 12), stride=3)


def test_a_mask_keeps_what_is_known_and_draws_the_rest():
    prior = untrained.prior("raster")
    prompt = np.random.default_rng(0).integers(0, 16, (3, 4, 6)).astype(np.int32)
    known = np.ones((3, 4, 6), bool)
    known[:, 1:3, 2:5] = False
    labels = np.array([0, 1, 2])
    draw = lambda seed: vq.sample_indices(
        prior, jax.random.key(seed), labels=labels, size=(8, 12), prompt=prompt, known=known
    )
    one, other = draw(0), draw(1)
    np.testing.assert_array_equal(one[known], prompt[known])
    assert np.any(one != other), "variants of a region differ by key"
