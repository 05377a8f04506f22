"""FID's weights come whole out of the files that others publish, and out of no other."""

import pickle
from pathlib import Path

import drawn
import numpy as np
import pytest
from torch_files import tensor, write_holes, write_zip

from vqgan_jax.convert.inception import FILES, find_inception, load_inception
from vqgan_jax.convert.lpips import load_lpips
from vqgan_jax.convert.tensors import ConvertError

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def shapes():
    """Of all tensors by name, as pytorch-fid's module has them."""
    with np.load(GOLDEN / "inception.npz") as arrays:
        rows = [row.split() for row in arrays["tensors"].tolist()]
    assert len(rows) == 472
    return {name: tuple(map(int, sizes)) for name, *sizes in rows}


@pytest.fixture(scope="module")
def published(shapes):
    return {name: drawn.weight(name, shape) for name, shape in shapes.items()}


def expect(params, published):
    """Every number in its place, by the published names."""
    assert params["fc"].dtype == np.float32
    np.testing.assert_array_equal(params["fc"], published["fc.weight"].T)
    leaves = {"conv.weight": "kernel", "bn.weight": "scale", "bn.bias": "bias"}
    leaves |= {"bn.running_mean": "mean", "bn.running_var": "var"}
    assert len(params) == 95
    for block in set(params) - {"fc"}:
        assert set(params[block]) == set(leaves.values())
        for theirs, ours in leaves.items():
            array = published[f"{block}.{theirs}"]
            np.testing.assert_array_equal(
                params[block][ours], array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
            )


def write_torch(path, tensors):
    write_zip(path, {name: tensor(str(i), array) for i, (name, array) in enumerate(tensors.items())})


def test_a_state_dict_with_or_without_counters(tmp_path, published):
    counters = {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.zeros((), np.int64)}
    write_torch(tmp_path / "torch.pth", published | counters)
    expect(load_inception(tmp_path / "torch.pth"), published)


def test_jax_fids_tree(tmp_path, published):
    tree = {"fc": {"kernel": published["fc.weight"].T, "bias": published["fc.bias"]}}
    for name, array in published.items():
        *path, kind, leaf = name.split(".")
        if path:
            leaf = {"weight": "kernel" if kind == "conv" else "scale"}.get(leaf, leaf).removeprefix("running_")
            node = tree
            for part in (*path, kind):
                node = node.setdefault(part, {})
            node[leaf] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    (tmp_path / "flax.pickle").write_bytes(pickle.dumps(tree))
    expect(load_inception(tmp_path / "flax.pickle"), published)


def test_other_networks_are_refused(tmp_path, shapes):
    path = tmp_path / "google.pth"
    write_holes(path, shapes | {"fc.weight": (1000, 2048), "AuxLogits.fc.weight": (1000, 768)})
    with pytest.raises(ConvertError, match=r"unexpected \(1\): AuxLogits.fc.weight; misshaped \(1\): fc.weight"):
        load_inception(path)
    write_holes(path, {name: shape for name, shape in shapes.items() if name != "Mixed_7c.branch_pool.bn.running_var"})
    with pytest.raises(ConvertError, match=r"missing \(1\): Mixed_7c.branch_pool.bn.running_var"):
        load_inception(path)
    with pytest.raises(ConvertError, match=r"missing \(31\): NetLinLayer_0/Conv_0/kernel"):
        load_lpips(path)
    path.write_bytes(b"<html>")
    with pytest.raises(ConvertError, match="web page"):
        load_inception(path)


def test_the_cache_is_looked_up_and_a_miss_says_where(tmp_path, monkeypatch):
    monkeypatch.setenv("VQGAN_JAX_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has none of {FILES[0]}"):
        load_inception()
    for name in FILES[::-1]:
        (tmp_path / name).touch()
        assert find_inception() == tmp_path / name
    monkeypatch.delenv("VQGAN_JAX_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".cache" / "vqgan_jax").mkdir(parents=True)
    (tmp_path / ".cache" / "vqgan_jax" / FILES[1]).touch()
    assert find_inception() == tmp_path / ".cache" / "vqgan_jax" / FILES[1]
