"""Perturbed codes: whose neighbours they are, how many change, and the distance of what they decode to."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sets
import untrained

from vqgan_jax import api
from vqgan_jax.evaluate import of_tokenizer, perturbed, protocol
from vqgan_jax.evaluate.distances import add, empty, frechet_distance
from vqgan_jax.evaluate.of_images import Collector
from vqgan_jax.nn.pixels import to_uint8

SEED = 5


def test_neighbours_are_the_nearest_others_by_brute_force():
    codes = np.random.default_rng(0).normal(size=(40, 3))
    expected = []
    for i, code in enumerate(codes):
        others = [j for j in range(40) if j != i]
        expected.append(sorted(others, key=lambda j: np.sum(np.square(codes[j] - code)))[:5])
    np.testing.assert_array_equal(perturbed.neighbours(codes, 5), expected)


def test_of_equal_codes_each_has_the_others():
    codes = np.zeros((4, 2))
    for row, found in enumerate(perturbed.neighbours(codes, 2)):
        assert len(set(found)) == 2
        assert row not in found


def test_an_index_becomes_any_of_its_neighbours_as_often_as_asked():
    table = jnp.arange(16, dtype=jnp.int32)[:, None] * 0 + jnp.array([[20, 21, 22, 23]]) + 4 * jnp.arange(16)[:, None]
    indices = jax.random.randint(jax.random.key(0), (64, 8, 8), 0, 16)
    keys = jax.random.split(jax.random.key(1), 64)
    found = np.asarray(perturbed.perturb(indices, table, keys, 0.25))
    moved = found >= 20
    assert moved.mean() == pytest.approx(0.25, abs=0.02)
    np.testing.assert_array_equal(found[~moved], np.asarray(indices)[~moved])
    np.testing.assert_array_equal((found[moved] - 20) // 4, np.asarray(indices)[moved])
    np.testing.assert_allclose(np.bincount((found[moved] - 20) % 4) / moved.sum(), 0.25, atol=0.05)
    alone = perturbed.perturb(indices[7:9], table, keys[7:9], 0.25)
    np.testing.assert_array_equal(alone, found[7:9])


@pytest.mark.parametrize(("size", "count"), [(16, 1), (512, 12), (1024, 25)])
def test_a_larger_codebook_has_more_near_neighbours(size, count):
    assert perturbed.table_of(untrained.tokenizer(size)).shape == (size, count)


def plain(images):
    """Features that need no network: the mean colour of each quarter."""
    quarters = np.asarray(images, np.float32).reshape(len(images), 2, 4, 2, 4, 3).mean((2, 4))
    return {"vgg": quarters.reshape(len(images), -1)}


def measured(tokenizer, images: np.ndarray, sizes: tuple[int, ...]) -> of_tokenizer.Reconstructed:
    """In batches of the given sizes."""
    rows = np.split(np.arange(len(images)), np.cumsum(sizes)[:-1])
    reconstruct = lambda shown: tuple(np.asarray(each) for each in of_tokenizer.reconstructed(tokenizer, shown))
    return of_tokenizer.measure(
        [(row, {"image": images[row]}) for row in rows],
        reconstruct,
        lambda shown, recons: {"lpips_vgg": np.zeros(len(shown))},
        of_tokenizer.perturbing(tokenizer, 8, SEED),
        codebook_size=tokenizer.codebook_size,
        collectors=(Collector(plain), Collector(plain), Collector(plain)),
        batch_size=8,
    )


def distance_of(found: of_tokenizer.Reconstructed, name: str) -> float:
    """As `vqgan evaluate` computes it."""
    samples = found.perturbed if protocol.METRICS[name].perturbed else found.recons
    return protocol.compare({name: protocol.METRICS[name]}, found.originals, samples, seed=0)[name]


def test_the_distance_is_that_of_perturbed_codes_one_by_one():
    tokenizer, images = untrained.tokenizer(), sets.blobs(24, size=8)
    table = perturbed.table_of(tokenizer)
    moments = {"real": empty(12), "drawn": empty(12)}
    for number, image in enumerate(images):
        grid = np.array(api.encode(tokenizer, image[None])[0])
        coin, choice = jax.random.split(jax.random.fold_in(jax.random.key(SEED), number))
        change = np.asarray(jax.random.bernoulli(coin, 0.5, grid.shape))
        column = np.asarray(jax.random.randint(choice, grid.shape, 0, table.shape[1]))
        grid[change] = table[grid[change], column[change]]
        drawn = np.asarray(to_uint8(api.decode(tokenizer, grid[None])))
        moments["real"] = add(moments["real"], plain(image[None])["vgg"])
        moments["drawn"] = add(moments["drawn"], plain(drawn)["vgg"])
    expected = frechet_distance(moments["real"], moments["drawn"])
    for sizes in ((8, 8, 8), (8, 8, 5, 3)):
        found = measured(tokenizer, images, sizes)
        assert distance_of(found, "pfd_vgg") == pytest.approx(expected, rel=1e-3)
        assert distance_of(found, "fd_vgg") != pytest.approx(expected, rel=1e-2)


def test_where_neighbours_are_twins_nothing_is_perturbed():
    """A codebook of pairs: the only neighbour of a code decodes to the same pixels."""
    tokenizer = untrained.tokenizer()
    codebook = jnp.repeat(tokenizer.params["quantizer"]["codebook"][::2], 2, axis=0)
    tokenizer = dataclasses.replace(
        tokenizer, params=tokenizer.params | {"quantizer": tokenizer.params["quantizer"] | {"codebook": codebook}}
    )
    np.testing.assert_array_equal(perturbed.table_of(tokenizer)[:, 0], np.arange(16) ^ 1)
    found = measured(tokenizer, sets.blobs(16, size=8), (8, 8))
    assert distance_of(found, "pfd_vgg") == pytest.approx(distance_of(found, "fd_vgg"), rel=1e-3)
