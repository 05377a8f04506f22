"""Runs whose workdir is in a bucket of a real object store, started here on loopback."""

import gc
import importlib.util
import json
import random
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stores
import untrained
from drill import PRIOR, SMALL, TINY, Job, check_identical, checkpoints, newest, rows
from etils import epath

import vqgan_jax as vq
from vqgan_jax import cli, pictures
from vqgan_jax.__main__ import main
from vqgan_jax.data import Augmentation, open_tokens, storage, tokens
from vqgan_jax.data.tokens import CachePlan
from vqgan_jax.train import checkpoint, metrics
from vqgan_jax.train.checkpoint import Checkpoints
from vqgan_jax.train.metrics import Writer
from vqgan_jax.train.watch import Profile

pytestmark = [
    # gcsfs gives aiohttp what it sends as bytes, of which aiohttp would rather have a file.
    pytest.mark.filterwarnings("ignore:Sending a large body directly with raw bytes:ResourceWarning"),
    # TensorStore may have an answer to a read that failed when the loop that asked is closed.
    pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request):
    """The URL of a bucket; the environment is that of its clients."""
    with getattr(stores, request.param)() as env, stores.environment(env):
        yield f"{request.param}://bucket"


@pytest.fixture
def folder(bucket, request, tmp_path, monkeypatch):
    """A test's own place in it; local copies of what is there go to a folder of the test."""
    monkeypatch.setenv("VQGAN_JAX_CACHE", str(tmp_path / "kept"))
    return storage.place(f"{bucket}/{request.node.originalname}")


def objects(folder: epath.Path) -> list[str]:
    """Everything below a path, without it."""
    found, folders = [], [folder] if folder.exists() else []
    while folders:
        for path in folders.pop().iterdir():
            (folders if path.is_dir() else found).append(path)
    return sorted(str(path).removeprefix(f"{folder}/") for path in found)


# Paths


@pytest.mark.parametrize("text", ["gss://bucket/run", "s3:/bucket/run", "gs://", "s3:///run", "memory://run", "GS://b"])
def test_a_url_with_a_typo_is_an_error(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", f"--config={TINY}", f"--workdir={text}"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"must be a folder, gs://BUCKET/PATH or s3://BUCKET/PATH; got '{text}'" in message
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.parametrize(("url", "missing"), [("gs://b/run", "gcsfs"), ("s3://b/run", "s3fs")])
def test_a_missing_library_is_named_with_its_extra(url, missing, tmp_path, monkeypatch, capsys):
    storage.ready.cache_clear()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    monkeypatch.chdir(tmp_path)
    assert main(["train", f"--config={TINY}", f"--workdir={url}"]) == 1
    assert capsys.readouterr().err == (
        f"vqgan train: {url[:5]} needs the package {missing}, which is not installed; "
        f"`pip install 'vqgan-jax[{'gcs' if url[0] == 'g' else 's3'}]'`.\n"
    )
    assert not list(tmp_path.iterdir()), "nothing is written"


def test_paths_of_this_machine_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(storage.place("runs/a")) == str(tmp_path / "runs" / "a")
    assert str(storage.place(tmp_path)) == str(tmp_path)
    assert str(storage.place("~/a")) == str(Path("~/a").expanduser())


def test_a_bucket_that_is_not_there_is_one_error_and_is_not_made(bucket, capsys):
    url = bucket.replace("bucket", "nobody")
    assert main(["train", f"--config={TINY}", f"--workdir={url}/run"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"{url}/run must be in a bucket that can be listed, written to and deleted from" in message
    assert not storage.place(url).exists()


@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_a_bucket_without_permission_is_one_error(bucket, capsys, monkeypatch):
    import s3fs

    def denied(*_, **__):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", denied)
    assert main(["train", f"--config={TINY}", f"--workdir={bucket}/denied"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "Correct the name, or see to the credentials" in message
    monkeypatch.undo()
    assert objects(storage.place(f"{bucket}/denied")) == []


def test_writable_leaves_nothing(folder):
    storage.check_writable(folder)
    assert objects(folder) == []


def test_a_file_is_written_and_a_folder_copied(folder):
    storage.make_folder(folder / "empty")
    storage.write_json(folder / "a.json", {"a": 1})
    with storage.local_folder(folder / "out") as local:
        (local / "deep").mkdir()
        (local / "deep" / "b.txt").write_text("b")
    assert objects(folder) == ["a.json", "out/deep/b.txt"]
    assert json.loads((folder / "a.json").read_text()) == {"a": 1}
    copy = storage.local_copy(folder / "a.json", "1")
    assert copy.read_text() == (folder / "a.json").read_text()
    (folder / "a.json").write_text("{}")
    assert storage.local_copy(folder / "a.json", "1") == copy
    assert storage.local_copy(folder / "a.json", "2").read_text() == "{}"


# Metrics


def life(workdir: epath.Path, resume_from: int, steps, *, commits=(), close: bool = True) -> Writer:
    """A writer that tells of some steps; one that is not closed was killed."""
    writer = Writer(workdir, resume_from=resume_from, enabled=True)
    for step in steps:
        writer.scalars(step, "train", {"rec_loss": step / 10})
        if step in commits:
            writer.commit()
    if close:
        writer.close()
    return writer


def told(workdir: epath.Path) -> list[int]:
    return [line["step"] for line in Writer.read(workdir / "metrics.jsonl")]


def parts(workdir: epath.Path) -> list[str]:
    return [name for name in objects(workdir) if name.endswith(".jsonl")]


def test_lines_are_written_in_parts_that_are_not_written_again(folder):
    life(folder, 0, range(1, 6), commits=(2, 4))
    assert parts(folder) == ["metrics-000001.jsonl", "metrics-000002.jsonl", "metrics-000003.jsonl"]
    assert len((folder / "metrics-000002.jsonl").read_text().splitlines()) == 2
    assert told(folder) == [1, 2, 3, 4, 5]
    writer = life(folder, 5, [6])
    assert [line["step"] for line in writer.kept] == [1, 2, 3, 4, 5]
    assert parts(folder)[-1] == "metrics-000004.jsonl"
    assert len([name for name in objects(folder) if name.startswith("tensorboard/events")]) == 4


def test_old_lines_do_not_wait_for_a_commit(folder, monkeypatch):
    monkeypatch.setattr(metrics, "PART_SECONDS", -1.0)
    life(folder, 0, [1, 2], close=False)
    assert told(folder) == [1, 2]


@pytest.mark.parametrize("saved", [0, 2, 3, 4])
def test_after_a_kill_each_step_is_there_once(folder, saved):
    """Committed are 1 to 4, the state of step `saved` is what the next life begins with."""
    workdir = folder / str(saved)
    life(workdir, 0, range(1, 7), commits=(2, 4), close=False)
    assert told(workdir) == [1, 2, 3, 4]
    writer = life(workdir, saved, range(saved + 1, 8))
    assert [line["step"] for line in writer.dropped] == list(range(saved + 1, 5))
    assert told(workdir) == list(range(1, 8))


def test_a_run_goes_on_from_a_bucket_on_a_disk_and_back(folder, tmp_path):
    life(folder, 0, [1, 2, 3], commits=[1, 2])
    disk = epath.Path(tmp_path) / "run"
    disk.mkdir()
    for name in parts(folder):
        (disk / name).write_bytes((folder / name).read_bytes())
    life(disk, 2, [3, 4])
    assert parts(disk) == ["metrics.jsonl"]
    assert told(disk) == [1, 2, 3, 4]
    back = folder / "back"
    (back / "metrics.jsonl").write_bytes((disk / "metrics.jsonl").read_bytes())
    life(back, 3, [4, 5])
    assert parts(back) == ["metrics-000001.jsonl", "metrics.jsonl"]
    assert told(back) == [1, 2, 3, 4, 5]


def test_pictures_and_a_trace_are_there(folder):
    writer = Writer(folder, resume_from=0, enabled=True)
    writer.picture(3, "sheet", np.zeros((4, 4, 3), np.uint8))
    writer.scalars(3, "eval", {"psnr": 1.0})
    writer.close()
    with Profile(folder / "profile", (1, 1)) as trace:
        with trace.step(1):
            value = jnp.ones(3) + 1
        trace.done(1, value)
    found = objects(folder)
    assert "images/sheet_0000003.png" in found
    assert any(name.startswith("profile/") and name.endswith(".xplane.pb") for name in found)


# Checkpoints


def state(step: int):
    key = jax.random.key(step)
    return {"params": {"a": jax.random.normal(key, (8, 4)), "b": jnp.arange(5) + step}, "step": jnp.asarray(step)}


def wanted():
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), state(0))


@pytest.mark.slow
def test_checkpoints_come_back_to_the_bit_and_a_broken_one_is_set_aside(folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "WAITS", (0.0, 0.0))
    with Checkpoints(folder, keep=2) as saved:
        for step in (1, 2, 3):
            saved.save(step, state(step), {"position": step}, {"seed": step}, {"lpips": float(step)})
    assert checkpoints(folder) == [1, 2, 3], "the best and the newest two"
    with Checkpoints(folder, keep=2) as opened:
        restored = opened.newest(lambda *_: wanted())
    assert (restored.step, restored.data, restored.config) == (3, {"position": 3}, {"seed": 3})
    jax.tree.map(np.testing.assert_array_equal, restored.state, state(3))
    (folder / "checkpoints" / "4" / "config" / "metadata").write_text("{}")  # of a save that was killed
    for name in objects(folder / "checkpoints" / "3" / "state"):
        if name.startswith("d/"):
            (folder / "checkpoints" / "3" / "state" / name).unlink()
    with Checkpoints(folder, keep=2) as opened:
        restored = opened.newest(lambda *_: wanted())
        assert restored.step == 2
        opened.save(4, state(4), {}, {}, None)
    assert (folder / "checkpoints" / "3.broken").is_dir()
    assert checkpoints(folder)[-1] == 4
    gc.collect()


# Reports


def test_a_run_in_a_bucket_is_reported_and_its_config_read(folder, capsys):
    """Its curves in parts, a picture beside them; what is found comes with a command that can be typed."""
    curves = Path(__file__).parents[1] / "golden" / "curves" / "quickstart_prior"
    lines = (curves / "metrics.jsonl").read_text().replace('input_wait": ', 'input_wait": 1').splitlines(keepends=True)
    (folder / "config.json").write_bytes((curves / "config.json").read_bytes())
    for part, number in ((lines[:7], 1), (lines[7:], 2)):
        (folder / f"metrics-{number:06d}.jsonl").write_text("".join(part))
    (folder / "images" / "samples_0000300.png").write_bytes(pictures.png(np.zeros((8, 8, 3), np.uint8)))
    assert main(["report", f"--workdir={folder}"]) == 0
    assert "samples of step 300" in (folder / "report.html").read_text()
    said = capsys.readouterr().out
    command = f"vqgan train --config={folder}/config.json --workdir={folder} --config.data.num_threads=2"
    assert command in said
    assert cli.load_config(*command.split()[2].split("=")[1:], command.split()[4:]).data.num_threads == 2
    assert main(["report", f"--workdir={folder}/none"]) == 1
    assert "must be the folder of a run" in capsys.readouterr().err


# Token caches


class Grey:
    """Images of one value each."""

    name, class_names = "grey", ("a", "b")

    def __len__(self):
        return 10

    def __getitem__(self, index, /):
        return {"image": np.full((8, 8, 3), 20 * index, np.uint8), "label": np.int32(index % 2)}


def cached(folder: epath.Path) -> list[np.ndarray]:
    """Writes a cache, two shards of training images, and reads it."""
    sources = {"train": Grey()}
    plan = CachePlan(
        fingerprint="0" * 16, codebook_size=256, grid=(2, 2), prefix=1, condition={"kind": "class"},
        class_names=Grey.class_names, dtype="uint16", source="grey", crops=1, seed=0,
        augmentation=Augmentation(image_size=8, resize=(8, 8), crop="center", flip=False, small="upscale"),
        batch_size=2, splits=tokens.split_up(sources, crops=1, per_shard=6),
    )  # fmt: skip
    encode = lambda batch: np.concatenate([batch["label"][:, None], batch["image"][:, :4, 0, 0]], 1).astype(np.int32)
    tokens.write(folder, plan, sources, encode, num_threads=1)
    tokens.finish(folder, plan)
    source = open_tokens(folder, split="train", fingerprint="0" * 16)
    return [source[i]["tokens"] for i in range(len(source))]


def test_a_cache_is_that_of_a_disk(folder, tmp_path):
    disk = epath.Path(tmp_path) / "disk"
    np.testing.assert_array_equal(cached(folder), cached(disk))
    assert objects(folder) == sorted(path.name for path in disk.iterdir())
    for name in objects(folder):
        assert (folder / name).read_bytes() == (disk / name).read_bytes(), name
    (folder / "train-00001-of-00002.array_record").unlink()
    with pytest.raises(ValueError, match=r"train-00001-of-00002.array_record must be a file of 4 records; got none"):
        open_tokens(folder, split="train")
    assert len(cached(folder)) == 10, "what is missing is written"


# Whole runs


def succeeds(*argv) -> None:
    assert main([str(argument) for argument in argv]) == 0


QUICK = ("--config.steps=4", "--config.log.eval_every=4", "--config.log.checkpoint_every=2")
NO_ADVERSARY = ("--config.loss.disc_weight=0.0",)  # half as much to compile, and nothing more in a bucket


@pytest.mark.slow
def test_a_whole_run_lives_in_a_bucket(folder):
    """Tokenizer, token cache, prior, samples, figures and a plan; then the same prior goes on."""
    one, cache, two = (f"{folder}/{name}" for name in ("tokenizer", "tokens", "prior"))
    succeeds(
        "train", f"--config={TINY}", f"--workdir={one}", *QUICK, f"--compilation_cache={one}/compilation_cache",
        "--profile=2:3", "--config.log.eval_metrics=('psnr',)", "--config.data.source=photos", *NO_ADVERSARY,
    )  # fmt: skip
    found = objects(epath.Path(one))
    for start in ("checkpoints/4/", "compilation_cache/", "config.json", "evaluations/0000004.json", "images/",
                  "metrics-000001.jsonl", "profile/", "report.html", "tensorboard/events"):  # fmt: skip
        assert any(name.startswith(start) for name in found), start
    prior = (f"--config={PRIOR}", f"--config.tokenizer.workdir={one}")
    succeeds("tokenize", *prior, f"--workdir={cache}")
    assert {"plan.json", "tokens.json"} < set(objects(epath.Path(cache)))
    assert len(open_tokens(cache, split="validation")) == 40
    prior = (*prior, f"--config.data.source=tokens:{cache}", f"--workdir={two}")
    succeeds("train", *prior, *QUICK)
    succeeds("train", *prior, *QUICK, "--config.steps=6")
    assert [row["step"] for row in rows(epath.Path(two))] == [1, 2, 3, 4, 5, 6]
    assert vq.load_prior(two).step == 6
    succeeds("sample", f"--workdir={two}", f"--output={two}/samples", "--labels=1", "--count=2")
    assert objects(epath.Path(two) / "samples") == ["0001_000000.png", "0001_000001.png", "samples.npz", "sheet.png"]
    succeeds("evaluate", f"--workdir={one}", "--metrics=psnr")
    assert objects(epath.Path(one) / "evaluation")[0] == "evaluation.html"
    succeeds("reconstruct", f"--workdir={one}", "--input=photos", f"--output={one}/reconstructions", "--size=16")
    assert (epath.Path(one) / "reconstructions" / "sheet.png").exists()
    for _ in range(2):
        succeeds("plan", f"--config={TINY}", *NO_ADVERSARY, "--topology=cpu:8", "--batch=1", f"--cache={folder}/plans")
    assert len(objects(folder / "plans")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("bucket", ["s3"], indirect=True)
def test_killed_three_times_in_a_bucket(bucket, tmp_path):
    """At random moments of start-up, of steps and of the writing of checkpoints; it ends as if left alone."""
    rng, kills = random.Random(0), 3
    flags = (*SMALL, f"--config.steps={10 + 10 * kills}")
    start = lambda name: Job(tmp_path, name, *flags, inside=storage.place(f"{bucket}/kills"))
    reference = start("reference")
    reference.wait_for(lambda: newest(reference.workdir), 900, pause=0.2)
    first = time.perf_counter() - reference.began
    assert reference.finish(1200) == 0, reference.output()
    for number in range(kills):
        job = start("killed")
        if number % 3 == 2:
            time.sleep(rng.uniform(0.0, first))
        else:
            before = newest(job.workdir)
            job.wait_for(lambda job=job, before=before: newest(job.workdir) > before, 900, pause=0.1)
            time.sleep(rng.uniform(0.0, first / 5))
        seconds = job.kill()
        print(f"kill {number + 1} after {seconds:.1f} s, last checkpoint {newest(job.workdir)}", file=sys.stderr)
    last = start("killed")
    assert last.finish(1200) == 0, last.output()
    assert "is not whole" not in last.output()
    print("identical: {} arrays, {:,} numbers".format(*check_identical(last.workdir, reference.workdir)))


@pytest.mark.slow
def test_a_tokenizer_in_a_bucket_is_that_of_the_disk(folder, tmp_path):
    from vqgan_jax.models import fingerprint

    disk, there = untrained.save_tokenizer(tmp_path / "tokenizer"), untrained.save_tokenizer(folder / "tokenizer")
    assert fingerprint(vq.load_tokenizer(disk)) == fingerprint(vq.load_tokenizer(there))
