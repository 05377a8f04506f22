"""Every image once, whatever the batches, and no padding (E1, E2, E15, E24, E25)."""

import functools

import jax
import numpy as np
import pytest
import sets
from etils import epath

from vqgan_jax import data
from vqgan_jax.evaluate import distances, of_images, protocol
from vqgan_jax.evaluate.features import Networks, open_networks
from vqgan_jax.evaluate.of_images import Archive, Collector, Measured, numbered


@jax.jit
def plain(images):
    """Features that are sums of levels: exact in any order."""
    flat = images.astype("float32").reshape(len(images), -1)
    return {"vgg": jax.numpy.stack([flat.sum(1), flat[:, 0], flat[:, 5]], axis=1)}


def summary(images, *, batch_size: int, source_batch: int = 64, process_count: int = 1):
    """As `collect` does it; of several processes, the moments of all in one."""
    collector = Collector(plain, keep=frozenset({"vgg"}))
    for process in range(process_count):
        share = {"process_index": process, "process_count": process_count}
        batches = data.evaluation_batches(
            Archive(images, "x"), image_size=images.shape[1], batch_size=source_batch, num_threads=1, **share
        )
        for numbers, batch in numbered(batches, **share):
            collector.add(numbers, batch["image"], batch_size=batch_size)
    return collector.summary("x", "none")


@functools.cache
def thousand():
    return sets.blobs(1003, size=8)


def test_1003_images_are_1003_images_each_once_and_unflipped():
    found, images = summary(thousand(), batch_size=64), thousand()
    assert found.count == found.moments["vgg"].count == 1003
    np.testing.assert_array_equal(found.rows["vgg"], plain(images)["vgg"])
    np.testing.assert_allclose(
        found.moments["vgg"].mean, np.asarray(plain(images)["vgg"], np.float64).mean(0), rtol=1e-12
    )


@pytest.mark.parametrize(("batch_size", "source_batch", "processes"), [(8, 64, 1), (64, 128, 2), (16, 96, 3)])
def test_batches_and_shares_change_nothing(batch_size, source_batch, processes):
    whole = summary(thousand(), batch_size=64)
    parts = summary(thousand(), batch_size=batch_size, source_batch=source_batch, process_count=processes)
    assert (parts.count, parts.fingerprint) == (whole.count, whole.fingerprint)
    np.testing.assert_array_equal(parts.rows["vgg"], whole.rows["vgg"])
    for ours, theirs in zip(parts.moments["vgg"], whole.moments["vgg"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_seven_images_on_eight_devices_are_seven():
    assert jax.device_count() == 8
    images = sets.blobs(7, size=8)
    found = summary(images, batch_size=8, source_batch=8)
    assert found.count == 7
    expected = np.asarray(plain(images)["vgg"], np.float64)
    np.testing.assert_allclose(found.moments["vgg"].mean, expected.mean(0), rtol=1e-12)
    centred = expected - expected.mean(0)[None]
    np.testing.assert_allclose(found.moments["vgg"].scatter, centred.T @ centred, rtol=1e-10)


def test_an_image_that_comes_twice_is_an_error():
    collector = Collector(plain)
    for _ in range(2):
        collector.add(np.arange(8), sets.blobs(8, size=8), batch_size=8)
    with pytest.raises(ValueError, match="every image must count once; 16 came with 8 numbers"):
        collector.summary("x", "none")


def test_the_fingerprint_is_of_the_pixels_in_any_order():
    images = sets.blobs(20, size=8)
    shuffled = np.random.default_rng(0).permutation(images)
    changed = images.copy()
    changed[3, 2, 1, 0] ^= 1
    one, other, third = (summary(x, batch_size=8).fingerprint for x in (images, shuffled, changed))
    assert one == other != third


@pytest.fixture(scope="module")
def networks():
    return open_networks(protocol.choose(["fd_vgg"], "sets").values(), None)


def test_files_and_arrays_are_the_same_images(tmp_path, networks):
    images = sets.blobs(24)
    look = lambda path: of_images.collect(of_images.open_images(str(path)), sets.request(), networks, size=16, name="")
    archive = look(sets.archive(tmp_path / "x.npz", images))
    files, jpegs = look(sets.write(tmp_path / "png", images)), look(sets.write(tmp_path / "jpeg", images, "jpg"))
    assert files.fingerprint == archive.fingerprint != jpegs.fingerprint
    np.testing.assert_array_equal(files.moments["vgg"].scatter, archive.moments["vgg"].scatter)
    assert files.resize == "none, all are 16x16"


def test_a_resize_is_told(tmp_path):
    """A set of images of 24 brought to 16 is not a set of 16 (E23)."""
    source = Measured(Archive(sets.blobs(4, size=24), "x"))
    list(data.evaluation_batches(source, image_size=16, batch_size=4, num_threads=1))
    assert source.resize(16) == "from 24x24: short side to 16 by antialiased bicubic (Pillow), centre crop 16x16"


# Files of statistics

DRAWS = np.random.default_rng(0)
ROWS = (DRAWS.normal(size=(50, 24)) @ DRAWS.normal(size=(24, 24))).astype(np.float32)


def moments_of(rows):
    return distances.add(distances.empty(rows.shape[1]), rows)


def test_files_give_back_every_bit(tmp_path):
    path = tmp_path / "reference.npz"
    written = moments_of(ROWS)
    of_images.save_moments(epath.Path(path), written)
    read = of_images.load_moments(path)
    assert read.count == 50
    np.testing.assert_array_equal(read.mean, written.mean)
    np.testing.assert_array_equal(read.scatter, written.scatter)
    with pytest.raises(ValueError, match=r"that of .*, 50; got 49"):
        of_images.load_moments(path, count=49)


def test_adms_references_are_read(tmp_path):
    path, x, images = tmp_path / "adm.npz", ROWS, np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    np.savez(path, mu=x.mean(0), sigma=np.cov(x, rowvar=False), mu_s=0, sigma_s=0, arr_0=images)
    read, expected = of_images.load_moments(path, count=50), moments_of(x)
    assert read.count == expected.count
    np.testing.assert_allclose(read.mean, expected.mean, rtol=1e-5)
    np.testing.assert_allclose(read.scatter, expected.scatter, rtol=1e-5, atol=1e-5 * np.abs(expected.scatter).max())
    np.testing.assert_array_equal(of_images.load_images(path), images)
    with pytest.raises(ValueError, match="`count` must be given"):
        of_images.load_moments(path)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, features=ROWS[:3])
    with pytest.raises(ValueError, match="it has \\['features'\\]"):
        of_images.load_moments(path)
    with pytest.raises(ValueError, match="it has \\['features'\\]"):
        of_images.load_images(path)
    np.savez(path, arr_0=np.zeros((2, 4, 4, 3)), mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="float64"):
        of_images.load_images(path)
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2, 2\)"):
        of_images.load_moments(path, count=3)
    np.savez(path, arr_0=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        of_images.load_images(path)


def test_an_image_that_cannot_be_read_moves_no_other_ones_label():
    """Number 20 of 200 in order of four classes is broken: labels and pictures of a gallery belong together."""

    class Broken(Archive):
        def __getitem__(self, index):
            if int(index) == 20:
                raise data.ImageError("broken")
            return {"image": self.images[int(index)], "label": np.int32(int(index) // 50)}

    images = np.full((200, 16, 16, 3), np.arange(200)[:, None, None, None], np.uint8)
    networks = Networks(plain, None, {}, frozenset())
    real = of_images.collect(Broken(images, "x"), sets.request(), networks, size=16, name="")
    shown, labels = of_images.gallery(Broken(images, "x"), real, 16)
    assert (real.count, len(labels)) == (199, 64)
    np.testing.assert_array_equal(shown[:, 0, 0, 0] // 50, labels)
