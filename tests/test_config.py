import ast
import dataclasses
import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqgan_jax import config as configs
from vqgan_jax.cli import UsageError, load_config, override, run_page
from vqgan_jax.config.sections import Optimizer
from vqgan_jax.nn import fields
from vqgan_jax.nn.quantizer import FSQ, GumbelQuantizer
from vqgan_jax.train import STAGES, stage_of
from vqgan_jax.train.stage2 import Stage2
from vqgan_jax.train.state import make_optimizer, rate_factor, schedule

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "experiments").glob("*.py") if "def get_config" in path.read_text())


def run(path: Path):
    """The module of a page, which may import its neighbours."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


@pytest.fixture
def nested():
    """The defaults of stage 1 as a nested dict, to be changed."""
    return configs.stage1().to_dict()


@pytest.fixture
def config(nested):
    return configs.read(nested)


# The lab book


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda path: path.stem)
def test_every_file_of_the_lab_book_imports(path):
    assert run(path).__doc__


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_variant_builds(path):
    for variant in ["", *getattr(run(path), "VARIANTS", {})]:
        config = load_config(f"{path}:{variant}")
        assert isinstance(stage_of(config), STAGES[config.stage])


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_an_unknown_variant_is_named(path):
    with pytest.raises(ValueError, match="nonsense"):
        load_config(f"{path}:nonsense")


@pytest.mark.parametrize("inside", [False, True], ids=["at its top", "in get_config"])
def test_each_folder_of_pages_has_a_recipe_of_its_own(tmp_path, monkeypatch, inside):
    """And a `recipe` of the program that asks for a config stays the program's."""
    mine = types.ModuleType("recipe")
    monkeypatch.setitem(sys.modules, "recipe", mine)
    head, body = ("", "    import recipe\n") if inside else ("import recipe\n", "")
    for folder, seed in (("a", 1), ("b", 2), ("a", 1)):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "recipe.py").write_text(f"SEED = {seed}\n")
        (tmp_path / folder / "page.py").write_text(
            f"{head}\n\ndef get_config():\n{body}    return {{'seed': recipe.SEED}}\n"
        )
        before, path = set(sys.modules), list(sys.path)
        assert run_page(tmp_path / folder / "page.py", "") == {"seed": seed}
        assert (set(sys.modules), sys.path) == (before, path)
        assert sys.modules["recipe"] is mine


def test_variants_change_keys_from_left_to_right():
    base = configs.stage1()
    changed = configs.choose(base, {"a": {"loss.disc_weight": 0.0, "seed": 1}, "b": {"seed": 7}}, "a,b")
    assert (changed.loss.disc_weight, changed.seed) == (0.0, 7)
    assert (base.loss.disc_weight, base.seed) == (0.8, 0)
    with pytest.raises(ValueError, match=r"no key `disc_wait`; the nearest is `config\.loss\.disc_weight`"):
        configs.read(configs.vary(base, {"loss.disc_wait": 1.0}).to_dict())
    with pytest.raises(ValueError, match=r"`config\.seed` is a value"):
        configs.vary(base, {"seed.deep": 1})


def test_another_kind_starts_its_section_anew():
    """Also where the kind comes after its keys; and the same kind again changes nothing."""
    base = configs.vary(configs.stage1(), {"quantizer.codebook_size": 512})
    assert configs.vary(base, {"quantizer.kind": "vq"}) == base
    changed = configs.read(configs.vary(base, {"quantizer.levels": (3, 3), "quantizer.kind": "fsq"}).to_dict())
    assert changed.quantizer == FSQ(levels=(3, 3))
    with pytest.raises(ValueError, match=r"`config\.quantizer` has no key `codebook_size`"):
        configs.read(configs.vary(base, {"quantizer.kind": "fsq", "quantizer.codebook_size": 9}).to_dict())
    with pytest.raises(
        ValueError, match=r"`config\.quantizer\.kind` must be one of vq, simvq, gumbel, fsq, lfq; got 'lookup'"
    ):
        override(base.to_dict(), ["--config.quantizer.kind=lookup"])


KINDS = [(section, kind) for section, table in fields.kinds(configs.Stage1).items() for kind in table]


@pytest.mark.parametrize(("section", "kind"), KINDS)
def test_the_defaults_of_each_kind_fit_together(section, kind):
    alone = {"loss.disc_weight": 0.0} if kind == "colours" else {}  # an adaptive weight needs a decoder
    changed = configs.read(configs.vary(configs.stage1(), {f"{section}.kind": kind} | alone).to_dict())
    assert type(getattr(changed, section)) is fields.kinds(configs.Stage1)[section][kind]


def test_pages_come_with_the_package(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert load_config("stage1_photos:quick") == load_config(f"{ROOT}/experiments/stage1_photos.py:quick")
    with pytest.raises(UsageError, match=r"'stage1_fotos' is none\. The pages are .*stage1_photos"):
        load_config("stage1_fotos")


# Reading


def test_what_is_written_is_read(nested, config):
    assert config == configs.Stage1()
    assert fields.write(config) == nested
    assert configs.read(json.loads(json.dumps(nested))) == config


@pytest.mark.parametrize("stage", configs.STAGES)
def test_a_missing_key_has_its_default(stage):
    default = configs.STAGES[stage]()
    assert configs.read({"stage": stage}) == default
    assert configs.read({"stage": stage, "optimizer": {"b1": 0.25}}).optimizer.b2 == default.optimizer.b2
    with pytest.raises(ValueError, match=r"`config\.stage` must be one of 1, 2; got None"):
        configs.read({})


@pytest.mark.parametrize(
    ("section", "typo", "nearest"),
    [
        (None, "step", "config.steps"),
        ("loss", "disc_wieght", "config.loss.disc_weight"),
        ("model", "chanels", "config.model.channels"),
    ],
)
def test_an_unknown_key_names_the_nearest(nested, section, typo, nearest):
    (nested[section] if section else nested)[typo] = 1
    with pytest.raises(ValueError, match=f"no key `{typo}`; the nearest is `{nearest}`"):
        configs.read(nested)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "channels", True),
        ("model", "channels", 1.0),
        ("model", "channels", "32"),
        ("model", "dropout", True),
        ("data", "flip", 1),
        ("data", "source", 3),
        ("data", "resize", (256, 256, 256)),
        ("data", "resize", (256, 256.5)),
        ("model", "channel_multipliers", 2),
        ("model", "channel_multipliers", (1, "2")),
        ("loss", "pixel", None),
    ],
)
def test_a_wrong_type_is_named(nested, section, key, value):
    nested[section][key] = value
    with pytest.raises(ValueError, match=f"`config.{section}.{key}` must be of type"):
        configs.read(nested)


@pytest.mark.parametrize("value", [3, None, "photos"])
def test_a_value_in_place_of_a_section_is_a_value_error(nested, value):
    nested["data"] = value
    with pytest.raises(ValueError, match=r"config\.data"):
        configs.read(nested)


def test_whole_numbers_pass_as_floats_and_lists_as_tuples(nested):
    nested["model"]["dropout"], nested["model"]["attn_resolutions"] = 0, [16, 8]
    model = configs.read(nested).model
    assert type(model.dropout) is float
    assert model.attn_resolutions == (16, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.image_size": 250}, r"multiple of the downsample factor 16; got 250.*256"),
        ({"data.resize": (128, 256)}, r"range from image_size 256"),
        ({"data.resize": (512, 256)}, r"range from image_size 256"),
        ({"quantizer.ema": True}, r"codebook_weight"),
        (
            {"quantizer.kind": "gumbel", "quantizer.unit_length": True},
            r"quantizer` has no key `codebook_weight`",
        ),
        ({"quantizer.kind": "lookup"}, r"must be one of vq, simvq, gumbel, fsq, lfq; got 'lookup'"),
        ({"loss.pixel": "huber"}, r"l1, l2"),
        ({"loss.adversarial": "wgan"}, r"hinge, vanilla, non_saturating"),
        ({"discriminator.norm": "layer"}, r"batch, act"),
        ({"optimizer.schedule": "linear"}, r"constant, cosine"),
        ({"model.dtype": "float16"}, r"float32, bfloat16"),
    ],
)
def test_contradictions_are_named(nested, changes, message):
    for path, value in changes.items():
        configs.put(nested, path, value)
    with pytest.raises(ValueError, match=message):
        configs.read(nested)


# From configs to modules and optimisers


def test_fields_arrive_where_they_belong(nested):
    nested["quantizer"] |= {"codebook_size": 7, "embed_dim": 5, "decay": 0.3, "revive_below": 0.2, "unit_length": True}
    nested["model"] |= {"latent_channels": 96, "dropout": 0.25}
    nested["discriminator"] |= {"channels": 8, "num_layers": 2, "norm": "act"}
    config = configs.read(nested)
    model, disc = config.make_vqgan(), config.make_discriminator()
    q = model.quantizer
    assert not isinstance(q, GumbelQuantizer)
    assert (q.codebook_size, q.embed_dim, q.decay, q.revive_below, q.unit_length, q.ema) == (
        7,
        5,
        0.3,
        0.2,
        True,
        False,
    )
    assert (model.latent_channels, model.image_channels, model.dropout, model.dtype) == (96, 3, 0.25, "bfloat16")
    assert disc is not None
    assert (disc.channels, disc.num_layers, disc.norm) == (8, 2, "act")


def test_no_weight_is_no_discriminator(nested):
    nested["loss"]["disc_weight"] = 0.0
    assert configs.read(nested).make_discriminator() is None


def test_warm_up_and_cosine_by_hand(config):
    options = dataclasses.replace(config.optimizer, schedule="cosine", warmup_steps=10, final_fraction=0.1)
    rate = schedule(options, 2.0, 110)
    expected = {0: 0.0, 5: 1.0, 10: 2.0, 35: 0.2 + 1.8 * (1 + np.sqrt(0.5)) / 2, 60: 1.1, 110: 0.2, 999: 0.2}
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, rel=1e-5), step


def test_a_constant_rate_is_constant_after_its_warm_up(config):
    options = dataclasses.replace(config.optimizer, schedule="constant", warmup_steps=4)
    assert [float(schedule(options, 1.0, 9)(s)) for s in (0, 2, 4, 999)] == [0.0, 0.5, 1.0, 1.0]
    options = dataclasses.replace(options, warmup_steps=0)
    assert [float(schedule(options, 1.0, 9)(s)) for s in (0, 999)] == [1.0, 1.0]


def plain(config, **changes) -> Optimizer:
    off = {"schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0, "clip_norm": 0.0}
    return dataclasses.replace(config.optimizer, **(off | changes))


def test_weight_decay_is_decoupled_and_of_kernels_only(config):
    optimizer = make_optimizer(plain(config, weight_decay=0.1), 0.5, 10)
    params = {"kernel": jnp.full((1, 1, 2, 2), 3.0), "bias": jnp.full(2, 3.0), "scale": jnp.full(2, 3.0)}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.5 * 0.1 * 3.0, rtol=1e-6)
    assert not updates["bias"].any()
    assert not updates["scale"].any()


def test_the_first_step_of_adam_is_the_rate_against_the_sign(config):
    optimizer, params = make_optimizer(plain(config), 0.5, 10), {"kernel": jnp.zeros(3)}
    updates, _ = optimizer.update({"kernel": jnp.array([1e-3, -20.0, 7.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [-0.5, 0.5, -0.5], rtol=1e-4)


def test_clipping_stands_before_adams_moments(config):
    """With b1 = b2 = 0.5: gradients 100 (clipped to 1) and then 1 are two equal steps; unclipped they are not."""
    params, rates = {"kernel": jnp.zeros(1)}, []
    for clip in (1.0, 0.0):
        optimizer = make_optimizer(plain(config, clip_norm=clip, b1=0.5, b2=0.5), 1.0, 10)
        _, state = optimizer.update({"kernel": jnp.array([100.0])}, optimizer.init(params), params)
        rates.append(float(optimizer.update({"kernel": jnp.array([1.0])}, state, params)[0]["kernel"][0]))
    m, v = (0.25 * 100 + 0.5) / 0.75, (0.25 * 1e4 + 0.5) / 0.75
    np.testing.assert_allclose(rates, [-1.0, -m / np.sqrt(v)], rtol=1e-4)


def test_the_published_temperature():
    temperature = GumbelQuantizer(temperature=(0.9, 1e-6, 1_000_001)).temperature_at
    expected = {0: 0.9, 250_000: 0.768198, 500_000: 0.450001, 1_000_001: 1e-6, 2_000_000: 1e-6}
    for step, value in expected.items():
        assert float(temperature(jnp.asarray(step))) == pytest.approx(value, abs=1e-6), step


def test_a_larger_batch_at_the_root_of_its_ratio_carries_the_weights_as_far(config):
    """Noise and a slope in it move 4,000 weights: in steps of a batch of 1, or in a quarter as many of a batch of 4."""

    def carried(batch_size: int, rate: float) -> np.ndarray:
        optimizer = make_optimizer(plain(config, b1=0.0, b2=0.999), rate, 1)
        noise = jax.random.normal(jax.random.key(batch_size), (256 // batch_size, 4_000))
        grads = 0.05 + noise * batch_size**-0.5
        start = jnp.zeros(4_000)
        follow = lambda state, grad: optimizer.update({"kernel": grad}, state)[::-1]
        return np.asarray(jax.lax.scan(follow, optimizer.init({"kernel": start}), grads)[1]["kernel"].sum(0))

    small, large = carried(1, 0.01), carried(4, 0.01 * rate_factor(4, 1))
    assert rate_factor(4, 1) == 2.0
    assert large.std() == pytest.approx(small.std(), rel=0.06)
    assert large.mean() == pytest.approx(small.mean(), rel=0.06)


# Every key is read


def reads(path: Path) -> set[str]:
    """Names of attributes that a file reads, and all keys of the sections that it unpacks, `**asdict(config.mesh)`."""
    sections = {name: field.type for cls in configs.STAGES.values() for name, field in fields.keys(cls).items()}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        if isinstance(node, ast.keyword) and node.arg is None and isinstance(node.value, ast.Call):
            for argument in node.value.args:
                if isinstance(argument, ast.Attribute) and dataclasses.is_dataclass(sections.get(argument.attr)):
                    found |= fields.keys(sections[argument.attr]).keys()
    return found


def classes(cls: type) -> set[type]:
    """A dataclass of configs, its sections and all their kinds."""
    found = {cls}
    for name, field in fields.keys(cls).items():
        for section in fields.kinds(cls).get(name, {"": field.type}).values():
            found |= classes(section) if dataclasses.is_dataclass(section) else set()
    return found


def reads_itself(cls: type) -> set[str]:
    """Names of attributes that the file of a module of `nn` reads, or one of `nn` from which it imports."""
    modules = {getattr(value, "__module__", "") for value in (cls, *vars(sys.modules[cls.__module__]).values())}
    return set().union(*(reads(Path(sys.modules[name].__file__)) for name in modules if ".nn." in name))


@pytest.mark.parametrize("stage", configs.STAGES)
def test_every_key_is_read_and_has_a_default(stage):
    """Keys of a module of `nn` are its fields, which it reads; all others are read by files that know the config."""
    package = ROOT / "vqgan_jax"
    knowing = [path for path in package.rglob("*.py") if "config" in path.read_text() and "nn" not in path.parts]
    read = set().union(*map(reads, knowing))
    for cls in classes(configs.STAGES[stage]):
        own = reads_itself(cls) if ".nn." in cls.__module__ else set()
        for name, field in fields.keys(cls).items():
            assert name in read | own, f"nothing reads {cls.__name__}.{name}: use it or delete it"
            assert field.default is not dataclasses.MISSING, f"{cls.__name__}.{name}"


PAPER = {  # parameters, by the formula 12 L d^2 + 13 L d + 2 V d + B d + 2 d where the paper prints rounded ones
    "stage2_imagenet:paper": 1_410_640_896,
    "stage2_faces:paper_ffhq": 801_798_400,
    "stage2_faces:paper_faceshq": 304_932_864,
    "stage2_drin:paper": 304_932_864,
    "stage2_drin:paper_small": 178_970_624,
    "stage2_sflckr:f16,paper": 304_932_864,
    "stage2_landscapes:paper": 304_670_720,
    "stage2_superres:paper": 153_778_176,
    "stage2_edges:paper": 304_932_864,
    "stage2_ade20k:paper": 361_609_216,
    "stage2_coco_stuff:paper": 651_307_520,
    "stage2_pose:paper": 129_417_216,
    "stage2_scenes_coco:paper": 975_876_352,
    "stage2_scenes_openimages:paper": 1_045_638_144,
}


@pytest.mark.parametrize("name", PAPER)
def test_priors_of_the_paper_have_its_sizes(name):
    page, variant = name.split(":")
    path = ROOT / "experiments" / f"{page}.py"
    config = load_config(f"{path}:{variant}")
    state = jax.eval_shape(Stage2.from_config(config).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == PAPER[name]
    assert f"{PAPER[name]:,} parameters" in path.read_text()
