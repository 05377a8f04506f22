"""What the discriminator is shown: each augmentation by hand, drawn for each image, with a gradient to the image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax.nn.augment import AUGMENTATIONS, augment, color, cutout, translation


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_image_is_changed_in_a_way_of_its_own(getkey, name):
    images = jnp.broadcast_to(jax.random.uniform(getkey(), (1, 16, 24, 3), minval=-1.0), (8, 16, 24, 3))
    out, key = jax.jit(augment, static_argnums=1), getkey()
    changed = out(images, (name,), key)
    assert changed.shape == images.shape
    assert len(np.unique(np.asarray(changed).reshape(8, -1), axis=0)) > 4
    np.testing.assert_array_equal(out(images, (name,), key), changed)
    assert np.any(out(images, (name,), getkey()) != changed)


def test_none_changes_nothing_and_several_follow_each_other(getkey):
    images, key = jax.random.uniform(getkey(), (2, 8, 8, 3)), getkey()
    np.testing.assert_array_equal(augment(images, (), key), images)
    one = translation(color(images, jax.random.fold_in(key, 0)), jax.random.fold_in(key, 1))
    np.testing.assert_array_equal(augment(images, ("color", "translation"), key), one)


def test_color_is_light_then_saturation_then_contrast(getkey):
    images, key = jax.random.uniform(getkey(), (5, 8, 8, 3), minval=-1.0), getkey()
    light, saturation, contrast = np.asarray(jax.random.uniform(key, (3, 5, 1, 1, 1)), np.float64)
    x = np.asarray(images, np.float64) + light - 0.5
    mean = x.mean(3, keepdims=True)
    x = mean + (x - mean) * 2 * saturation
    mean = x.mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(color(images, key), mean + (x - mean) * (0.5 + contrast), atol=1e-5)


def test_translation_moves_by_up_to_an_eighth_and_brings_zeros(getkey):
    image = np.arange(1.0, 1 + 32 * 16).reshape(1, 32, 16, 1)
    moved = np.asarray(translation(jnp.tile(jnp.asarray(image, jnp.float32), (300, 1, 1, 1)), getkey()))
    padded, found = np.pad(image[0, ..., 0], ((4, 4), (2, 2))), set()
    for one in moved[..., 0]:
        where = [(i, j) for i in range(9) for j in range(5) if (padded[i : i + 32, j : j + 16] == one).all()]
        assert len(where) == 1
        found.add(where[0])
    assert len(found) == 45, "every shift comes"


def test_cutout_hides_half_of_each_side_about_a_middle_anywhere(getkey):
    hidden = np.asarray(cutout(jnp.ones((500, 8, 12, 2)), getkey())) == 0
    rows, columns = hidden.any((2, 3)), hidden.any((1, 3))
    np.testing.assert_array_equal(hidden, (rows[:, :, None] & columns[:, None])[..., None].repeat(2, -1))
    assert (rows.sum(1).max(), columns.sum(1).max()) == (4, 6)
    assert rows.sum(1).min() == 2, "half of it may lie outside"
    assert rows.any(0).all()
    assert columns.any(0).all()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_gradient_is_that_of_the_change(getkey, name):
    images, key, direction = (
        jax.random.uniform(getkey(), (2, 8, 8, 3)),
        getkey(),
        jax.random.normal(getkey(), (2, 8, 8, 3)),
    )
    total = lambda x: jnp.sum(jnp.sin(AUGMENTATIONS[name](x, key)))
    slope = (total(images + 1e-2 * direction) - total(images - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose(jnp.sum(jax.grad(total)(images) * direction), slope, rtol=1e-2)
