"""Perturbed codes: which near codes they become, how many change, and the distance of the decoded images."""

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
from vqgan_jax.nn.codebooks import nearest_others, neighbours
from vqgan_jax.nn.pixels import to_uint8

SEED = 5


def test_an_index_becomes_any_of_its_near_codes_as_often_as_the_share_says():
    """Of 410 codes on a line each has ten near ones; those of an inner code are five on either side."""
    codebook = jnp.arange(410.0)[:, None]
    indices = jax.random.randint(jax.random.key(0), (64, 8, 8), 5, 405)
    keys = jax.random.split(jax.random.key(1), 64)
    out = np.asarray(perturbed.perturb(indices, codebook, keys, 0.25))
    distance = out - np.asarray(indices)
    assert (distance != 0).mean() == pytest.approx(0.25, abs=0.02)
    moved = distance[distance != 0]
    np.testing.assert_allclose(np.bincount(moved + 5)[[*range(5), *range(6, 11)]] / len(moved), 0.1, atol=0.03)
    np.testing.assert_array_equal(perturbed.perturb(indices[7:9], codebook, keys[7:9], 0.25), out[7:9])


@pytest.mark.parametrize(("size", "count"), [(2, 1), (16, 1), (512, 12), (1024, 25)])
def test_a_larger_codebook_has_more_near_codes(size, count):
    assert perturbed.near_codes(size) == count


def test_a_single_code_has_none():
    with pytest.raises(ValueError, match="needs at least 2 codes; the tokenizer has 1"):
        perturbed.near_codes(1)


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


@pytest.mark.slow
def test_the_distance_is_that_of_perturbed_codes_one_by_one():
    tokenizer, images = untrained.tokenizer(), sets.blobs(24, size=8)
    lookup = lambda module: module.quantizer.lookup(jnp.arange(16))
    codebook = tokenizer.module.apply({"params": tokenizer.params}, method=lookup)
    moments = {"real": empty(12), "drawn": empty(12)}
    for number, image in enumerate(images):
        grid = np.array(api.encode(tokenizer, image[None])[0])
        coin, choice = jax.random.split(jax.random.fold_in(jax.random.key(SEED), number))
        change = np.asarray(jax.random.bernoulli(coin, 0.5, grid.shape))
        grid[change] = np.asarray(neighbours(jnp.asarray(grid), nearest_others(codebook, 1), choice))[change]
        drawn = np.asarray(to_uint8(api.decode(tokenizer, grid[None])))
        moments["real"] = add(moments["real"], plain(image[None])["vgg"])
        moments["drawn"] = add(moments["drawn"], plain(drawn)["vgg"])
    expected = frechet_distance(moments["real"], moments["drawn"])
    for sizes in ((8, 8, 8), (8, 8, 5, 3)):
        found = measured(tokenizer, images, sizes)
        assert distance_of(found, "pfd_vgg") == pytest.approx(expected, rel=1e-3)
        assert distance_of(found, "fd_vgg") != pytest.approx(expected, rel=1e-2)


@pytest.mark.slow
def test_where_neighbours_are_twins_nothing_is_perturbed():
    """A codebook of pairs: the only neighbour of a code decodes to the same pixels."""
    tokenizer = untrained.tokenizer()
    codebook = jnp.repeat(tokenizer.params["quantizer"]["codebook"][::2], 2, axis=0)
    tokenizer = dataclasses.replace(
        tokenizer, params=tokenizer.params | {"quantizer": tokenizer.params["quantizer"] | {"codebook": codebook}}
    )
    near = neighbours(jnp.arange(16), nearest_others(codebook, 1), jax.random.key(0))
    np.testing.assert_array_equal(near, np.arange(16) ^ 1)
    found = measured(tokenizer, sets.blobs(16, size=8), (8, 8))
    assert distance_of(found, "pfd_vgg") == pytest.approx(distance_of(found, "fd_vgg"), rel=1e-3)
