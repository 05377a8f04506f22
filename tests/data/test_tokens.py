import dataclasses
import itertools
import json
import resource

import numpy as np
import pytest

from vqgan_jax.data import (
    Augmentation,
    ImageError,
    evaluation_batches,
    open_tokens,
    spread,
    training_batches,
)
from vqgan_jax.data.tokens import CachePlan, dtype_for, finish, split_up, write

AUGMENTATION = Augmentation(image_size=8, resize=(8, 12), crop="random", flip=True, small="upscale")
K = 1000


class Noise:
    """Random images of several sizes; the label is the index modulo 7. Those in `bad` cannot be decoded."""

    name, class_names = "noise", tuple("abcdefg")

    def __init__(self, length: int, bad=(), key=0):
        self.length, self.bad, self.key = length, frozenset(bad), key

    def __len__(self):
        return self.length

    def __getitem__(self, index, /):
        if index in self.bad:
            raise ImageError(f"image{index}.png is damaged")
        rng = np.random.default_rng([self.key, index])
        shape = (*rng.integers(10, 20, size=2), 3)
        return {"image": rng.integers(0, 256, shape, dtype=np.uint8), "label": np.int32(index % 7)}


class Killed(BaseException):
    """Stands for a signal."""


def means(images):
    """A code for each quarter of an image."""
    b = len(images)
    return images.reshape(b, 2, 4, 2, 4, 3).astype(np.int64).sum(axis=(2, 4, 5)).reshape(b, 4)


def encode(batch):
    """A label and four codes, each of which depends on everything that is in the batch, and where."""
    images, labels = batch["image"], batch["label"]
    assert (images.shape, images.dtype) == ((4, 8, 8, 3), np.uint8)
    assert (labels.shape, labels.dtype) == ((4,), np.int32)
    mixed = means(images) + (images.astype(np.int64).sum(axis=(1, 2, 3)) * np.arange(1, 5)).sum()
    return np.concatenate([labels[:, None], mixed % K], axis=1)


def encode_alone(batch):
    """The same without what depends on the neighbours."""
    return np.concatenate([batch["label"][:, None], means(batch["image"]) % K], axis=1)


SOURCES = {"train": Noise(13), "validation": Noise(9, key=1)}


def plan_for(sources, *, crops=2, per_shard=6, **changes):
    fields = {
        "fingerprint": "abc123",
        "codebook_size": K,
        "grid": (2, 2),
        "prefix": 1,
        "condition": {"kind": "class", "num_classes": 7},
        "class_names": tuple("abcdefg"),
        "dtype": dtype_for(K),
        "source": "noise",
        "crops": crops,
        "seed": 3,
        "augmentation": AUGMENTATION,
        "batch_size": 4,
        "splits": split_up(sources, crops=crops, per_shard=per_shard),
    }
    return CachePlan(**{**fields, **changes})


def make(folder, sources=SOURCES, encode=encode, hosts=1, num_threads=2, **changes):
    plan = plan_for(sources, **changes)
    for process in reversed(range(hosts)):
        write(folder, plan, sources, encode, process_index=process, process_count=hosts, num_threads=num_threads)
    return finish(folder, plan)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rows(source):
    return np.stack([source[i]["tokens"] for i in range(len(source))])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    make(folder)
    return folder


# What is written


def test_a_cache_is_shards_and_their_description(cache):
    train = [f"train-{i:05}-of-00005.array_record" for i in range(5)]
    validation = [f"validation-{i:05}-of-00002.array_record" for i in range(2)]
    assert list(contents(cache)) == ["plan.json", "tokens.json", *train, *validation]
    found = json.loads((cache / "tokens.json").read_text())
    assert found["splits"] == {
        "train": {"examples": 26, "shards": 5, "per_shard": 6, "left_out": []},
        "validation": {"examples": 9, "shards": 2, "per_shard": 6, "left_out": []},
    }
    assert (found["version"], found["fingerprint"], found["grid"], found["prefix"]) == (1, "abc123", [2, 2], 1)
    assert (found["dtype"], found["condition"]) == ("uint16", {"kind": "class", "num_classes": 7})


def test_what_was_encoded_is_what_is_read(tmp_path):
    make(tmp_path, encode=encode_alone)
    validation = rows(open_tokens(tmp_path, split="validation"))
    assert (validation.shape, validation.dtype) == ((9, 5), np.int32)
    views = next(evaluation_batches(SOURCES["validation"], image_size=8, batch_size=9))
    np.testing.assert_array_equal(validation, encode_alone(views))


def test_the_seed_and_an_image_alone_decide_the_codes_of_its_crops(tmp_path):
    changes = {"one": {}, "shards": {"per_shard": 11}, "seed": {"seed": 4}}
    for name, change in changes.items():
        make(tmp_path / name, encode=encode_alone, crops=3, **change)
    one, shards, seed = (rows(open_tokens(tmp_path / name, split="train")) for name in changes)
    np.testing.assert_array_equal(one, shards)
    assert (one[:, 1:] != seed[:, 1:]).any(axis=1).all()
    tokens = one.reshape(3, 13, 5)
    np.testing.assert_array_equal(tokens[..., 0], np.tile(np.arange(13) % 7, (3, 1)))
    assert all(len({tokens[crop, image, 1:].tobytes() for crop in range(3)}) == 3 for image in range(13))


@pytest.mark.parametrize(("hosts", "threads"), [(2, 2), (3, 7), (9, 1)])
def test_files_do_not_depend_on_processes_and_threads(cache, tmp_path, hosts, threads):
    make(tmp_path, hosts=hosts, num_threads=threads)
    assert contents(tmp_path) == contents(cache)


def test_a_run_killed_again_and_again_leaves_the_same_files(cache, tmp_path):
    plan, calls = plan_for(SOURCES), itertools.count(1)

    def mortal(batch):
        if next(calls) % 3 == 0:
            raise Killed
        return encode(batch)

    def survives(process):
        try:
            write(tmp_path, plan, SOURCES, mortal, process_index=process, process_count=2)
        except Killed:
            assert any(path.suffix == ".part" for path in tmp_path.iterdir())
            return False
        return True

    kills = 0
    while not all([survives(process) for process in range(2)]):
        kills += 1
    assert kills > 2
    finish(tmp_path, plan)
    assert contents(tmp_path) == contents(cache)


def test_a_full_disk_leaves_what_is_whole_and_a_temporary_file(cache, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # below the size of any ArrayRecord file
    try:
        with pytest.raises(OSError, match=r"00000-of-00005\.array_record\.part must be written; .*Make room"):
            make(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(contents(tmp_path)) == ["plan.json", "train-00000-of-00005.array_record.part"]
    make(tmp_path)
    assert contents(tmp_path) == contents(cache)


def test_whole_shards_are_not_made_again(cache, tmp_path):
    make(tmp_path)
    (tmp_path / "tokens.json").unlink()
    (tmp_path / "train-00002-of-00005.array_record").unlink()
    (tmp_path / "train-00002-of-00005.array_record.part").write_bytes(b"torn")
    calls, seen = [], []
    counting = lambda batch: calls.append(1) or encode(batch)
    write(tmp_path, plan_for(SOURCES), SOURCES, counting, progress=lambda *numbers: seen.append(numbers))
    assert len(calls) == 2
    assert seen == [(29, 35), (33, 35), (35, 35)]
    finish(tmp_path, plan_for(SOURCES))
    assert contents(tmp_path) == contents(cache)


def test_a_complete_cache_is_left_as_it_is(cache, tmp_path):
    make(tmp_path)
    make(tmp_path, encode=lambda batch: pytest.fail("nothing is left to encode"))
    assert contents(tmp_path) == contents(cache)


# Bad images


def test_in_training_the_next_good_image_stands_in(tmp_path):
    good, bad = ({"train": Noise(200, bad=which)} for which in ([], [17, 199]))
    for name, sources in (("good", good), ("bad", bad)):
        make(tmp_path / name, sources, encode_alone, crops=1, per_shard=50)
    some, others = (rows(open_tokens(tmp_path / name, split="train")) for name in ("good", "bad"))
    np.testing.assert_array_equal(np.flatnonzero((some != others).any(axis=1)), [17, 199])
    assert [others[17, 0], others[199, 0]] == [18 % 7, 0]


def test_in_validation_they_are_left_out_and_listed(tmp_path):
    good, bad = ({"validation": Noise(250, bad=which)} for which in ([], [70, 249]))
    make(tmp_path / "good", good, encode_alone, per_shard=60)
    plan = make(tmp_path / "bad", bad, encode_alone, per_shard=60, hosts=2)
    assert plan.splits["validation"].left_out == (70, 249)
    some, others = (rows(open_tokens(tmp_path / name, split="validation")) for name in ("good", "bad"))
    np.testing.assert_array_equal(others, np.delete(some, [70, 249], axis=0))


def test_too_many_bad_images_stop_the_run(tmp_path):
    with pytest.raises(ValueError, match="at most 1% of the images"):
        make(tmp_path, {"train": Noise(20, bad=[3])})


# Sizes of ids


@pytest.mark.parametrize(("k", "dtype", "width"), [(2**16, "uint16", 2), (2**16 + 1, "uint32", 4)])
def test_ids_are_stored_as_narrow_as_they_fit(tmp_path, k, dtype, width):
    assert dtype_for(k) == dtype
    highest = lambda batch: np.full((4, 5), k - 1)
    make(tmp_path / "cache", encode=highest, codebook_size=k, dtype=dtype)
    source = open_tokens(tmp_path / "cache", split="train")
    assert (rows(source) == k - 1).all()
    assert source.plan.record_dtype == np.dtype(f"<u{width}")
    shard = (tmp_path / "cache" / "train-00000-of-00005.array_record").read_bytes()
    assert shard.count((k - 1).to_bytes(width, "little") * 5) == 6


@pytest.mark.parametrize(
    ("encode", "message"),
    [
        (lambda batch: np.zeros((4, 4), np.int32), r"shape \(4, 5\); got int32 \(4, 4\)"),
        (lambda batch: np.zeros((4, 5)), r"integers of shape \(4, 5\); got float64"),
        (lambda batch: np.full((4, 5), -1), r"codes must be in 0 \.\. 999 .*got ids from -1"),
        (lambda batch: np.full((4, 5), 1000), r"codes must be in 0 \.\. 999 .*codes up to 1000"),
        (lambda batch: np.array([[2**16, 0, 0, 0, 0]] * 4), r"the prefix in 0 \.\. 65535; .* to 65536"),
    ],
)
def test_what_is_no_tokens_is_refused(tmp_path, encode, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, encode=encode)
    assert not list(tmp_path.glob("*.array_record"))


# Errors


def test_another_configuration_is_refused_and_the_difference_named(cache, tmp_path):
    make(tmp_path)
    before = contents(tmp_path)
    other = plan_for(SOURCES, seed=4, augmentation=dataclasses.replace(AUGMENTATION, flip=False))
    for call in (lambda: write(tmp_path, other, SOURCES, encode), lambda: finish(tmp_path, other)):
        with pytest.raises(ValueError, match="another configuration") as error:
            call()
        assert "seed: 3 there, 4 here" in str(error.value)
        assert "'flip': True" in str(error.value)
        assert "fingerprint" not in str(error.value)
    assert contents(tmp_path) == before


def test_shards_without_a_plan_are_not_taken_over(cache, tmp_path):
    make(tmp_path)
    (tmp_path / "plan.json").unlink()
    with pytest.raises(ValueError, match=r"has no plan\.json"):
        make(tmp_path)


def test_a_plan_survives_its_file(cache):
    plan = plan_for(SOURCES)
    assert CachePlan.from_json(plan.to_json()) == plan == open_tokens(cache, split="train").plan


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"grid": (2, 0)}, {"codebook_size": 2**16 + 1}, {"prefix": -1}])
def test_impossible_plans_are_refused(changes):
    with pytest.raises(ValueError, match="a plan's numbers must be positive"):
        plan_for(SOURCES, **changes)


@pytest.mark.parametrize("sources", [{}, {"test": Noise(3)}, {"train": Noise(0)}])
def test_splits_are_train_and_validation_and_not_empty(sources):
    with pytest.raises(ValueError, match="images of train, of validation or of both"):
        split_up(sources, crops=1, per_shard=4)


def test_what_is_no_cache_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"folder; .*nowhere is none"):
        open_tokens(tmp_path / "nowhere", split="train")
    with pytest.raises(ValueError, match=r"it has no tokens\.json. Correct the path"):
        open_tokens(tmp_path, split="train")


def test_a_half_written_cache_says_how_far_it_is(tmp_path):
    plan = plan_for(SOURCES)
    write(tmp_path, plan, SOURCES, encode, process_index=0, process_count=2)
    with pytest.raises(ValueError, match=r"half-written: 4 of 7 shards. Run `vqgan tokenize` again, it goes on"):
        open_tokens(tmp_path, split="train")
    with pytest.raises(ValueError, match=r"train-00001-of-00005.array_record must be .* 6 records; got none"):
        finish(tmp_path, plan)
    assert not (tmp_path / "tokens.json").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda shard, last: shard.unlink(), "got none"),
        (lambda shard, last: shard.write_bytes(last.read_bytes()), "got 2 records"),
        (lambda shard, last: shard.write_bytes(shard.read_bytes()[:100]), "got one that cannot be read"),
        (lambda shard, last: shard.write_bytes(b""), "got one that cannot be read"),
    ],
)
def test_a_damaged_shard_is_named_and_can_be_made_again(cache, tmp_path, damage, message):
    make(tmp_path)
    shard, last = (tmp_path / f"train-0000{i}-of-00005.array_record" for i in (1, 4))
    damage(shard, last)
    with pytest.raises(ValueError, match=f"train-00001-of-00005.array_record must be .*{message}.*Delete it"):
        open_tokens(tmp_path, split="train")
    shard.unlink(missing_ok=True)
    make(tmp_path)
    assert contents(tmp_path) == contents(cache)


def test_another_tokenizer_split_or_version_is_refused(cache, tmp_path):
    assert len(open_tokens(cache, split="train", fingerprint="abc123")) == 26
    with pytest.raises(ValueError, match=r"made with abc123, this tokenizer is xyz.*into another folder"):
        open_tokens(cache, split="train", fingerprint="xyz")
    with pytest.raises(ValueError, match=r"one of train, validation .*got 'test'"):
        open_tokens(cache, split="test")
    (tmp_path / "tokens.json").write_text((cache / "tokens.json").read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="version must be 1; got 2"):
        open_tokens(tmp_path, split="train")


# Batches, which are made as those of images are


def test_batches_hold_the_rows_of_a_split(cache):
    train, validation = (open_tokens(cache, split=split) for split in ("train", "validation"))
    batches = training_batches(train, augmentation=AUGMENTATION, batch_size=13, seed=5)
    tokens = np.concatenate([batch["tokens"] for batch in itertools.islice(batches, 2)])
    assert tokens.dtype == np.int32
    assert sorted(map(tuple, tokens.tolist())) == sorted(map(tuple, rows(train).tolist()))
    (batch,) = evaluation_batches(spread(validation, 3), image_size=8, batch_size=4)
    np.testing.assert_array_equal(batch["tokens"], [*rows(validation)[[0, 4, 8]], np.zeros(5)])
    assert batch["mask"].tolist() == [True, True, True, False]
