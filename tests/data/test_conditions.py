"""Prefixes: their tokens, their sizes, and what people see of them."""

import jax.numpy as jnp
import numpy as np

from vqgan_jax.data.conditions import ClassLabel, Condition, Unconditional


def test_every_condition_is_one():
    assert all(isinstance(condition, Condition) for condition in (ClassLabel(3), Unconditional()))


def test_a_class_is_its_number_and_the_null_class_one_more():
    tokens = ClassLabel(5).encode({}, {"label": jnp.array([4, 0])})
    np.testing.assert_array_equal(tokens, [[4], [0]])
    assert (ClassLabel(5).vocab_size, ClassLabel(5, droppable=True).vocab_size) == (5, 6)


def test_no_condition_is_one_token_for_each_image():
    np.testing.assert_array_equal(Unconditional().encode({}, {"image": jnp.zeros((3, 2, 2, 3))}), [[0]] * 3)
    assert Unconditional().vocab_size == 1


def test_pictures_show_names_where_there_are_some():
    draw = ClassLabel(2).picture
    tokens = np.array([[0], [1], [0]])
    named, numbered = draw({}, tokens, 32, ("cat", "a dog")), draw({}, tokens, 32)
    assert named.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(named[0], named[2])
    assert np.any(named[0] != named[1])
    assert np.any(named[0] != numbered[0])
    assert named.min() < 100, "dark words"
    assert np.all(Unconditional().picture({}, tokens, 8) == 128)
