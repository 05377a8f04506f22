import gc
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vqgan_jax.data import storage
from vqgan_jax.train import checkpoint
from vqgan_jax.train.checkpoint import BROKEN, UNREAD, WHOLE, Checkpoints, verdict
from vqgan_jax.train.sharding import make_mesh

# Orbax leaves half-finished reads behind where a restore of damaged arrays fails; they complain once collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def collected(monkeypatch):
    """Such remains are collected here, not in another file's test; tries follow each other at once."""
    monkeypatch.setattr(checkpoint, "WAITS", (0.0, 0.0, 0.0))
    yield
    gc.collect()


@pytest.fixture
def warnings(caplog):
    """A function that gives what was logged."""
    absl = logging.getLogger("absl")
    absl.addHandler(caplog.handler)
    yield lambda: list(dict.fromkeys(record.getMessage() for record in caplog.records))
    absl.removeHandler(caplog.handler)


def state(step: int):
    """A small state; every array depends on the step."""
    key = jax.random.key(step)

    def draw(i, *shape):
        return jax.random.normal(jax.random.fold_in(key, i), shape)

    return {
        "step": jnp.asarray(step),
        "params": {
            "generator": {"kernel": draw(0, 16, 8), "bias": draw(1, 8)},
            "discriminator": {"kernel": draw(2, 8, 4)},
        },
        "stats": {"hits": jnp.arange(8) + step, "half": draw(3, 8).astype(jnp.bfloat16)},
        "ema": {},
    }


def shapes(tree, sharding=None):
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)
    jax.tree.map(lambda x, y: None if x.dtype == y.dtype else pytest.fail(f"{x.dtype} {y.dtype}"), a, b)


def save(workdir, *saved_steps: int, keep: int = 5, lpips: dict[int, float] | None = None):
    with Checkpoints(epath.Path(workdir), keep=keep) as checkpoints:
        for step in saved_steps:
            metrics = {"lpips": lpips[step]} if lpips and step in lpips else None
            checkpoints.save(step, state(step), {"position": step}, {"seed": step}, metrics)


def newest(workdir, abstract=lambda config, _: shapes(state(0)), **options):
    with Checkpoints(epath.Path(workdir), keep=5) as checkpoints:
        return checkpoints.newest(abstract, **options)


def kept(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


# Round trips


def test_everything_comes_back_to_the_bit(tmp_path):
    save(tmp_path, 3, 7)
    restored = newest(tmp_path)
    assert_equal(restored.state, state(7))
    assert (restored.step, restored.data, restored.config) == (7, {"position": 7}, {"seed": 7})


def test_no_checkpoint_is_none(tmp_path):
    assert newest(tmp_path) is None


def test_a_checkpoint_of_one_mesh_is_restored_onto_another(tmp_path):
    source, target = make_mesh(1, 8, 1), make_mesh(2, 1, 4)

    def by_mesh(mesh, axes):
        return lambda x: NamedSharding(mesh, P(axes) if x.ndim and x.shape[0] % 8 == 0 else P())

    placed = jax.tree.map(lambda x: jax.device_put(x, by_mesh(source, "fsdp")(x)), state(5))
    with Checkpoints(epath.Path(tmp_path)) as checkpoints:
        checkpoints.save(5, placed, {}, {}, None)
    where = by_mesh(target, "tensor")
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(x)), state(5))
    restored = newest(tmp_path, lambda config, _: wanted).state
    assert_equal(restored, state(5))
    kernel = restored["params"]["generator"]["kernel"]
    assert kernel.sharding == where(kernel)
    assert kernel.addressable_shards[0].data.shape == (4, 8)


def test_a_part_of_the_state_can_be_restored_alone(tmp_path):
    save(tmp_path, 2)
    wanted = {"params": {"generator": shapes(state(2)["params"]["generator"])}}
    restored = newest(tmp_path, lambda config, _: wanted, partial=True)
    assert_equal(restored.state, {"params": {"generator": state(2)["params"]["generator"]}})


def test_abstract_gets_the_saved_config_and_its_errors_are_the_callers(tmp_path):
    save(tmp_path, 4)

    def refuse(config, _):
        raise ValueError(f"seed {config['seed']} does not fit")

    with pytest.raises(ValueError, match="seed 4 does not fit"):
        newest(tmp_path, refuse)
    assert kept(tmp_path) == [4], "a config that does not fit is no reason to set a whole checkpoint aside"


def test_saving_copies_before_it_returns(tmp_path):
    """The step after a save donates the state's buffers."""
    current = state(1)
    with Checkpoints(epath.Path(tmp_path)) as checkpoints:
        checkpoints.save(1, current, {}, {}, None)
        jax.tree.map(lambda x: x.delete(), current)
    assert_equal(newest(tmp_path).state, state(1))


# Broken checkpoints


def truncate(folder: Path):
    """Cuts every file of array data in half."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name == "d"]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(folder: Path):
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()


def without(pattern: str):
    def remove(folder: Path):
        files = list(folder.rglob(pattern))
        assert files
        for path in files:
            path.unlink()

    return remove


DAMAGES = {
    "truncated": truncate,
    "empty": empty,
    "no_metadata": without("_METADATA"),
    "no_commit": without("_CHECKPOINT_METADATA"),
    "no_config": lambda folder: empty(folder / "config"),
}


@pytest.mark.parametrize("damage", ["truncated", "empty", "no_config"])
def test_the_newest_whole_checkpoint_is_used_and_the_broken_one_set_aside(tmp_path, damage, warnings):
    save(tmp_path, 1, 2)
    DAMAGES[damage](tmp_path / "checkpoints" / "2")
    with Checkpoints(epath.Path(tmp_path), keep=5) as checkpoints:
        restored = checkpoints.newest(lambda config, _: shapes(state(0)))
        assert restored is not None
        assert restored.step == 1
        assert_equal(restored.state, state(1))
        checkpoints.save(2, state(2), {"position": 2}, {"seed": 2}, None)
    assert any("checkpoint 2" in message and "set aside" in message for message in warnings())
    assert (tmp_path / "checkpoints" / "2.broken").is_dir()
    again = newest(tmp_path)
    assert again.step == 2
    assert_equal(again.state, state(2))


def test_a_step_that_breaks_twice_is_set_aside_twice(tmp_path):
    for _ in range(2):
        save(tmp_path, 1, 2)
        truncate(tmp_path / "checkpoints" / "2")
        assert newest(tmp_path).step == 1
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*broken*")) == ["2.broken", "2.broken1"]


@pytest.mark.parametrize("damage", ["no_metadata", "no_commit"])
def test_a_checkpoint_without_a_small_file_is_never_returned_half(tmp_path, damage):
    """The arrays are whole: to use them is as good as to set them aside."""
    save(tmp_path, 1, 2)
    DAMAGES[damage](tmp_path / "checkpoints" / "2")
    restored = newest(tmp_path)
    assert restored.step in (1, 2)
    assert_equal(restored.state, state(restored.step))


def test_all_broken_is_none(tmp_path):
    save(tmp_path, 1)
    truncate(tmp_path / "checkpoints" / "1")
    assert newest(tmp_path) is None


def test_a_reader_sets_nothing_aside(tmp_path):
    save(tmp_path, 1, 2)
    truncate(tmp_path / "checkpoints" / "2")
    with Checkpoints(epath.Path(tmp_path), read_only=True) as checkpoints:
        restored = checkpoints.newest(lambda config, _: shapes(state(0)))
    assert restored is not None
    assert restored.step == 1
    assert kept(tmp_path) == [1, 2]


# A storage that fails now and then


STATE, SMALL = (ocp.PyTreeCheckpointHandler, "2/state"), (ocp.JsonCheckpointHandler, "2/config")
BUSY = {
    "503": OSError("503 Slow Down"),
    "timeout": TimeoutError("the read timed out"),
    "tensorstore": ValueError("UNAVAILABLE: Error reading d/0: 503"),
    "client": RuntimeError("EndpointConnectionError"),  # clients of stores have errors of their own
}


def failing(monkeypatch, place, error: Exception, *, times: int):
    """The first reads of a place are this error."""
    handler, within = place
    read, left = handler.restore, iter(range(times))

    def fails(self, directory, *arguments, **options):
        if within in str(directory) and next(left, None) is not None:
            raise error
        return read(self, directory, *arguments, **options)

    monkeypatch.setattr(handler, "restore", fails)


@pytest.mark.parametrize("error", [*BUSY.values(), ValueError("DATA_LOSS: cut")], ids=[*BUSY, "data_loss"])
@pytest.mark.parametrize("place", [STATE, SMALL], ids=["state", "small"])
def test_a_read_that_fails_once_is_tried_again_and_renames_nothing(tmp_path, monkeypatch, warnings, place, error):
    save(tmp_path, 1, 2)
    failing(monkeypatch, place, error, times=1)
    restored = newest(tmp_path)
    assert restored.step == 2
    assert_equal(restored.state, state(2))
    assert kept(tmp_path) == [1, 2]
    (message,) = warnings()
    assert message.startswith(
        f"checkpoint 2 in {tmp_path}/checkpoints cannot be read and is tried again in 0 s: {error}"
    )


@pytest.mark.parametrize("error", BUSY.values(), ids=[*BUSY])
def test_a_storage_that_stays_away_is_an_error_and_renames_nothing(tmp_path, monkeypatch, error):
    save(tmp_path, 1, 2)
    failing(monkeypatch, STATE, error, times=100)
    with pytest.raises(OSError, match=r"checkpoint 2 in .* must be readable .* after 4 tries: .* nothing is renamed"):
        newest(tmp_path)
    assert kept(tmp_path) == [1, 2]


def test_a_listing_that_fails_once_is_tried_again(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    listing, left = ocp.CheckpointManager._load_checkpoint_infos, iter([OSError("503")])

    def fails(self, *arguments, **options):
        for error in left:
            raise error
        return listing(self, *arguments, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "_load_checkpoint_infos", fails)
    assert newest(tmp_path).step == 2


BROKEN_FILE, AWAY = ValueError("DATA_LOSS: cut"), OSError("503")


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([BROKEN_FILE] * 4, BROKEN),
        ([FileNotFoundError("d/0")] * 4, BROKEN),
        ([AWAY, AWAY, BROKEN_FILE, BROKEN_FILE], BROKEN),
        ([AWAY, AWAY, AWAY, BROKEN_FILE], UNREAD),
        ([AWAY] * 4, UNREAD),
        ([PermissionError("403")] * 4, UNREAD),
        ([ValueError("PERMISSION_DENIED: 403")] * 4, UNREAD),
    ],
)
def test_only_a_repeated_read_proves_a_checkpoint_broken(errors, expected):
    assert verdict(errors) == expected


def others(monkeypatch, of_process_1):
    """This is process 0 of two; the other gives these numbers, one a meeting."""
    answers = iter(of_process_1)

    def gathered(value: int) -> np.ndarray:
        other = next(answers)
        return np.array([value, value if other is None else other], np.int32)

    monkeypatch.setattr(checkpoint, "gathered", gathered)


def test_what_the_other_process_finds_broken_is_not_used_here(tmp_path, monkeypatch, warnings):
    save(tmp_path, 1, 2)
    others(monkeypatch, [None, WHOLE, BROKEN, None, None, WHOLE, WHOLE])
    restored = newest(tmp_path)
    assert restored.step == 1
    assert_equal(restored.state, state(1))
    assert warnings()[-1].endswith("set aside as 2.broken: process 1 found it broken")


def test_what_the_other_process_cannot_read_is_an_error_here(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    others(monkeypatch, [None, WHOLE, UNREAD])
    with pytest.raises(OSError, match="process 1 of 2 cannot"):
        newest(tmp_path)
    assert kept(tmp_path) == [1, 2]


def test_a_step_that_only_the_other_process_sees_is_an_error(tmp_path, monkeypatch):
    save(tmp_path, 1)
    others(monkeypatch, [5, WHOLE])
    with pytest.raises(OSError, match="is not seen by process 0; all must see it"):
        newest(tmp_path)


# What is kept


def test_the_newest_and_the_best_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, keep=2, lpips={1: 0.5, 2: 0.1, 3: 0.4})
    assert kept(tmp_path) == [2, 4, 5]


def test_the_best_is_kept_also_by_a_run_that_goes_on(tmp_path):
    """What was held out lies in the checkpoint, and a figure that is not finite is none."""
    save(tmp_path, 1, 2, keep=1, lpips={1: 0.1, 2: 0.5})
    save(tmp_path, 3, 4, 5, keep=1, lpips={3: 0.9, 4: float("nan")})
    assert kept(tmp_path) == [1, 5]
    with Checkpoints(epath.Path(tmp_path), read_only=True) as checkpoints:
        assert [checkpoints.metrics(step) for step in checkpoints.steps] == [{"lpips": 0.1}, {}]


def test_without_metrics_only_the_newest_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, keep=1)
    assert kept(tmp_path) == [3]


def test_a_step_that_is_there_is_left_alone(tmp_path):
    save(tmp_path, 1)
    with Checkpoints(epath.Path(tmp_path)) as checkpoints:
        checkpoints.save(1, state(99), {}, {}, None)
        assert checkpoints.latest == 1
    assert_equal(newest(tmp_path).state, state(1))


def test_a_json_file_is_whole_or_the_old_one(tmp_path):
    path = epath.Path(tmp_path) / "config.json"
    storage.write_json(path, {"a": [1, 2]})
    with pytest.raises(TypeError):
        storage.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": [1, 2]}
    storage.write_json(path, {"a": 3})
    assert json.loads(path.read_text()) == {"a": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
