import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from vqgan_jax import config as configs
from vqgan_jax import models
from vqgan_jax.train import program, sharding
from vqgan_jax.train.stage1 import Stage1

MODEL = {
    "channels": 32,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (8,),
    "resolution": 16,
    "latent_channels": 32,
    "norm_groups": 32,
    "dtype": "float32",
}
TINY = {
    "model": MODEL,
    "data": {"image_size": 16, "resize": (16, 16)},
    "quantizer": {"codebook_size": 16, "embed_dim": 8},
    "discriminator": {"channels": 8, "num_layers": 1},
}
KINDS = {
    "vq": {},
    "ema_revived": {"quantizer": {"ema": True, "revive_below": 0.1, "codebook_weight": 0.0}},
    "act_norm_decay": {"discriminator": {"norm": "act"}, "optimizer": {"weight_decay": 0.1, "ema_decay": 0.0}},
    "gumbel": {"quantizer": {"kind": "gumbel", "codebook_size": 16, "embed_dim": 8}},
    "maskgit": {"model": MODEL | {"kind": "maskgit", "attn_resolutions": (), "latent_channels": 64}},
    "no_discriminator": {"loss": {"disc_weight": 0.0}},
}
TINY_PRIOR = {
    "data": {"image_size": 16, "resize": (16, 16)},
    "tokenizer": {"codebook_size": 16, "downsample_factor": 4},
    "condition": {"num_classes": 7},
    "transformer": {"depth": 2, "width": 64, "num_heads": 8},
}
PRIORS = {
    "rope_rms_swiglu": {"transformer": {"positions": "rope2d", "qk_norm": False}},
    "learned_layer_gelu": {
        "transformer": {"positions": "learned", "norm": "layer", "mlp": "gelu", "qk_norm": True, "bias": True},
        "condition": {"shared_vocab": True, "drop": 0.0},
        "optimizer": {"weight_decay": 0.0, "ema_decay": 0.0, "schedule": "constant"},
    },
    "adaln_learned_target": {"transformer": {"adaln": True, "positions": "learned_target"}},
    "unconditional": {"condition": {"kind": "none", "drop": 0.0}},
    "pixelsnail": {"transformer": {"kind": "pixelsnail", "depth": 2, "width": 64, "num_res_blocks": 1}},
}


def tiny(kind: str = "vq") -> configs.Stage1 | configs.Stage2:
    base = configs.stage2() if kind in PRIORS else configs.stage1()
    for sections in (TINY_PRIOR, PRIORS[kind]) if kind in PRIORS else (TINY, KINDS[kind]):
        base = configs.vary(base, flatten_dict(sections, sep="."))
    return configs.read(base.to_dict())


def init(config: configs.Stage1):
    """The state as a function of a key."""
    images = np.random.default_rng(0).integers(0, 256, (1, 2, 16, 16, 3), dtype=np.uint8)
    return lambda key: Stage1.from_config(config).init(key, jnp.asarray(images))


@functools.cache
def abstract(kind: str):
    return models.state_shapes(tiny(kind)) if kind in PRIORS else jax.eval_shape(init(tiny(kind)), jax.random.key(0))


# Meshes


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((1, 4, -1), (1, 4, 2)),
        ((2, 2, 2), (2, 2, 2)),
        ((8, 1, -1), (8, 1, 1)),
    ],
)
def test_minus_one_is_what_is_left(sizes, expected):
    mesh = sharding.make_mesh(*sizes)
    assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), expected, strict=True))


@pytest.mark.parametrize(
    "sizes", [(4, 1, 1), (3, -1, 1), (-1, -1, 1), (16, 1, 1), (0, 1, 8), (-1, 0, 1), (-1, 16, 1), (-8, -1, 1)]
)
def test_a_mesh_that_is_not_all_devices_is_an_error(sizes):
    with pytest.raises(ValueError, match="number of devices, 8"):
        sharding.make_mesh(*sizes)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a layout needs to know of a device."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def slices(*sizes: int) -> list[Chip]:
    """The devices of slices of so many, in no good order."""
    chips = [Chip(10 * index + number, index) for index, size in enumerate(sizes) for number in range(size)]
    return chips[::-1]


@pytest.mark.parametrize("sizes", [(2, 4, 1), (4, 2, 1), (-1, 2, 2), (8, 1, 1)])
def test_only_data_goes_between_slices(sizes):
    mesh = sharding.make_mesh(*sizes, devices=slices(4, 4))
    assert tuple(mesh.shape.values()) == (8 // (sizes[1] * sizes[2]), *sizes[1:])
    assert len(set(mesh.devices.flat)) == 8
    where = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    half = len(where) // 2
    assert (where[:half] == 0).all()  # each slice has a contiguous share of the rows, and whole fsdp and tensor groups
    assert (where[half:] == 1).all()


@pytest.mark.parametrize(
    ("sizes", "devices", "found"),
    [
        ((1, 8, 1), slices(4, 4), "2 slices, .*data=1 and slices of 4, 4"),
        ((2, 2, 2), slices(6, 2), "2 slices, .*slices of 2, 6"),
    ],
)
def test_slices_that_data_alone_cannot_join_are_an_error(sizes, devices, found):
    with pytest.raises(ValueError, match=rf"`config\.mesh\.data` must be a multiple of the {found}"):
        sharding.make_mesh(*sizes, devices=devices)


def test_one_slice_is_laid_out_as_it_comes():
    mesh = sharding.make_mesh(2, 2, 2)
    assert mesh.devices.flatten().tolist() == jax.devices()


# Rules


@pytest.mark.parametrize("kind", [*KINDS, *PRIORS])
@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8)])
def test_every_array_of_a_state_has_a_place(kind, sizes):
    mesh = sharding.make_mesh(*sizes)
    where = sharding.shardings(abstract(kind), mesh)
    assert jax.tree.structure(where) == jax.tree.structure(abstract(kind))
    for leaf, place in zip(jax.tree.leaves(abstract(kind)), jax.tree.leaves(where), strict=True):
        place.shard_shape(leaf.shape)  # raises where axes do not divide it


@pytest.mark.parametrize("kind", [*KINDS, *PRIORS])
def test_moments_and_averages_live_where_their_parameter_lives(kind):
    where = sharding.shardings(abstract(kind), sharding.make_mesh(2, 2, 2))

    def specs(tree):
        return {sharding.path_name(p): s.spec for p, s in jax.tree_util.tree_leaves_with_path(tree)}

    for name, params in where.params.items():
        for adam in (part for part in where.opt_state[name] if hasattr(part, "mu")):
            assert specs(adam.mu) == specs(adam.nu) == specs(params)
        if name in where.ema:
            assert specs(where.ema[name]) == specs(params)


@pytest.mark.parametrize("kind", ["vq", *PRIORS])
@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 4, 2), (1, 1, 8)])
def test_every_large_array_is_cut_by_all_devices(kind, sizes):
    """What is left whole on each device is small: biases, scales, counters and the vectors of positions."""
    where = sharding.shardings(abstract(kind), sharding.make_mesh(*sizes))
    for (path, leaf), place in zip(
        jax.tree_util.tree_leaves_with_path(abstract(kind)), jax.tree.leaves(where), strict=True
    ):
        name, parts = sharding.path_name(path), leaf.size // int(np.prod(place.shard_shape(leaf.shape)))
        assert parts == (8 if name.endswith(("/kernel", "/codebook", "/embedding")) else 1), name


def test_every_rule_is_needed():
    trees = map(abstract, [*KINDS, *PRIORS])
    names = [sharding.path_name(path) for tree in trees for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    used = {
        next(i for i, (pattern, _) in enumerate(sharding.RULES) if sharding.re.search(pattern, name)) for name in names
    }
    assert used == set(range(len(sharding.RULES)))


def test_an_array_without_a_rule_is_named():
    tree = {"params": {"generator": {"mystery": jax.ShapeDtypeStruct((8, 8), jnp.float32)}}}
    with pytest.raises(ValueError, match="params/generator/mystery"):
        sharding.shardings(tree, sharding.make_mesh(8, 1, 1))


def test_a_dimension_that_is_not_divided_is_named():
    tree = {"params": {"conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 8, 12), jnp.float32)}}}
    with pytest.raises(ValueError, match=r"params/conv/kernel.*12 is cut into 8"):
        sharding.shardings(tree, sharding.make_mesh(1, 8, 1))
    sharding.shardings(tree, sharding.make_mesh(2, 4, 1))


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 1, 8), (4, 2, 1)])
def test_a_large_array_that_would_be_whole_everywhere_is_named(sizes):
    """The vectors of 8,192 positions: no rule cuts them."""
    tree = lambda length: {"params": {"transformer": {"positions": jax.ShapeDtypeStruct((length, 1024), jnp.float32)}}}
    with pytest.raises(ValueError, match=r"params/transformer/positions.*\(8192, 1024\), 8,388,608 elements.*RULES"):
        sharding.shardings(tree(8192), sharding.make_mesh(*sizes))
    sharding.shardings(tree(4096), sharding.make_mesh(*sizes))
    sharding.shardings(tree(8192), sharding.make_mesh(8, 1, 1))


# Arrays


@pytest.mark.slow
def test_a_state_is_born_sharded_with_the_same_values_on_any_mesh():
    """One level and no discriminator: the partitioner's work is what this test costs."""
    config, born = tiny("ema_revived"), []
    model = dataclasses.replace(config.model, channel_multipliers=(1,), attn_resolutions=())
    config = dataclasses.replace(config, model=model, loss=dataclasses.replace(config.loss, disc_weight=0.0))
    for sizes in ((1, 8, 1), (2, 2, 2)):
        mesh = sharding.make_mesh(*sizes)
        where = sharding.shardings(jax.eval_shape(init(config), jax.random.key(0)), mesh)
        born.append(jax.jit(init(config), out_shardings=where)(jax.random.key(config.seed)))
        for leaf, place in zip(jax.tree.leaves(born[-1]), jax.tree.leaves(where), strict=True):
            assert leaf.addressable_shards[0].data.shape == place.shard_shape(leaf.shape)
    params = born[0].params["generator"]
    assert params["quantizer"]["codebook"].addressable_shards[0].data.shape == (2, 8)
    assert params["encoder"]["conv_in"]["kernel"].addressable_shards[0].data.shape == (3, 3, 3, 4)
    assert params["decoder"]["conv_out"]["kernel"].addressable_shards[0].data.shape == (3, 3, 4, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6), *born)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1), (1, 2, 4)])
def test_a_batch_is_cut_over_data_and_fsdp_in_order(sizes):
    mesh, images = sharding.make_mesh(*sizes), np.arange(8 * 3).reshape(8, 3)
    placed = sharding.put_batch({"image": images}, mesh)["image"]
    np.testing.assert_array_equal(placed, images)
    assert placed.sharding.spec == P(("data", "fsdp"))
    assert placed.addressable_shards[0].data.shape == (8 // (sizes[0] * sizes[1]), 3)


def test_the_mesh_of_the_recipe_fits_any_number_of_devices():
    mesh = program.make_mesh(tiny())
    assert mesh.size == jax.device_count()


def test_a_batch_that_cannot_be_cut_is_an_error():
    mesh = sharding.make_mesh(2, 4, 1)
    sharding.check_batch(16, mesh)
    with pytest.raises(ValueError, match=r"multiple of the 8 devices along data and fsdp; got 12\. Set it to 16"):
        sharding.check_batch(12, mesh)
