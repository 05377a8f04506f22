import jax.numpy as jnp
import numpy as np

from vqgan_jax.nn.pixels import to_float, to_uint8

LEVELS = jnp.arange(256, dtype=jnp.uint8)


def test_all_levels_survive_the_round_trip():
    np.testing.assert_array_equal(to_uint8(to_float(LEVELS)), LEVELS)


def test_black_is_minus_one_and_white_is_one():
    floats = to_float(LEVELS)
    assert (floats[0], floats[255]) == (-1.0, 1.0)
    np.testing.assert_allclose(np.diff(floats), 2 / 255, rtol=1e-4)


def test_what_lies_outside_is_clipped():
    outside = jnp.array([-1e9, -1.1, -1.0001, 1.0001, 1.1, 1e9, -jnp.inf, jnp.inf])
    np.testing.assert_array_equal(to_uint8(outside), [0, 0, 0, 255, 255, 255, 0, 255])


def test_rounds_to_the_nearest_level_and_never_truncates():
    np.testing.assert_array_equal(to_uint8(to_float(LEVELS)[1:] - 0.4 / 127.5), LEVELS[1:])
    np.testing.assert_array_equal(to_uint8(to_float(LEVELS)[:-1] + 0.4 / 127.5), LEVELS[:-1])
    np.testing.assert_array_equal(to_uint8(to_float(LEVELS)[:-1] + 0.6 / 127.5), LEVELS[1:])


def test_bfloat16_is_widened_before_it_is_rounded():
    narrow = jnp.linspace(-1, 1, 777).astype(jnp.bfloat16)
    expected = np.rint((np.asarray(narrow, np.float64) + 1) * 127.5)
    off = np.asarray(to_uint8(narrow), np.float64) - expected
    ties = np.abs((np.asarray(narrow, np.float64) + 1) * 127.5 % 1 - 0.5) < 1e-4
    assert not off[~ties].any()
