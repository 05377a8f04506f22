"""Names instead of files, against a hub on this machine: fetched once, checked, kept; published whole or not at all."""

import dataclasses
import hashlib
import json
import sys
from pathlib import Path

import jax
import loopback_hub
import numpy as np
import published
import pytest
import untrained
from published import TINY
from safetensors.numpy import save
from verbs import refused, succeeds, told

import vqgan_jax as vq
from vqgan_jax import convert, models
from vqgan_jax.convert import hub as names
from vqgan_jax.convert import taming, write
from vqgan_jax.convert.tensors import ConvertError
from vqgan_jax.evaluate.protocol import Result

pytest.importorskip("huggingface_hub")
from huggingface_hub import constants, utils

FOREIGN = save(published.random(TINY["f2"]))
# Libraries of the library.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub, as HF_ENDPOINT would name it, with empty caches; no waiting between attempts."""
    with loopback_hub.serving() as server:
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_XET": True,
            "HF_TOKEN_PATH": str(tmp_path / "token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("VQGAN_JAX_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr("time.sleep", lambda _: None)
        utils.disable_progress_bars()
        utils.logging.set_verbosity_error()
        server.repos["they/vq"] = {"vq.safetensors": FOREIGN, "README.md": b"# Theirs"}
        yield server


def fetched(hub, file):
    """How often a file was asked for."""
    return sum(method == "GET" and path.endswith(f"/{file}") for method, path in hub.requests)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A tokenizer's run with a sheet of two steps, and a figure of its own step and of an earlier one."""
    folder = untrained.save_tokenizer(tmp_path_factory.mktemp("run"))
    (folder / "images").mkdir()
    for step in (1, 2):
        (folder / "images" / f"reconstructions_{step:07d}.png").write_bytes(b"sheet %d" % step)
    (folder / "evaluation").mkdir()
    texts = dict.fromkeys((field.name for field in dataclasses.fields(Result)), "none")
    texts |= {"metric": "psnr", "unit": "dB", "variant": "mean", "subject": "recons", "reference": "scenes/validation"}
    numbers = {"subject_count": 8, "reference_count": 8, "seed": 0, "sampling": {}, "versions": {"vqgan-jax": "0"}}
    figures = [texts | numbers | {"value": 10.0 + step, "step": step} for step in (0, 1)]
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps({"results": figures}))
    return folder


def test_a_tokenizer_goes_to_the_hub_and_back_bit_for_bit(hub, run, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", loopback_hub.TOKEN)
    succeeds("export", f"--workdir={run}", "--to=hub", "--output=hf://me/mine")
    assert f"{hub.url}/me/mine/commit/" in capsys.readouterr().out
    assert hub.commits == [4], "one commit"
    files = hub.repos["me/mine"]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors", "reconstructions.png"]
    assert files["reconstructions.png"] == b"sheet 2"
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: vqgan-jax\n")
    assert 'vq.load_tokenizer("hf://me/mine")' in card
    assert "| psnr | 11 | dB | mean | 8 recons | scenes/validation |" in card
    assert "| psnr | 10 |" not in card, "of another step"

    before, after = vq.load_tokenizer(run), vq.load_tokenizer("hf://me/mine")
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert (after.module, after.step, after.config) == (before.module, before.step, before.config)
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1.0)
    indices = vq.encode(before, images)
    np.testing.assert_array_equal(vq.encode(after, images), indices)
    np.testing.assert_array_equal(vq.decode(after, indices), vq.decode(before, indices))
    assert "torch" not in sys.modules


@pytest.mark.slow
def test_a_prior_takes_its_tokenizers_along(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", loopback_hub.TOKEN)
    planned = convert.plan(published.checkpoint(published.random(TINY["map"])), num_heads=4)
    write.write_run(planned, tmp_path / "run")
    succeeds("export", f"--workdir={tmp_path / 'run'}", "--to=hub", "--output=hf://me/prior")
    assert 'vq.load_prior("hf://me/prior")' in hub.repos["me/prior"]["README.md"].decode()
    before, after = vq.load_prior(tmp_path / "run"), vq.load_prior("hf://me/prior")
    assert after.condition is not None
    for expected, leaf in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(leaf, expected)


def test_a_foreign_model_is_fetched_once_and_is_there_without_the_hub(hub):
    expected = published.load(taming, published.checkpoint(published.random(TINY["f2"])))
    for _ in range(2):
        jax.tree.map(np.testing.assert_array_equal, vq.load_tokenizer("hf://they/vq").params, expected.params)
    assert fetched(hub, "vq.safetensors") == 1
    hub.shutdown()
    hub.server_close()
    jax.tree.map(np.testing.assert_array_equal, vq.load_tokenizer("hf://they/vq").params, expected.params)


def test_a_branch_that_moves_is_another_version(hub):
    first, commit = names.fetch("hf://they/vq"), loopback_hub.commit(hub.repos["they/vq"])
    hub.repos["they/vq"]["README.md"] = b"# New"
    assert names.fetch("hf://they/vq") != first
    hub.repos["they/vq"]["README.md"] = b"# Theirs"
    assert names.fetch(f"hf://they/vq@{commit}") == first


def test_verbs_take_names(hub, tmp_path, capsys):
    out = told(capsys, "inspect", "hf://they/vq")
    assert "taming: a tokenizer: f2" in out
    succeeds("convert", "--input=hf://they/vq/vq.safetensors", f"--output={tmp_path / 'run'}")
    succeeds("export", "--workdir=hf://they/vq", "--to=taming", f"--output={tmp_path / 'a.safetensors'}")
    assert (tmp_path / "a.safetensors").is_file()


def test_a_folder_of_a_repository_brings_its_config(hub, tmp_path, capsys):
    write.write_file(
        published.load(taming, published.checkpoint(published.random(TINY["f2"]))), "diffusers", tmp_path / "theirs"
    )
    files = {f"vqvae/{path.name}": path.read_bytes() for path in (tmp_path / "theirs").iterdir()}
    hub.repos["they/pipeline"] = files | {"vqvae/diffusion_pytorch_model.fp16.safetensors": b"another", "a.ckpt": b"1"}
    assert "diffusers: a tokenizer: f2" in told(capsys, "inspect", "hf://they/pipeline/vqvae")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf://they/none", "hf://they/none must be a repository that you may use"),
        ("hf://they/private", "give a token by `hf auth login` or HF_TOKEN"),
        ("hf://they/vq@older", "hf://they/vq@older must name a branch, tag or commit that is there"),
        ("hf://they/vq/other.ckpt", "the repository has vq.safetensors. Name one of them"),
        ("hf://they/two", "the repository has a.ckpt, b.ckpt. Name one of them"),
        ("hf://they", "hf://they"),
        ("hf://datasets/they/vq", "a name must be of a model"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(hub, capsys, name, words):
    hub.repos |= {"they/private": hub.repos["they/vq"], "they/two": {"a.ckpt": b"", "b.ckpt": b""}}
    hub.private = {"they/private"}
    assert words in refused(capsys, "inspect", name)


def test_a_token_opens_what_is_private(hub, monkeypatch):
    hub.private = {"they/vq"}
    monkeypatch.setenv("HF_TOKEN", loopback_hub.TOKEN)
    assert names.fetch("hf://they/vq").is_file()


def test_a_hub_that_is_down_is_one_line(hub, capsys):
    hub.shutdown()
    hub.server_close()
    words = refused(capsys, "inspect", "hf://they/vq")
    assert "hf://they/vq could not be reached" in words
    assert "Connection" in words or "refused" in words


def test_another_file_than_the_hub_declares_is_not_used(hub, monkeypatch):
    """A mirror that sends other bytes under the same hash."""
    whole = loopback_hub.entry
    false = lambda path, content: whole(path, content[:-1] + b"?" if path.endswith("vq.safetensors") else content)
    with monkeypatch.context() as patch:
        patch.setattr(loopback_hub, "entry", false)
        with pytest.raises(ConvertError, match=r"vq\.safetensors must have SHA-256 .* was deleted"):
            vq.load_tokenizer("hf://they/vq")
        with pytest.raises(ConvertError, match="was deleted"):
            names.fetch("hf://they/vq")
    assert vq.load_tokenizer("hf://they/vq").codebook_size


def test_a_download_that_stops_goes_on(hub):
    hub.fault = {"vq.safetensors": "cut"}
    assert names.fetch("hf://they/vq").read_bytes() == FOREIGN
    assert fetched(hub, "vq.safetensors") == 2


@pytest.mark.parametrize("part", ["/lfs/", "/commit/", "/preupload/"])
def test_an_upload_that_stops_publishes_nothing(hub, run, monkeypatch, capsys, part):
    monkeypatch.setenv("HF_TOKEN", loopback_hub.TOKEN)
    hub.fault = {part: "refuse"}
    export = ("export", f"--workdir={run}", "--to=hub", "--output=hf://me/mine")
    assert "nothing was published" in refused(capsys, *export)
    assert hub.repos["me/mine"] == {}
    hub.fault = {}
    succeeds(*export)
    assert hub.commits == [4]


def test_publishing_needs_a_token_and_the_name_of_a_repository(hub, run, capsys):
    export = ("export", f"--workdir={run}", "--to=hub")
    assert "nothing was published" in refused(capsys, *export, "--output=hf://me/mine")
    for output in ("hf://me/mine/model.safetensors", "out.safetensors"):
        assert "a model is published as hf://OWNER/NAME" in refused(capsys, *export, f"--output={output}")
    assert hub.repos.keys() == {"they/vq"}


def test_without_the_library_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("vqgan_jax.data.storage.there", lambda module: False)
    assert "pip install 'vqgan-jax[hub]'" in refused(capsys, "inspect", "hf://they/vq")


def test_a_prior_begins_with_a_tokenizer_of_the_hub(hub):
    """Also where a config names it."""
    folder = models.find_tokenizer("hf://they/vq")
    assert (folder / "checkpoints").is_dir()
    assert Path(folder) == names.run_folder("hf://they/vq")


# Published checkpoints


def test_the_table_says_where_each_checkpoint_is(capsys):
    rows = names.published()
    for name, row in rows.items():
        assert bool(row.url) != bool(row.page), name
        assert (row.url or row.page).startswith(("https://", "hf://")), name
        assert bool(row.rfid) == bool(row.source), name
    assert "vqgan_imagenet_f16" in told(capsys, "models")
    page = next(name for name, row in rows.items() if row.page)
    assert f"page: {rows[page].page}" in told(capsys, "models", page)
    assert "a name must be one of" in refused(capsys, "models", "none")
    assert rows[page].page in refused(capsys, "inspect", page)


def row(hub, **changes):
    hub.repos["they/web"] = {"a.safetensors": FOREIGN}
    return names.Published("a tokenizer", url=f"{hub.url}/they/web/resolve/main/a.safetensors", **changes)


def test_a_published_checkpoint_is_fetched_by_its_name(hub, monkeypatch, capsys):
    rows = {"web": row(hub, size=len(FOREIGN), sha256=hashlib.sha256(FOREIGN).hexdigest())}
    rows["named"] = names.Published("the same", url="hf://they/vq", sha256=rows["web"].sha256)
    monkeypatch.setattr(names, "published", lambda: rows)
    for name in ("web", "web", "named"):
        assert "taming: a tokenizer: f2" in told(capsys, "inspect", name)
    assert sum("/they/web/" in path for _, path in hub.requests) == 1


@pytest.mark.parametrize(
    ("changes", "words"), [({"size": 5}, "must have 5 bytes"), ({"sha256": "0" * 64}, "must have SHA-256 0000")]
)
def test_another_file_than_was_published_is_not_kept(hub, monkeypatch, tmp_path, changes, words):
    monkeypatch.setattr(names, "published", lambda: {"web": row(hub, **changes)})
    with pytest.raises(ConvertError, match=words):
        names.fetch("web")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_published_checkpoint_that_is_gone_is_one_line(hub, monkeypatch, capsys):
    gone = names.Published("a tokenizer", url=f"{hub.url}/nowhere")
    monkeypatch.setattr(names, "published", lambda: {"gone": gone})
    assert f"gone could not be fetched from {hub.url}/nowhere: HTTP Error 404" in refused(capsys, "inspect", "gone")
