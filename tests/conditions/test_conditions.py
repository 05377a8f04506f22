"""Prefixes: their tokens, their sizes, and what people see of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import untrained

import vqgan_jax as vq
from vqgan_jax import pictures
from vqgan_jax.conditions import CONDITIONS, Condition, Frozen
from vqgan_jax.conditions.codes import Segmentation, resized
from vqgan_jax.conditions.coordinates import Coordinates
from vqgan_jax.conditions.label import ClassLabel, Unconditional
from vqgan_jax.conditions.objects import Boxes, Centers


def test_every_condition_is_one_and_knows_its_name():
    for kind, cls in CONDITIONS.items():
        assert issubclass(cls, Condition)
        assert (cls.kind, hash(cls()), cls().vocab_size > 0) == (kind, hash(cls()), True)


def test_a_class_is_its_number_and_the_null_class_one_more():
    condition = ClassLabel(num_classes=5, drop=0.0)
    tokens = condition.encode({}, {"label": jnp.array([4, 0])})
    np.testing.assert_array_equal(tokens, [[4], [0]])
    assert (condition.vocab_size, ClassLabel(num_classes=5, drop=0.1).vocab_size) == (5, 6)


def test_no_condition_is_one_token_for_each_image():
    np.testing.assert_array_equal(Unconditional().encode({}, {"image": jnp.zeros((3, 2, 2, 3))}), [[0]] * 3)
    assert Unconditional().vocab_size == 1


def test_pictures_show_names_where_there_are_some():
    draw = ClassLabel(num_classes=2).picture
    tokens = np.array([[0], [1], [0]])
    named, numbered = draw({}, tokens, 32, ("cat", "a dog")), draw({}, tokens, 32)
    assert named.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(named[0], named[2])
    assert np.any(named[0] != named[1])
    assert np.any(named[0] != numbered[0])
    assert named.min() < 100, "dark words"
    assert np.all(Unconditional().picture({}, tokens, 8) == 128)


def test_maps_are_brought_to_a_size_by_upstreams_rule():
    """Of 8 rows to 4: 0, 2, 4, 6, not the centres' 1, 3, 5, 7; to 16 each twice."""
    rows = np.arange(8)[None, :, None] * np.ones((1, 8, 8), int)
    np.testing.assert_array_equal(resized(jnp.asarray(rows), 4)[0, :, 0], [0, 2, 4, 6])
    np.testing.assert_array_equal(resized(rows, 16)[0, :, 0], np.repeat(np.arange(8), 2))


def test_coordinates_round_half_to_even_and_stay_below_the_number_of_levels():
    condition = Coordinates(num_tokens=4, window=(1, 4), downsample_factor=2)
    means = jnp.array([0.125, 0.375, 0.99, 0.5])  # times 4: 0.5, 1.5, 3.96, 2
    values = jnp.broadcast_to(jnp.repeat(means, 2)[None, None, :, None], (1, 2, 8, 1))
    np.testing.assert_array_equal(condition.encode({}, {"coordinates": values}), [[0, 2, 3, 2]])
    assert (condition.length, condition.vocab_size) == (4, 5)
    shown = condition.picture({}, np.array([[0, 1, 2, 4]]), 8)  # the last one is the null token
    assert (shown.shape, int(shown[0, 0, 0, 0]), int(shown[0, 0, -1, 0])) == ((1, 8, 8, 3), 0, 255)


def test_a_dropped_layout_shows_nothing_and_another_its_outlines():
    condition = Boxes(num_classes=3, num_tokens=65, max_objects=2)
    tokens = condition.encode_objects(np.array([[0.25, 0.25, 0.5, 0.5]]), np.array([1]), np.array([0]), rng=None)
    null = np.full_like(tokens, condition.vocab_size - 1)
    shown = condition.picture({}, np.stack([tokens, null]), 32, ("a", "b", "c"))
    assert len(np.unique(shown[1].reshape(-1, 3), axis=0)) == 1
    assert len(np.unique(shown[0].reshape(-1, 3), axis=0)) > 1


def test_a_map_is_shown_as_its_tokenizer_decodes_it():
    tokenizer = untrained.tokenizer(channels=9)
    maps = np.random.default_rng(0).integers(0, 9, (2, 8, 8)).astype(np.int32)
    own = Frozen(workdir="maps", codebook_size=16, downsample_factor=2)
    condition = Segmentation(num_classes=9, tokenizer=own)
    condition = condition.bind(window=(4, 4), images=Frozen(downsample_factor=2), module=tokenizer.module)
    frozen = {"condition": tokenizer.params}
    tokens = np.asarray(jax.jit(condition.encode)(frozen, {"segmentation": jnp.asarray(maps)}))
    labels = np.argmax(vq.decode(tokenizer, tokens.reshape(2, 4, 4)), axis=-1)
    np.testing.assert_array_equal(condition.picture(frozen, tokens, 8), pictures.colors(np.asarray(labels)))


def test_a_tokenizer_of_other_maps_is_refused():
    condition, module = Segmentation(num_classes=8, tokenizer=Frozen(workdir="maps")), untrained.tokenizer().module
    with pytest.raises(ValueError, match="must have 8 channels; maps has 3"):
        condition.bind(window=(4, 4), images=Frozen(), module=module)


def test_tokens_of_boxes_stand_where_they_say():
    """On 9 x 9 points and a grid of 4 x 4 codes, whose centres are at (0, 0) to (3, 3): a point is half a code."""
    objects = Boxes(num_classes=3, num_tokens=82, max_objects=2, crop_points=False, window=(4, 4))
    upper_left, lower_right, none = 9 * 2 + 4, 9 * 6 + 8, 81
    tokens = jnp.array([[1, upper_left, lower_right, none, none, none], [none + 1] * 6])
    places = jax.jit(objects.places)(tokens)
    np.testing.assert_allclose(places[0, :3], [[1.5, 2.5], [0.5, 1.5], [2.5, 3.5]], atol=1e-6)
    np.testing.assert_array_equal(places[0, 3:], 0.0)
    np.testing.assert_array_equal(places[1], 0.0)


def test_tokens_of_centres_stand_where_they_say_in_the_crop():
    """The right lower quarter of the image is looked at: its grid is twice as fine, and begins in the middle."""
    objects = Centers(num_classes=3, num_tokens=82, max_objects=1, window=(4, 4))
    tokens = jnp.array([[2, 9 * 6 + 5, 9 * 4 + 4, 9 * 8 + 8]])
    places = jax.jit(objects.places)(tokens)
    np.testing.assert_allclose(places[0], [[1.5, 0.5], [1.5, 0.5], [-0.5, -0.5], [3.5, 3.5]], atol=1e-6)
