"""Configs of every earlier generation, and the checkpoints that hold them; `golden/configs` tells which these are."""

import copy
import functools
import json
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import untrained
from etils import epath

from vqgan_jax import cli, models
from vqgan_jax import config as configs
from vqgan_jax import prior as priors
from vqgan_jax.__main__ import main
from vqgan_jax.conditions.label import ClassLabel
from vqgan_jax.convert import ConvertError, write
from vqgan_jax.nn.autoencoder import VQGAN
from vqgan_jax.nn.quantizer import FSQ, GumbelQuantizer, VectorQuantizer
from vqgan_jax.train import loop, program, sharding, stored
from vqgan_jax.train.checkpoint import Checkpoints
from vqgan_jax.train.program import open_program

FOLDER = Path(__file__).parent / "golden" / "configs"
SHAPES = json.loads((FOLDER / "shapes.json").read_text())
GENERATIONS = {path.stem: json.loads(path.read_text()) for path in FOLDER.glob("*.json") if path.stem != "shapes"}
STORED = [(generation, page) for generation, pages in sorted(GENERATIONS.items()) for page in pages]
NEWEST = f"version_{stored.VERSION}"
TRAIN = Path(__file__).parent / "train"


def leaves(nested: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Values by `section.key`."""
    found = {}
    for key, value in nested.items():
        found |= leaves(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return found


@functools.cache
def arrays(config: Any) -> dict[str, str]:
    """Dtype and shape of each leaf of a run's state, as `shapes.json` has them."""
    state = models.state_shapes(config)
    named = jax.tree_util.tree_leaves_with_path(state)
    return {sharding.path_name(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in named}


def save(
    workdir: Path, nested: dict[str, Any], config: Any, data: Any = types.MappingProxyType({"next_index": 3})
) -> Path:
    """A run's folder whose one checkpoint holds `nested`; its arrays are those of `config`."""
    state = models.state_shapes(config)
    with Checkpoints(epath.Path(workdir)) as checkpoints:
        metrics = {"lpips" if config.stage == 1 else "nll": 1.0}
        checkpoints.save(3, untrained.randomised(state, 0.1), dict(data), nested, metrics)
    return workdir


@pytest.mark.parametrize(("generation", "page"), STORED)
def test_a_config_of_every_generation_makes_the_arrays_that_it_made(generation, page):
    assert arrays(stored.from_json(GENERATIONS[generation][page])) == SHAPES[page]


# Keys of earlier versions, by where they are now; what only other kinds of a section read is nowhere.
MOVED = {"loss.codebook_weight": "quantizer.codebook_weight", "loss.commitment_weight": "quantizer.commitment_weight"}
DROPPED = {"loss.kl_weight", "quantizer.noisy_eval", "quantizer.temperature", "quantizer.levels", "version"}
UNREAD = {
    "prior": ("num_tokens", "max_objects", "crop_points", "paper", "size", "tokenizer"),
    "boxes": ("size", "tokenizer"),
}


@pytest.mark.parametrize(("generation", "page"), STORED)
def test_what_a_config_gave_stays(generation, page):
    was, now = leaves(GENERATIONS[generation][page]), leaves(stored.current(GENERATIONS[generation][page]))
    unread = tuple(f"condition.{key}" for key in UNREAD.get(page, ()))
    was = {MOVED.get(key, key): value for key, value in was.items() if key not in DROPPED}
    was = {key: value for key, value in was.items() if not unread or not key.startswith(unread)}
    changed = {key for key in was if was[key] != now[key]}
    layout_in_a_line = page == "boxes" and "log.eval_metrics" not in was
    assert changed == ({"transformer.positions"} if layout_in_a_line else set())


VERSION_1 = {
    "gumbel": (
        {"codebook_size": 9, "decay": 0.5, "noisy_eval": True},
        {"kl_weight": 0.5, "codebook_weight": 0.0},
        GumbelQuantizer(codebook_size=9, noisy_eval=True, kl_weight=0.5),
    ),
    "fsq": ({"codebook_size": 8, "embed_dim": 1, "levels": [8]}, {"commitment_weight": 0.0}, FSQ(levels=(8,))),
    "vq": ({"levels": [8]}, {"commitment_weight": 2.0, "kl_weight": 0.0}, VectorQuantizer(commitment_weight=2.0)),
}


@pytest.mark.parametrize("kind", VERSION_1)
def test_version_1_held_keys_of_every_kind_and_the_losses_of_codes(kind):
    keys, loss, expected = VERSION_1[kind]
    nested = {"version": 1, "stage": 1, "quantizer": {"kind": kind} | keys, "loss": dict(loss)}
    assert stored.from_json(nested).quantizer == expected
    assert (nested["quantizer"], nested["loss"]) == ({"kind": kind} | keys, loss), "what was given stays"
    with pytest.raises(ValueError, match="no key `lovels`"):
        stored.from_json({"version": 1, "stage": 1, "quantizer": {"kind": "vq", "lovels": [8]}})


def test_what_a_config_lacked_does_what_the_program_did_before():
    first = stored.from_json(GENERATIONS["b1ac2ba"]["tokenizer"])
    assert (first.model.norm_groups, type(first.model), first.data.field) == (32, VQGAN, "image")
    assert (first.accumulate, first.mesh.zero1, first.optimizer.nonfinite) == (1, False, "stop")
    assert (first.data.timeout_seconds, first.log.eval_metrics) == (0, ()), "no batch had a deadline"
    prior = stored.from_json(GENERATIONS["693769a"]["prior"])
    assert prior.condition == ClassLabel(num_classes=11)


def test_until_version_6_attention_weights_were_dropped_like_all_else():
    for kind, expected in (("transformer", 0.3), ("pixelsnail", None)):
        nested = {"version": 5, "stage": 2, "transformer": {"kind": kind, "dropout": 0.3}}
        assert getattr(stored.from_json(nested).transformer, "attn_dropout", None) == expected


def test_the_keys_of_today_are_those_of_the_newest_version():
    """Fails where a key came, went or changed its name and `stored.VERSION` did not: see `stored` and the README."""
    for page, variant in {"tokenizer": "tiny.py", "prior": "tiny_prior.py"}.items():
        today = leaves(stored.to_json(cli.load_config(str(TRAIN / variant))))
        assert today.keys() == leaves(GENERATIONS[NEWEST][page]).keys()
    assert len(stored.STEPS) == stored.VERSION


@pytest.mark.parametrize("generation", ["b1ac2ba", "cb207cf", NEWEST])
def test_an_unknown_key_is_an_error_in_a_stored_config_too(generation):
    nested = copy.deepcopy(GENERATIONS[generation]["tokenizer"])
    nested["loss"]["disc_wieght"] = 1.0
    with pytest.raises(ValueError, match=r"no key `disc_wieght`.*`config\.loss\.disc_weight`"):
        stored.from_json(nested)


def test_a_config_survives_being_stored():
    config = cli.load_config(str(TRAIN / "tiny_prior.py"))
    assert stored.from_json(json.loads(json.dumps(stored.to_json(config)))) == config


def test_a_page_has_no_version():
    page = stored.current(GENERATIONS[NEWEST]["tokenizer"])
    with pytest.raises(ValueError, match="no key `version`"):
        configs.read(page | {"version": stored.VERSION})


@pytest.mark.parametrize("version", [stored.VERSION + 1, "1", True, None, -1])
def test_a_version_that_is_newer_or_none_is_an_error(version):
    with pytest.raises(ValueError, match=rf"`config.version`.* {stored.VERSION}, .*got {version!r}"):
        stored.current(GENERATIONS[NEWEST]["tokenizer"] | {"version": version})


def test_nothing_is_written_where_a_config_is_newer(tmp_path, capsys):
    newer = GENERATIONS[NEWEST]["tokenizer"] | {"version": stored.VERSION + 1, "loss": "another"}
    run = save(tmp_path / "run", newer, stored.from_json(GENERATIONS[NEWEST]["tokenizer"]))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(ValueError, match=r"config\.version"):
        models.load_tokenizer(run)
    assert main(["train", f"--config={TRAIN / 'tiny.py'}", f"--workdir={run}"])
    assert "config.version" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    (tmp_path / "config.json").write_text(json.dumps(newer))
    assert main(["train", f"--config={tmp_path / 'config.json'}", f"--workdir={tmp_path / 'new'}"])
    assert "config.version" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


# Runs


@pytest.mark.parametrize("generation", ["b1ac2ba", "cb207cf"])
def test_a_run_of_an_earlier_commit_is_loaded_and_gone_on_with(tmp_path, generation):
    """By its own config.json, with a key that the run lacks."""
    nested = GENERATIONS[generation]["tokenizer"]
    run = save(tmp_path, nested, stored.from_json(nested))
    (run / "config.json").write_text(json.dumps(nested))
    tokenizer = models.load_tokenizer(run)
    expected = untrained.randomised(models.state_shapes(stored.from_json(nested)), 0.1)
    jax.tree.map(np.testing.assert_array_equal, tokenizer.params, expected.ema["generator"])
    assert models.config_of(run) == stored.from_json(nested)
    config = cli.load_config(str(run / "config.json"), ["--config.data.timeout_seconds=600"])
    program_of_today = open_program(config, program.make_mesh(config))
    with Checkpoints(epath.Path(run)) as checkpoints:
        restored = loop.resume(program_of_today, checkpoints)
    assert restored.step == 3
    jax.tree.map(np.testing.assert_array_equal, restored.state.opt_state, expected.opt_state)


def test_a_converted_model_keeps_its_optimisers_that_came_without_a_state_of_data(tmp_path):
    """So the first `vqgan convert` wrote them; of today's, no state of data means that there are none."""
    nested = GENERATIONS["6f65d5e"]["tokenizer"]
    config = stored.from_json(nested)
    run, built = save(tmp_path, nested, config, {}), open_program(config, program.make_mesh(config))
    with Checkpoints(epath.Path(run)) as checkpoints:
        restored = loop.resume(built, checkpoints)
    expected = untrained.randomised(models.state_shapes(config), 0.1)
    jax.tree.map(np.testing.assert_array_equal, restored.state.opt_state, expected.opt_state)
    assert restored.data == {}


@pytest.mark.parametrize(("generation", "line"), [("6f65d5e", True), ("5aa565a", True), ("bed977f", False)])
def test_a_layout_stands_where_the_prior_learned_it(tmp_path, generation, line):
    """In a line to the left of the image, before its tokens stood where they say."""
    nested = copy.deepcopy(GENERATIONS[generation]["boxes"])
    nested["tokenizer"]["workdir"] = "tokenizer"
    save(tmp_path, nested, stored.from_json(nested))
    tokenizer = untrained.tokenizer(32)
    loaded = models.load_prior(tmp_path, tokenizer=tokenizer)
    module, length = loaded.module, loaded.module.condition.length
    condition = jnp.asarray(np.random.default_rng(0).integers(0, 60, (2, length)), jnp.int32)
    codes = jnp.zeros((2, 64), jnp.int32)
    found = priors.logits(module, loaded.params, condition, codes)
    places = jnp.broadcast_to(jnp.stack([jnp.zeros(length), -jnp.arange(length)], -1)[None], (2, length, 2))
    sequence = jnp.concatenate([module.prefix(condition), codes[:, :-1]], axis=1)
    in_a_line: Any = module.network.apply({"params": loaded.params}, sequence, places=places)
    same = np.allclose(found, in_a_line[:, length - 1 :], atol=1e-5)
    assert (module.network.positions, same) == ("rope2d_line" if line else "rope2d", line)


CENTERS = ("kind=centers", "num_classes=8", "num_tokens=65", "max_objects=6")


@pytest.mark.parametrize(
    ("generation", "flags", "message"),
    [
        ("6f65d5e", [], r"positions: rope2d_line -> rope2d\."),
        (NEWEST, ["--config.transformer.order=spiral_out"], r"order: raster -> spiral_out\."),
        (NEWEST, [f"--config.condition.{key}" for key in CENTERS], r"condition\.kind: boxes -> centers\."),
    ],
)
def test_a_run_keeps_what_it_began_with_where_the_arrays_do_not_tell(tmp_path, generation, flags, message):
    """A page's "rope2d" means another place of a layout's tokens than at first."""
    old, new = (GENERATIONS[each]["boxes"] for each in (generation, NEWEST))
    (tmp_path / "config.json").write_text(json.dumps(new))
    workdir = untrained.save_tokenizer(tmp_path / "tokenizer")
    config = cli.load_config(str(tmp_path / "config.json"), [f"--config.tokenizer.workdir={workdir}", *flags])
    built = open_program(config, program.make_mesh(config))
    tokenizer = old["tokenizer"] | {"fingerprint": built.config.tokenizer.fingerprint}
    run = save(tmp_path / "run", old | {"tokenizer": tokenizer}, stored.from_json(old))
    with Checkpoints(epath.Path(run)) as checkpoints, pytest.raises(ValueError, match=message):
        loop.resume(built, checkpoints)


@pytest.mark.parametrize("generation", ["693769a", NEWEST])
def test_an_export_of_an_earlier_commit_has_its_config(generation):
    nested = GENERATIONS[generation]["prior"]
    found, step = write.read_config({"key": json.dumps({"config": nested, "step": 7})}, "key")
    assert (found, step) == (stored.from_json(nested), 7)
    newer = json.dumps({"config": nested | {"version": stored.VERSION + 1}, "step": 7})
    with pytest.raises(ConvertError, match=r"config\.version"):
        write.read_config({"key": newer}, "key")
