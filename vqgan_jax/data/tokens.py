"""The token cache: the codes of a frozen tokenizer, written once, so that stage 2 trains without encoding images.

A cache is a folder: ArrayRecord shards such as `train-00003-of-00016.array_record`; `plan.json`, what is to be
written; and last of all `tokens.json`, the same plan with what came of it, whose presence says that the cache is
complete. One record is one example, a row of little-endian integers: the condition's prefix, then the codes row by
row.

Every process writes its shards, in any order, killed and started again as often as need be. An example's number
decides which image, which crop and which batch of the encoder it comes from, and nothing else does. So the files are
the same bytes for any number of processes and any number of interruptions, if `encode` is a function of its arguments.
A shard gets its name when it is whole, `tokens.json` when all of them are. ArrayRecord writes to a disk only: a shard
for a bucket is made in a temporary folder and copied when it is whole.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, SupportsIndex

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath

from vqgan_jax.data import loader, storage, views
from vqgan_jax.data.sources import Source
from vqgan_jax.data.views import Augmentation, View

VERSION = 1
SCHEME = "tokens:"  # and the folder: how a config names a cache as its source
PLAN_FILE, CACHE_FILE = "plan.json", "tokens.json"


# What a cache is


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """How the examples of a split lie in its shards.

    Fields:
      examples: how many records there are, over all shards.
      shards: how many files.
      per_shard: records of each file; the last may hold fewer.
      left_out: numbers of the examples whose image cannot be decoded; their records are empty. Known when all is
        written. Only validation has any: in training the next good image stands in.
    """

    examples: int
    shards: int
    per_shard: int
    left_out: tuple[int, ...] = ()

    def numbers(self, shard: int) -> range:
        """The numbers of the examples in a shard."""
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, self.examples))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachePlan:
    """All that decides what is in a cache.

    Fields:
      fingerprint: the tokenizer's.
      codebook_size: codes are below it.
      grid: height and width of an image's codes.
      prefix: tokens of the condition, before the codes.
      condition: what the prefix means; plain JSON values.
      class_names: names of the labels.
      dtype: of the records, "uint16" or "uint32"; see `dtype_for`.
      source: what the images came from.
      crops: how many examples are made of each training image, each augmented anew.
      seed: of the augmentation.
      augmentation: of training images; validation has the evaluation view of the same size.
      batch_size: images that the encoder is given at a time.
      splits: by name, "train" and "validation" or one of them; see `split_up`.
      version: of this format.
    """

    fingerprint: str
    codebook_size: int
    grid: tuple[int, int]
    prefix: int
    condition: dict[str, Any]
    class_names: tuple[str, ...]
    dtype: str
    source: str
    crops: int
    seed: int
    augmentation: Augmentation
    batch_size: int
    splits: dict[str, Split]
    version: int = VERSION

    def __post_init__(self):
        smallest = min(self.codebook_size, *self.grid, self.crops, self.batch_size, self.prefix + 1)
        if smallest < 1 or self.codebook_size > np.iinfo(self.dtype).max + 1:
            raise ValueError(
                "a plan's numbers must be positive, and `dtype` must hold every code; got "
                f"{self.to_json()}. Correct them."
            )

    @property
    def length(self) -> int:
        """Tokens of one example, s + h * w."""
        return self.prefix + self.grid[0] * self.grid[1]

    @property
    def record_dtype(self) -> np.dtype:
        """The type of a record's tokens."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def shards(self) -> list[tuple[str, int]]:
        """Split and number of every shard, in the order in which processes take turns at them."""
        return [(name, shard) for name, split in self.splits.items() for shard in range(split.shards)]

    def file(self, split: str, shard: int) -> str:
        """The name of a shard."""
        return f"{split}-{shard:05d}-of-{self.splits[split].shards:05d}.array_record"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "CachePlan":
        """The plan that `to_json` made these of; ValueError if it is of another version of the format."""
        if fields.get("version") != VERSION:
            raise ValueError(
                f"the token cache's version must be {VERSION}; got {fields.get('version')}. Run `vqgan tokenize` "
                "again into another folder, or use the program that wrote it."
            )
        tuples = lambda section, *names: section | {name: tuple(section[name]) for name in names}
        augmentation = Augmentation(**tuples(fields["augmentation"], "resize"))
        splits = {name: Split(**tuples(split, "left_out")) for name, split in fields["splits"].items()}
        return cls(**tuples(fields, "grid", "class_names") | {"augmentation": augmentation, "splits": splits})


def dtype_for(vocab_size: int) -> str:
    """The smallest type of a record whose ids, of codes and prefix, are all below `vocab_size`."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


def split_up(sources: Mapping[str, Source], *, crops: int, per_shard: int) -> dict[str, Split]:
    """Deals the examples of "train" and "validation" into shards of `per_shard`, best a multiple of the batch.

    Raises:
      ValueError: if there is another split, none, or one without images, or `per_shard` is not positive.
    """
    images = {name: len(sources[name]) for name in sorted(sources)}
    if not images or images.keys() - {"train", "validation"} or min(images.values()) < 1 or per_shard < 1:
        raise ValueError(
            "there must be images of train, of validation or of both, and `per_shard` must be positive; got "
            f"{images or 'no split'}, {per_shard}. Correct them."
        )
    counts = {name: count * (crops if name == "train" else 1) for name, count in images.items()}
    return {
        name: Split(examples=count, shards=-(-count // per_shard), per_shard=per_shard)
        for name, count in counts.items()
    }


def count_records(path: epath.Path) -> int:
    """How many records a shard has; an error of ArrayRecord's if it is not whole."""
    with contextlib.closing(ArrayRecordReader(os.fspath(path))) as reader:
        return reader.num_records()


def check_shard(folder: epath.Path, plan: CachePlan, split: str, shard: int) -> str:
    """The path of a shard, or of a local copy; ValueError unless it is there and has as many records as planned."""
    path, expected = folder / plan.file(split, shard), len(plan.splits[split].numbers(shard))
    contents = json.dumps({key: value for key, value in plan.to_json().items() if key != "splits"})
    local, content = path, "none"
    try:
        if path.exists():
            local = storage.local_copy(path, contents)
            content = f"{count_records(local)} records"
    except (ValueError, RuntimeError, OSError) as error:
        content = f"one that cannot be read ({error})"
    if content != f"{expected} records":
        raise ValueError(
            f"{path} must be a file of {expected} records; got {content}. Delete it if it is there, and run "
            "`vqgan tokenize` again: it makes what is missing."
        )
    return os.fspath(local)


# How it is written


def write(
    folder: epath.PathLike,
    plan: CachePlan,
    sources: Mapping[str, Source],
    encode: Callable[[loader.Batch], Any],
    *,
    fields: Mapping[str, View] = views.PLAIN,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes this process's shards, all but those that are there already. Afterwards, one process calls `finish`.

    Images that cannot be decoded: in training the next that can be stands in, in validation they are left out.

    Args:
      folder: the cache's, made if need be; one cache a folder, which all processes see.
      plan: what to write.
      sources: the images of each split of the plan.
      encode: from a batch of the `fields`, always of `plan.batch_size` examples, to tokens (integers, b s + h * w). Not
        a collective: processes need not make equally many batches.
      fields: what `encode` must see of each example; see `views`.
      process_index, process_count: this process and how many there are.
      num_threads: batches made at the same time.
      progress: told, at the start and after each batch, how many of this process's examples are done, and of how many.

    Raises:
      ValueError: if the folder holds another cache, or a part of one; if `encode` returns something else than tokens;
        if more than 1% of the images cannot be decoded.
      OSError: if the disk is full. What is whole stays, and the next call goes on from there.
    """
    folder = _claim(folder, plan)
    mine = plan.shards[process_index::process_count]
    missing = [(split, shard) for split, shard in mine if not (folder / plan.file(split, shard)).exists()]
    count = lambda shards: sum(len(plan.splits[split].numbers(shard)) for split, shard in shards)
    done, total = count(mine) - count(missing), count(mine)
    progress(done, total)
    for split, group in itertools.groupby(missing, key=lambda item: item[0]):
        shards = [shard for _, shard in group]
        batches = _batches(plan, split, sources[split], shards, fields, num_threads)
        for shard in shards:
            numbers = plan.splits[split].numbers(shard)
            with _new_shard(folder / plan.file(split, shard), len(numbers)) as writer:
                for start in range(0, len(numbers), plan.batch_size):
                    batch = next(batches)
                    tokens = _encoded(plan, encode, batch)
                    size = min(plan.batch_size, len(numbers) - start)
                    for row, mask in zip(tokens[:size], batch["mask"], strict=False):
                        writer.write(row.tobytes() if mask else b"")
                    done += size
                    progress(done, total)


def _claim(folder: epath.PathLike, plan: CachePlan) -> epath.Path:
    """Makes the folder and its plan; where it exists, checks that it has this plan."""
    folder = storage.place(folder)
    storage.make_folder(folder)
    strays = any(folder.glob("*.array_record"))  # looked for first: another process may be writing plan and shards
    path = folder / PLAN_FILE
    if not path.exists():
        if strays:
            raise ValueError(f"shards must lie beside their plan; {folder} has no {PLAN_FILE}. Choose another folder.")
        storage.write_json(path, plan.to_json())
    theirs, ours = json.loads(path.read_text()), plan.to_json()
    if differing := [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]:
        lines = "".join(f"\n  {key}: {theirs.get(key)} there, {ours.get(key)} here" for key in differing)
        raise ValueError(
            f"a folder holds one token cache; {folder} was begun with another configuration:{lines}\n"
            "Choose another folder, return to that configuration, or delete the folder."
        )
    return folder


def _batches(
    plan: CachePlan, split: str, source: Source, shards: list[int], fields: Mapping[str, View], num_threads: int
) -> Iterator[loader.Batch]:
    """The encoder's batches for some shards: each starts afresh, and its last batch is filled up with zeros."""
    if split == "train":
        # As in a training run, the random numbers depend on the example's number alone, so any process may encode it.
        view = loader.Examples(source, plan.augmentation, fields).train
        examples: Any = grain.MapDataset.range(len(source)).seed(plan.seed).repeat(plan.crops).random_map(view)
    else:
        view = loader.Examples(source, views.evaluation(plan.augmentation.image_size), fields).evaluate
        examples = grain.MapDataset.range(len(source)).map(lambda index: view(index, len(source)))
    padded = lambda shard: -(-len(plan.splits[split].numbers(shard)) // plan.batch_size) * plan.batch_size
    slots = padded(shards[0])  # only the very last shard may have fewer

    def example(slot: int) -> dict[str, Any]:
        numbers = plan.splits[split].numbers(shards[slot // slots])
        if slot % slots >= len(numbers):
            return {name: np.zeros_like(value) for name, value in example(slot - slot % slots).items()}
        return {"mask": np.bool_(True), **examples[numbers[slot % slots]]}

    data = grain.MapDataset.range(sum(map(padded, shards))).map(example)
    return loader.share(data, plan.batch_size, 0, 1, num_threads)


def _encoded(plan: CachePlan, encode: Callable[[loader.Batch], Any], batch: loader.Batch) -> np.ndarray:
    tokens = np.asarray(encode({name: value for name, value in batch.items() if name != "mask"}))
    shape = (plan.batch_size, plan.length)
    if tokens.shape != shape or tokens.dtype.kind not in "iu":
        raise ValueError(f"`encode` must return integers of shape {shape}; got {tokens.dtype} {tokens.shape}. Mend it.")
    codes, highest = tokens[:, plan.prefix :], np.iinfo(plan.record_dtype).max
    if tokens.min() < 0 or codes.max() >= plan.codebook_size or tokens.max() > highest:
        raise ValueError(
            f"codes must be in 0 .. {plan.codebook_size - 1} and the prefix in 0 .. {highest}; got ids from "
            f"{tokens.min()} to {tokens.max()}, codes up to {codes.max()}. Give the plan the tokenizer's sizes."
        )
    return tokens.astype(plan.record_dtype)


@contextlib.contextmanager
def _new_shard(path: epath.Path, records: int) -> Iterator[ArrayRecordWriter]:
    """A writer of a file that gets its name when it is whole and on the disk, or in the bucket."""
    if storage.in_bucket(path):
        with tempfile.TemporaryDirectory() as local:
            copy = epath.Path(local) / path.name
            with _new_shard(copy, records) as writer:
                yield writer
            path.write_bytes(copy.read_bytes())
        return
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    writer = ArrayRecordWriter(os.fspath(part), "group_size:1,uncompressed")
    try:
        yield writer
    finally:
        try:
            writer.close()  # which fails where a write did
        except RuntimeError as error:
            raise OSError(f"{part} must be written; got {error}. Make room on the disk and start again.") from error
    if (actual := count_records(part)) != records:
        raise OSError(f"{part} must hold {records} records; got {actual}. See to the disk and start again.")
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)


def finish(folder: epath.PathLike, plan: CachePlan) -> CachePlan:
    """Checks that all processes' shards are whole, and writes `tokens.json`: the cache is complete.

    Returns:
      The plan with the examples that were left out.

    Raises:
      ValueError: if the folder holds another cache, or a shard is missing or not whole.
    """
    folder = _claim(folder, plan)
    left_out = {split: [] for split in plan.splits}
    for split, shard in plan.shards:
        path = check_shard(folder, plan, split, shard)
        if split == "validation":
            with contextlib.closing(ArrayRecordReader(path)) as reader:
                records = zip(plan.splits[split].numbers(shard), reader.read_all(), strict=True)
                left_out[split] += [number for number, record in records if not record]
    splits = {name: dataclasses.replace(split, left_out=tuple(left_out[name])) for name, split in plan.splits.items()}
    plan = dataclasses.replace(plan, splits=splits)
    storage.write_json(folder / CACHE_FILE, plan.to_json())
    return plan


# How it is read


class TokenSource:
    """Rows of tokens by number, of one split of a cache; safe to read from many threads."""

    def __init__(self, folder: epath.PathLike, split: str, plan: CachePlan):
        """Opens the shards; see `open_tokens`.

        Raises:
          ValueError: if a shard is missing or not whole.
        """
        folder, self.plan = storage.place(folder), plan
        self.name, self.class_names = f"tokens:{folder}/{split}", plan.class_names
        paths = []
        for shard in range(plan.splits[split].shards):
            path = check_shard(folder, plan, split, shard)
            paths.append(f"{path}[0:{len(plan.splits[split].numbers(shard))}]")  # else it would be opened to be counted
        self._records = grain.sources.ArrayRecordDataSource(paths)
        numbers, left_out = range(plan.splits[split].examples), list(plan.splits[split].left_out)
        self._numbers = np.delete(numbers, left_out) if left_out else numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: SupportsIndex) -> dict[str, np.ndarray]:
        """Example `index`: "tokens" (int32 s + h * w), the prefix and then the codes row by row."""
        record = self._records[int(self._numbers[index.__index__()])]
        return {"tokens": np.frombuffer(record, self.plan.record_dtype).astype(np.int32)}


def is_cache(source: str) -> bool:
    """Whether a config's source names a token cache, as tokens:FOLDER."""
    return source.startswith(SCHEME)


def open_tokens(folder: epath.PathLike, *, split: str, fingerprint: str | None = None) -> TokenSource:
    """Opens a split of a complete cache.

    Args:
      folder: the cache's, or tokens:FOLDER.
      split: "train" or "validation".
      fingerprint: of the tokenizer that the codes are meant for; any if None.

    Raises:
      ValueError: if there is no cache, it is not complete, has no such split, or was made by another tokenizer or for
        another version of this format.
    """
    folder = storage.place(os.fspath(folder).removeprefix(SCHEME))
    if not folder.is_dir():
        raise ValueError(f"a token cache is a folder; {folder} is none. Correct the path, or run `vqgan tokenize`.")
    if not (folder / CACHE_FILE).exists():
        raise ValueError(_why_not_complete(folder))
    plan = CachePlan.from_json(json.loads((folder / CACHE_FILE).read_text()))
    if split not in plan.splits:
        raise ValueError(f"`split` must be one of {', '.join(plan.splits)} in {folder}; got {split!r}. Choose one.")
    if fingerprint not in (None, plan.fingerprint):
        raise ValueError(
            f"a token cache and its tokenizer must belong together; {folder} was made with {plan.fingerprint}, this "
            f"tokenizer is {fingerprint}. Name the right one, or run `vqgan tokenize` again into another folder."
        )
    return TokenSource(folder, split, plan)


def _why_not_complete(folder: epath.Path) -> str:
    if not (folder / PLAN_FILE).exists():
        return f"{folder} must hold a token cache; it has no {CACHE_FILE}. Correct the path, or run `vqgan tokenize`."
    plan = CachePlan.from_json(json.loads((folder / PLAN_FILE).read_text()))
    there = sum((folder / plan.file(split, shard)).exists() for split, shard in plan.shards)
    return (
        f"a token cache must be complete; {folder} is half-written: {there} of {len(plan.shards)} shards. "
        "Run `vqgan tokenize` again, it goes on."
    )
