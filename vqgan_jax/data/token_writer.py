"""Writes a token cache: every process its shards, in any order, killed and started again as often as need be.

An example's number decides which image, which crop and which batch of the encoder it comes from, and nothing else
does. So the files are the same bytes for any number of processes and any number of interruptions, if `encode` is a
function of its arguments. A shard gets its name when it is whole, `tokens.json` when all of them are.

ArrayRecord writes to a disk only: a shard for a bucket is made in a temporary folder and copied when it is whole.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath

from vqgan_jax.data import loader, storage
from vqgan_jax.data.sources import Source
from vqgan_jax.data.tokens import CACHE_FILE, PLAN_FILE, CachePlan, Split, check_shard, count_records
from vqgan_jax.data.views import PLAIN, View


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


def write(
    folder: epath.PathLike,
    plan: CachePlan,
    sources: Mapping[str, Source],
    encode: Callable[[loader.Batch], Any],
    *,
    fields: Mapping[str, View] = PLAIN,
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
    """Makes the folder and its plan, or sees that it was begun with this one."""
    folder = storage.place(folder)
    storage.make_folder(folder)
    strays = any(folder.glob("*.array_record"))  # looked for first: another process may be writing plan and shards
    path = folder / PLAN_FILE
    if not path.exists():
        if strays:
            raise ValueError(f"shards must lie beside their plan; {folder} has no {PLAN_FILE}. Choose another folder.")
        storage.write_json(path, plan.to_json())
    found, wanted = json.loads(path.read_text()), plan.to_json()
    if differing := [key for key in {**found, **wanted} if found.get(key) != wanted.get(key)]:
        lines = "".join(f"\n  {key}: {found.get(key)} there, {wanted.get(key)} here" for key in differing)
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
        # As in a training run, chance is keyed by the example's number, so that it is anyone's to make.
        view = loader.training_view(source, plan.augmentation, fields)
        examples: Any = grain.MapDataset.range(len(source)).seed(plan.seed).repeat(plan.crops).random_map(view)
    else:
        view = loader.evaluation_view(source, plan.augmentation.image_size, fields)
        examples = grain.MapDataset.range(len(source)).map(view)
    padded = lambda shard: -(-len(plan.splits[split].numbers(shard)) // plan.batch_size) * plan.batch_size
    slots = padded(shards[0])  # only the very last shard may have fewer

    def example(slot: int) -> dict[str, Any]:
        numbers = plan.splits[split].numbers(shards[slot // slots])
        if slot % slots >= len(numbers):
            return {name: np.zeros_like(value) for name, value in example(slot - slot % slots).items()}
        return {"mask": np.bool_(True), **examples[numbers[slot % slots]]}

    data = grain.MapDataset.range(sum(map(padded, shards))).map(example)
    return loader.share(data, plan.batch_size, 0, 1, num_threads, num_threads)


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
    if (found := count_records(part)) != records:
        raise OSError(f"{part} must hold {records} records; got {found}. See to the disk and start again.")
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
            reader = ArrayRecordReader(path)
            numbers = plan.splits[split].numbers(shard)
            left_out[split] += [i for i, record in zip(numbers, reader.read_all(), strict=True) if not record]
            reader.close()
    splits = {name: dataclasses.replace(split, left_out=tuple(left_out[name])) for name, split in plan.splits.items()}
    plan = dataclasses.replace(plan, splits=splits)
    storage.write_json(folder / CACHE_FILE, plan.to_json())
    return plan
