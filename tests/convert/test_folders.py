"""From a file to a folder that every verb takes, and back to a file: the same numbers, and the same next step."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
import test_llamagen
import torch_files
import untrained
from published import TINY
from safetensors.numpy import save_file
from torch_files import write_zip

import vqgan_jax as vq
from vqgan_jax import convert, models
from vqgan_jax.__main__ import main
from vqgan_jax.convert import open_checkpoint, taming, trees, write
from vqgan_jax.convert.tensors import Checkpoint, ConvertError
from vqgan_jax.nn.quantizer import VectorQuantizer
from vqgan_jax.train.stage1 import Stage1


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def save(path, arrays):
    """A file of upstream's names."""
    if path.suffix == ".safetensors":
        save_file(arrays, path)
        return path
    stored = {name: torch_files.tensor(str(i), array) for i, (name, array) in enumerate(arrays.items())}
    return write_zip(path, {"state_dict": stored})


def test_a_tokenizer_becomes_a_folder_and_a_file_again(tmp_path, capsys):
    arrays = published.random(TINY["f8_batchnorm"])
    path = save(tmp_path / "a.ckpt", arrays)
    assert main(["convert", f"--input={path}", f"--output={tmp_path / 'run'}"]) == 0
    assert "discriminator: kept" in capsys.readouterr().out
    loaded, wanted = vq.load_tokenizer(tmp_path / "run"), published.load(taming, published.checkpoint(arrays))
    same(loaded.params, wanted.params)
    assert (
        main(["export", f"--workdir={tmp_path / 'run'}", "--to=taming", f"--output={tmp_path / 'b.safetensors'}"]) == 0
    )
    back = open_checkpoint(tmp_path / "b.safetensors").tensors
    unneeded = {each for each in arrays if each not in back}
    assert all("num_batches_tracked" in each or "loss.perceptual_loss" in each for each in unneeded)
    for each, tensor in back.items():
        np.testing.assert_array_equal(tensor.read(), arrays[each])
        assert tensor.dtype == arrays[each].dtype


@pytest.mark.slow
def test_a_prior_brings_its_tokenizers_and_may_be_moved(tmp_path):
    arrays = published.random(TINY["map"])
    path = save(tmp_path / "prior.ckpt", arrays)
    planned = convert.plan(open_checkpoint(path), num_heads=4)
    write.write_run(planned, tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    prior, loaded = vq.load_prior(tmp_path / "moved"), convert.load(path, num_heads=4)
    assert loaded.module == prior.module
    wanted = trees.read(planned)
    for each in (prior, loaded):
        same(each.params, wanted.params)
        same(each.tokenizer.params, wanted.tokenizer.params)
        same(each.condition.params, wanted.condition.params)
    assert prior.config.tokenizer.fingerprint == models.fingerprint(prior.tokenizer)
    write.write_file(write.read_run(tmp_path / "moved"), "taming", tmp_path / "back.safetensors")
    back = open_checkpoint(tmp_path / "back.safetensors").tensors
    assert {each for each in arrays if not each.endswith(("attn.mask", "colorize"))} == set(back)
    for each, tensor in back.items():
        np.testing.assert_array_equal(tensor.read(), arrays[each])


def test_our_own_names_keep_everything(tmp_path):
    """Config, averaged codebook, discriminator with its norms, and a prior with both its tokenizers."""
    for name, options in (("f8_batchnorm", {}), ("ema", {}), ("map", {"num_heads": 4})):
        converted = published.load(taming, published.checkpoint(published.random(TINY[name])), **options)
        write.write_file(converted, "safetensors", tmp_path / f"{name}.safetensors")
        opened = open_checkpoint(tmp_path / f"{name}.safetensors")
        assert convert.recognise(opened) == "safetensors"
        back = trees.read(convert.plan(opened))
        assert back.config == converted.config
        assert back.step == converted.step
        same(back.networks, converted.networks)
        for part in ("tokenizer", "condition"):
            if getattr(converted, part) is not None:
                same(getattr(back, part).params, getattr(converted, part).params)


def test_diffusers_and_llamagen_go_round(tmp_path):
    arrays = published.random(TINY["f2"])
    converted = published.load(taming, published.checkpoint(arrays))
    write.write_file(converted, "diffusers", tmp_path / "folder")
    back = trees.read(convert.plan(open_checkpoint(tmp_path / "folder")))
    same(back.params, converted.params)
    assert back.config.model == converted.config.model
    weights = {"codebook_weight": 1.0, "commitment_weight": 0.25}  # that LlamaGen trains with; the file tells none
    directions = dataclasses.replace(converted.config.quantizer, unit_length=True, **weights)
    unit = converted._replace(config=dataclasses.replace(converted.config, quantizer=directions))
    write.write_file(unit, "llamagen", tmp_path / "b.safetensors")
    back = trees.read(convert.plan(open_checkpoint(tmp_path / "b.safetensors")))
    same(back.params, converted.params)
    assert back.config.quantizer == unit.config.quantizer
    with pytest.raises(ConvertError, match=r"quantizer\.unit_length False; this one has True"):
        write.write_file(unit, "taming", tmp_path / "c.safetensors")
    assert not (tmp_path / "c.safetensors").exists()


@pytest.mark.slow
def test_training_goes_on_with_the_files_own_optimisers(tmp_path):
    """The next step of the converted run is the step of a state with the file's moments, by hand."""
    arrays = published.random(TINY["f8_batchnorm"])
    file, (generator, discriminator) = published.lightning(arrays, np.random.default_rng(1))
    path = write_zip(tmp_path / "last.ckpt", file)
    write.write_run(convert.plan(open_checkpoint(path)), tmp_path / "run")
    whole = lambda state: {name: getattr(state, name) for name in ("step", "params", "opt_state", "stats")}
    restored, config = models.restore(tmp_path / "run", models.configs.Stage1, whole)
    state = restored.state
    assert (int(state["step"]), restored.step) == (40, 40)
    wanted = published.load(taming, published.checkpoint(arrays | generator | discriminator))
    task = Stage1.from_config(config)
    for network, moments in ((name, wanted.networks[name]) for name in ("generator", "discriminator")):
        # Adam by its equations, after five steps, with gradients of zero.
        gradients = jax.tree.map(jnp.zeros_like, moments)
        update = jax.jit(task.optimizers[network].update)
        updates, _ = update(gradients, state["opt_state"][network], state["params"][network])
        rate, b1, b2 = config.optimizer.learning_rate, config.optimizer.b1, config.optimizer.b2
        step = lambda m, rate=rate, b1=b1, b2=b2: (
            -rate * (b1 * m / (1 - b1**6)) / (np.sqrt(b2 * m**2 / (1 - b2**6)) + 1e-8)
        )
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-9)
        jax.tree.map(close, updates, jax.tree.map(step, moments))


@pytest.mark.slow
def test_training_goes_on_in_a_converted_folder(tmp_path, capsys):
    """With new optimisers where the file had none: the next checkpoint holds whole ones."""
    arrays = published.random(TINY["actnorm"])
    path = save(tmp_path / "a.ckpt", arrays)
    write.write_run(convert.plan(open_checkpoint(path)), tmp_path / "run")
    changed = {
        "data.source": "photos", "data.image_size": 64, "data.resize": (64, 64), "batch_size": 8, "steps": 2,
        "log.eval_examples": 8, "loss.perceptual_weight": 0.0,
    }  # fmt: skip
    flags = [f"--config.{key}={value}" for key, value in changed.items()]
    command = ["train", f"--config={tmp_path / 'run' / 'config.json'}", f"--workdir={tmp_path / 'run'}", *flags]
    assert main(command) == 0
    assert "resumed from step 0" in capsys.readouterr().out
    before, after = published.load(taming, published.checkpoint(arrays)), vq.load_tokenizer(tmp_path / "run")
    assert after.step == 2
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before.params, after.params)
    assert 0 < max(jax.tree.leaves(moved)) <= 2.5 * 12 * 4.5e-6  # Adam's two first steps, of at most the rate
    assert main(command[:1] + [each.replace("steps=2", "steps=3") for each in command[1:]]) == 0


def test_nothing_is_left_behind(tmp_path):
    """A file that changes or a folder that is there: an error, and no half folder."""
    arrays = published.random(TINY["f2"])
    planned = convert.plan(open_checkpoint(save(tmp_path / "a.ckpt", arrays)))
    (tmp_path / "a.ckpt").write_bytes(b"PK\x03\x04")
    with pytest.raises(ConvertError):
        write.write_run(planned, tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ckpt"]
    (tmp_path / "run").mkdir()
    with pytest.raises(ConvertError, match="needs a folder of its own"):
        write.write_run(planned, tmp_path / "run")


def test_a_file_is_loaded_straight_into_a_sharding(tmp_path):
    arrays = published.random(TINY["f2"])
    path = save(tmp_path / "a.safetensors", arrays)
    mesh = jax.make_mesh((8,), ("fsdp",))
    spec = lambda leaf: jax.NamedSharding(mesh, jax.P("fsdp") if leaf.shape[:1] == (32,) else jax.P())
    tokenizer = convert.load(path, shardings=lambda shapes: jax.tree.map(spec, shapes))
    wanted = published.load(taming, published.checkpoint(arrays))
    same(tokenizer.params, wanted.params)
    jax.tree.map(lambda leaf: leaf.sharding == spec(leaf) or pytest.fail(str(leaf.sharding)), tokenizer.params)


def test_what_the_models_own_config_tells(tmp_path, capsys):
    path = save(tmp_path / "prior.ckpt", published.random(TINY["plain"]))
    (tmp_path / "config.yaml").write_text(
        "model:\n  params:\n    cond_stage_key: class_label\n    transformer_config: {params: {n_head: 2}}\n"
    )
    assert main(["inspect", str(path), f"--config={tmp_path / 'config.yaml'}"]) == 0
    assert "2 heads, condition 'class'" in " ".join(capsys.readouterr().out.split())
    unconditional = {"model": {"params": {"cond_stage_config": "__is_unconditional__"}}}
    (tmp_path / "config.json").write_text(json.dumps(unconditional))
    assert main(["inspect", str(path), "--heads=4", f"--config={tmp_path / 'config.json'}"]) == 0
    assert "4 heads, condition 'none'" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "bad.yaml").write_text("model: [")
    assert main(["inspect", str(path), f"--config={tmp_path / 'bad.yaml'}"]) == 1
    assert "must be upstream's YAML" in capsys.readouterr().err


def test_a_transformer_whose_tokenizer_is_another_file(tmp_path):
    path, tokenizer = save(tmp_path / "gpt.pt", test_llamagen.TINY), save(tmp_path / "vq.pt", test_llamagen.TOKENIZER)
    alone = convert.plan(open_checkpoint(path), **test_llamagen.OPTIONS)
    with pytest.raises(ConvertError, match="this file has none"):
        write.write_run(alone, tmp_path / "run")
    sizes = [f"--heads={test_llamagen.HEADS}", f"--codes={test_llamagen.SIDE**2}", f"--tokenizer={tokenizer}"]
    assert main(["convert", f"--input={path}", *sizes, f"--output={tmp_path / 'run'}"]) == 0
    prior = vq.load_prior(tmp_path / "run")
    same(prior.params, trees.read(alone).params)
    assert (prior.tokenizer.module.quantizer.unit_length, prior.step) == (True, 0)


@pytest.mark.parametrize(
    ("name", "sign"),
    [("maskgit", "params/encoder/ResBlock_0/Conv_0/kernel"), ("dalle_mini", "encoder/down_0/block_0/conv1/kernel")],
)
def test_flaxs_files_are_told_by_their_names(name, sign):
    assert convert.recognise(Checkpoint({sign: published.as_tensor(np.zeros(3))}, {})) == name


def test_an_unknown_file_and_a_wrong_option_are_told():
    strange = Checkpoint({"a": published.as_tensor(np.zeros(3))}, {})
    with pytest.raises(ConvertError, match="its names begin with a"):
        convert.plan(strange)
    with pytest.raises(ConvertError, match="must be one of safetensors"):
        convert.plan(strange, "onnx")
    with pytest.raises(ConvertError, match="'diffusers' has no option `num_heads`"):
        convert.plan(strange, "diffusers", num_heads=3)


def test_a_run_of_ours_with_codes_as_directions(tmp_path):
    """Our own defaults (unit length, revival) survive our own format, and the converted folder trains on."""
    run = untrained.save_tokenizer(tmp_path / "run")
    before = vq.load_tokenizer(run)
    write.write_file(write.read_run(run), "safetensors", tmp_path / "a.safetensors")
    write.write_run(convert.plan(open_checkpoint(tmp_path / "a.safetensors")), tmp_path / "again")
    after = vq.load_tokenizer(tmp_path / "again")
    same(after.params, before.params)
    assert after.step == before.step == 1


def test_codes_that_move_together_are_exported_as_a_plain_codebook(tmp_path):
    """And a discriminator that upstream has no place for is left out."""
    flags = ["quantizer.kind=simvq", "quantizer.codebook_size=32", "quantizer.embed_dim=8"]
    flags += ["discriminator.kind=patch_v2", "discriminator.channels=32", "discriminator.num_stages=1"]
    run = untrained.save_tokenizer(tmp_path / "run", flags=[f"--config.{flag}" for flag in flags])
    before, images = vq.load_tokenizer(run), jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1.0)
    write.write_file(write.read_run(run), "taming", tmp_path / "a.safetensors")
    file = open_checkpoint(tmp_path / "a.safetensors")
    assert not any(name.startswith("loss.") for name in file.tensors)
    write.write_run(convert.plan(file), tmp_path / "again")
    again, indices = vq.load_tokenizer(tmp_path / "again"), vq.encode(before, images)
    assert type(again.module.quantizer) is VectorQuantizer
    np.testing.assert_array_equal(vq.encode(again, images), indices)
    np.testing.assert_allclose(vq.decode(again, indices), vq.decode(before, indices), atol=1e-5)


def test_bits_have_no_place_in_upstreams_files(tmp_path):
    flags = ["--config.quantizer.kind=lfq", "--config.quantizer.bits=5"]
    run = untrained.save_tokenizer(tmp_path / "run", flags=flags)
    with pytest.raises(ConvertError, match="upstream's quantizers are vq, gumbel; this tokenizer's is 'lfq'"):
        write.write_file(write.read_run(run), "taming", tmp_path / "a.safetensors")
