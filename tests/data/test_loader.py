import dataclasses
import itertools
import json
import threading

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl import logging
from PIL import Image

from vqgan_jax.data import Augmentation, ImageError, evaluation_batches, open_source, photos, training_batches
from vqgan_jax.data.folder import Folder
from vqgan_jax.data.loader import Examples

CROPS = Augmentation(image_size=8, resize=(8, 12), crop="random", flip=True, small="upscale")


class Noise:
    """Random images of several sizes; the label is the index. Those in `bad` cannot be decoded."""

    name, class_names = "noise", ()

    def __init__(self, length: int, bad=()):
        self.length, self.bad = length, frozenset(bad)

    def __len__(self):
        return self.length

    def __getitem__(self, index, /):
        if index in self.bad:
            raise ImageError(f"image{index}.png is damaged")
        rng = np.random.default_rng(index)
        shape = (*rng.integers(10, 20, size=2), 3)
        return {"image": rng.integers(0, 256, shape, dtype=np.uint8), "label": np.int32(index)}


class Rows:
    """Random tokens, as a cache has them."""

    name, class_names = "rows", ()

    def __init__(self, length: int):
        self.tokens = np.random.default_rng(0).integers(0, 9, (length, 5), dtype=np.int32)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index, /):
        return {"tokens": self.tokens[index]}


both = pytest.mark.parametrize("kind", [Noise, Rows])  # of images and of tokens


def take(batches, count):
    return list(itertools.islice(batches, count))


def on_hosts(make, count, **options):
    """Global batches of `count` processes: their rows in the order of the processes."""
    shares = [make(process_index=i, process_count=count, **options) for i in range(count)]
    for parts in zip(*shares, strict=True):
        yield {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def train(source, **changes):
    return training_batches(source, **{"batch_size": 8, "augmentation": CROPS, "seed": 3, "num_threads": 2, **changes})


def assert_equal(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_a_batch_is_uint8_images_and_int32_labels():
    batch = next(train(Noise(20)))
    assert (batch["image"].shape, batch["image"].dtype) == ((8, 8, 8, 3), np.uint8)
    assert (batch["label"].shape, batch["label"].dtype) == ((8,), np.int32)


def test_each_epoch_has_each_example_once_in_another_order_with_another_augmentation():
    batches = take(train(Noise(20), batch_size=4), 15)
    epochs = np.concatenate([batch["label"] for batch in batches]).reshape(3, 20)
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    images = np.concatenate([batch["image"] for batch in batches])
    assert len({images[index].tobytes() for index in np.flatnonzero(epochs.ravel() == 7)}) == 3


@both
def test_the_seed_alone_is_the_stream_and_not_the_number_of_threads(kind):
    assert_equal(take(train(kind(20), num_threads=1), 6), take(train(kind(20), num_threads=5), 6))
    one, other = next(train(kind(20))), next(train(kind(20), seed=4))
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_orbax_saves_and_restores_where_the_stream_is(tmp_path):
    running, fresh = train(Noise(20)), train(Noise(20))
    take(running, 3)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(running)))
        manager.wait_until_finished()
        manager.restore(3, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh)))
    assert_equal(take(running, 2), take(fresh, 2))


@both
def test_a_run_resumes_bit_exactly_on_any_number_of_hosts(kind):
    running = train(kind(21), process_index=1, process_count=2)
    take(running, 5)
    state = json.loads(json.dumps(running.get_state()))
    assert state == {"next_index": 5}
    expected = take(train(kind(21)), 8)
    for hosts in (1, 2, 4):
        shares = [train(kind(21), process_index=i, process_count=hosts) for i in range(hosts)]
        together = on_hosts(lambda process_index, process_count, shares=shares: shares[process_index], hosts)
        assert_equal(expected[:2], take(together, 2))
        for share in shares:
            share.set_state(state)
        assert_equal(expected[5:], take(together, 3))


@both
@pytest.mark.parametrize(("length", "count", "hosts"), [(8, None, 1), (8, 3, 2), (21, None, 2), (21, 13, 4)])
def test_evaluation_takes_each_example_once_in_order_and_pads(kind, length, count, hosts):
    source, options = kind(length), {"image_size": 8, "batch_size": 8, "num_examples": count}
    batches = list(on_hosts(lambda **share: evaluation_batches(source, **options, **share), hosts))
    count = count or length
    assert len(batches) == -(-count // 8)
    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    mask = whole.pop("mask")
    np.testing.assert_array_equal(mask, np.arange(8 * len(batches)) < count)
    names = {"label": np.arange(length)} if kind is Noise else {"tokens": source.tokens}
    for name, expected in names.items():
        np.testing.assert_array_equal(whole[name][mask], expected[:count])
    assert not any(values[~mask].any() for values in whole.values())


def test_evaluation_takes_no_chance():
    assert_equal(*(list(evaluation_batches(Noise(9), image_size=8, batch_size=4)) for _ in range(2)))


def test_a_bad_image_is_replaced_by_the_next_good_one_on_any_number_of_hosts():
    source = Noise(300, bad=[17, 18, 299])
    epoch = take(train(source, batch_size=60), 5)
    labels = np.sort(np.concatenate([batch["label"] for batch in epoch]))
    expected = np.sort([*range(17), 19, 19, *range(19, 299), 0])
    np.testing.assert_array_equal(labels, expected)
    together = on_hosts(lambda **share: train(source, batch_size=60, **share), 4)
    assert_equal(epoch, take(together, 5))


def test_replacing_a_bad_image_moves_nothing_else():
    good, bad = (take(train(Noise(300, bad=which), batch_size=60), 5) for which in ([], [17]))
    differing = [
        (one["label"][i], other["label"][i])
        for one, other in zip(good, bad, strict=True)
        for i in range(60)
        if not np.array_equal(one["image"][i], other["image"][i])
    ]
    assert differing == [(17, 18)]


def test_bad_images_are_each_logged_once(monkeypatch):
    warned = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: warned.append(text % values))
    batches = train(Noise(300, bad=[17, 40]), batch_size=60, num_threads=4)
    take(batches, 15)
    assert sorted(text.split(": ")[2] for text in warned) == ["image17.png is damaged", "image40.png is damaged"]


def test_in_evaluation_a_bad_image_is_masked():
    batches = evaluation_batches(Noise(150, bad=[5]), image_size=8, batch_size=50)
    mask = np.concatenate([batch["mask"] for batch in batches])
    np.testing.assert_array_equal(np.flatnonzero(~mask), [5])


@pytest.mark.parametrize("make", [train, lambda source: evaluation_batches(source, image_size=8, batch_size=8)])
def test_too_many_bad_images_stop_the_run_and_are_named(make):
    batches = make(Noise(100, bad=[0, 1]))
    with pytest.raises(ValueError, match=r"at most 1%(.|\n)*image0.png(.|\n)*image1.png"):
        take(batches, 100)


def test_counting_bad_images_is_thread_safe(monkeypatch):
    warned = []
    monkeypatch.setattr(logging, "warning", lambda *values: warned.append(values[2]))
    images = Examples(Noise(10_000, bad=range(0, 10_000, 101)), CROPS)
    read = lambda: [images.get(i) for i in range(0, 10_000, 101)]
    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(warned) == list(range(0, 10_000, 101))


def test_hostile_files_in_a_folder(tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: warned.append(text % values))
    for i in range(250):
        Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / f"{i:03}.png")
    (tmp_path / "007.png").write_bytes(b"no image")
    (tmp_path / "011.png").write_bytes((tmp_path / "011.png").read_bytes()[:40])
    batches = train(Folder(tmp_path, split="all"), batch_size=50)
    shades = {int(shade) for batch in take(batches, 5) for shade in batch["image"][:, 0, 0, 0]}
    assert shades == set(range(250)) - {7, 11}
    assert [name for name in ("007.png", "011.png") for text in warned if name in text] == ["007.png", "011.png"]
    assert len(warned) == 2


def test_a_refused_small_image_is_named(tmp_path):
    Image.new("RGB", (100, 7)).save(tmp_path / "a.png")
    refuse = dataclasses.replace(CROPS, small="refuse")
    batches = train(Folder(tmp_path, split="all"), batch_size=1, augmentation=refuse)
    with pytest.raises(ValueError, match=r"Number 0 of folder:.*7 x 100"):
        next(batches)


def test_the_held_out_fifth_of_a_photograph_never_reaches_a_training_batch(monkeypatch):
    crops = dataclasses.replace(CROPS, image_size=64, resize=(64, 96))
    open_batches = lambda: train(open_source("photos", split="train", image_size=64), augmentation=crops, batch_size=11)
    batch = next(open_batches())
    original = photos.photograph

    def painted(name):
        photograph = original(name).copy()
        photograph[:, int(0.8 * photograph.shape[1]) :] = (255, 0, 255)
        return photograph

    monkeypatch.setattr(photos, "photograph", painted)
    assert_equal([batch], take(open_batches(), 1))
    assert sorted(batch["label"]) == list(range(11))
    assert batch["image"].std() > 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 6, "process_count": 4}, "positive multiple of the 4 processes; got 6. Choose 8"),
        ({"batch_size": 0}, "positive multiple"),
        ({"process_index": 2, "process_count": 2}, "`process_index` must be"),
    ],
)
def test_impossible_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        train(Noise(20), **change)


@pytest.mark.parametrize("count", [0, 22])
def test_evaluation_needs_as_many_examples_as_asked(count):
    with pytest.raises(ValueError, match=r"`num_examples` must be in 1 \.\. 21 for noise"):
        evaluation_batches(Noise(21), image_size=8, batch_size=4, num_examples=count)
