"""The token cache: the codes of a frozen tokenizer, written once, so that stage 2 trains without encoding images.

A cache is a folder: ArrayRecord shards such as `train-00003-of-00016.array_record`; `plan.json`, what is to be
written; and last of all `tokens.json`, the same plan with what came of it, whose presence says that the cache is
complete. One record is one example, a row of little-endian integers: the condition's prefix, then the codes row by
row. Here is what a cache is and how it is read; `token_writer` writes it.
"""

import dataclasses
import functools
import json
import os
from typing import Any, SupportsIndex

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from vqgan_jax.data import loader, storage
from vqgan_jax.data.loader import Batches
from vqgan_jax.data.preprocessing import Augmentation
from vqgan_jax.data.sources import Source

VERSION = 1
SCHEME = "tokens:"  # and the folder: how a config names a cache as its source
PLAN_FILE, CACHE_FILE = "plan.json", "tokens.json"


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
      dtype: of the records, "uint16" or "uint32"; see `token_writer.dtype_for`.
      source: what the images came from.
      crops: how many examples are made of each training image, each augmented anew.
      seed: of the augmentation.
      augmentation: of training images; validation has the evaluation view of the same size.
      batch_size: images that the encoder is given at a time.
      splits: by name, "train" and "validation" or one of them; see `token_writer.split_up`.
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

    @property
    def contents(self) -> str:
        """All that decides what is in a shard of some name."""
        return json.dumps({key: value for key, value in self.to_json().items() if key != "splits"})

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
        augmentation, splits = fields["augmentation"], fields["splits"]
        return cls(
            **fields
            | {
                "grid": tuple(fields["grid"]),
                "class_names": tuple(fields["class_names"]),
                "augmentation": Augmentation(**augmentation | {"resize": tuple(augmentation["resize"])}),
                "splits": {k: Split(**split | {"left_out": tuple(split["left_out"])}) for k, split in splits.items()},
            }
        )


def count_records(path: epath.Path) -> int:
    """How many records a shard has; an error of ArrayRecord's if it is not whole."""
    reader = ArrayRecordReader(os.fspath(path))
    try:
        return reader.num_records()
    finally:
        reader.close()


def check_shard(folder: epath.Path, plan: CachePlan, split: str, shard: int) -> str:
    """The path of a shard, or of a local copy; ValueError unless it is there and has as many records as planned."""
    path, expected = folder / plan.file(split, shard), len(plan.splits[split].numbers(shard))
    local = path
    try:
        if path.exists():
            local = storage.local_copy(path, plan.contents)
            found = f"{count_records(local)} records"
        else:
            found = "none"
    except (ValueError, RuntimeError, OSError) as error:
        found = f"one that cannot be read ({error})"
    if found != f"{expected} records":
        raise ValueError(
            f"{path} must be a file of {expected} records; got {found}. Delete it if it is there, and run "
            "`vqgan tokenize` again: it makes what is missing."
        )
    return os.fspath(local)


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


def token_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 8,
    prefetch: int = 8,
) -> Batches:
    """Endless batches, reshuffled each epoch: a function of their number and the seed alone, as `training_batches`.

    Args:
      source: a `TokenSource`, or a `spread` of one.
      batch_size: examples a step over all processes.
      seed: of the order; 0 to 2**32 - 1.
      process_index, process_count: this process and how many there are.
      num_threads: batches made at the same time.
      prefetch: batches kept ready; at least `num_threads`.

    Returns:
      An iterator of "tokens" (int32 b t), b = `batch_size` / `process_count`; its state is `{"next_index": n}`.

    Raises:
      ValueError: if an argument is out of range.
    """
    local_size = loader.local_size_of(batch_size, process_index, process_count)
    data = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(None).map(source.__getitem__)
    return loader.share(data, local_size, process_index, process_count, num_threads, prefetch)


def evaluation_token_batches(
    source: Source,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_examples: int | None = None,
    num_threads: int = 8,
    prefetch: int = 8,
) -> Batches:
    """Each example exactly once, in order; equally many batches everywhere, as `evaluation_batches`.

    Args:
      source: a `TokenSource`, or a `spread` of one.
      num_examples: only the first so many; all if None.
      batch_size, process_index, process_count, num_threads, prefetch: see `token_batches`.

    Returns:
      An iterator of "tokens" (int32 b t) and "mask" (bool b), b = `batch_size` / `process_count`. The mask is False,
      and the tokens 0, for padding.

    Raises:
      ValueError: if an argument is out of range.
    """
    local_size = loader.local_size_of(batch_size, process_index, process_count)
    count = loader.how_many(num_examples, len(source), source.name)
    data = grain.MapDataset.range(-(-count // batch_size) * batch_size)
    data = data.map(functools.partial(_evaluation_tokens, source, count))
    return loader.share(data, local_size, process_index, process_count, num_threads, prefetch)


def _evaluation_tokens(source: Source, count: int, index: int) -> dict[str, Any]:
    if index >= count:
        return {"tokens": np.zeros_like(source[0]["tokens"]), "mask": np.bool_(False)}
    return {**source[index], "mask": np.bool_(True)}
