import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vqgan_jax.train import compat

ROOT = Path(__file__).parents[1]
TPU = os.environ.get("TPU_SKIP_MDS_QUERY") != "1"  # JAX has looked
LIBTPU = pytest.mark.skipif(TPU or not importlib.util.find_spec("libtpu"), reason="of libtpu without a TPU")
HOST = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_HOST_BOUNDS": "1,1,1"}
TINY = [
    "--config.model.channels=32",
    "--config.model.channel_multipliers=(1,1)",
    "--config.quantizer.codebook_size=16",
    "--config.discriminator.channels=8",
    "--config.batch_size=8",
    "--config.data.source=photos",
]


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process that has the environment of a shell: no platform is chosen, and nothing is known of a TPU."""
    plain = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS" and not k.startswith(("TPU_", "LIBTPU_"))}
    return subprocess.run(
        [sys.executable, *command], env=plain | variables, capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def described(monkeypatch, tmp_path):
    """Calls `quiet_libtpu` under variables and device files of a machine; returns what it set."""

    def describe(*device_files: str, **variables: str) -> dict[str, str]:
        for name in (*HOST, "TPU_SKIP_MDS_QUERY", "JAX_FORCE_TPU_INIT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(compat, "Path", lambda path: tmp_path / path.lstrip("/"))
        for file in device_files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()
        compat.quiet_libtpu()
        return {name: os.environ[name] for name in HOST if name in os.environ}

    return describe


def test_a_machine_without_a_chip_is_one_host(described):
    assert described("dev/vfio/vfio", TPU_SKIP_MDS_QUERY="1") == HOST
    assert described(TPU_SKIP_MDS_QUERY="1", TPU_HOST_BOUNDS="2,2,1") == HOST | {"TPU_HOST_BOUNDS": "2,2,1"}


@pytest.mark.parametrize(
    ("device_files", "variables"),
    [
        ([], {}),  # JAX found a chip
        ([], {"TPU_SKIP_MDS_QUERY": "true"}),  # GKE describes its TPUs by variables
        ([], {"TPU_SKIP_MDS_QUERY": "1", "JAX_FORCE_TPU_INIT": "1"}),
        (["dev/accel0"], {"TPU_SKIP_MDS_QUERY": "1"}),
        (["dev/vfio/0"], {"TPU_SKIP_MDS_QUERY": "1"}),
    ],
)
def test_a_machine_that_may_have_a_tpu_is_left_alone(described, device_files, variables):
    assert described(*device_files, **variables) == {}


@LIBTPU
@pytest.mark.parametrize(
    "command",
    [
        ["-c", "import vqgan_jax, jax; print(jax.devices())"],
        ["-m", "vqgan_jax", "train", f"--config={ROOT / 'experiments' / 'stage1_photos.py'}", "--dry_run", *TINY],
    ],
    ids=["import", "train"],
)
def test_libtpu_is_silent_without_a_tpu(command):
    ran = run(*command)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout


@LIBTPU
def test_a_tpu_that_is_asked_for_by_name_is_still_an_error():
    ran = run("-c", "import vqgan_jax, jax; jax.devices()", JAX_PLATFORMS="tpu")
    assert ran.returncode
    assert "Unable to initialize backend 'tpu'" in ran.stderr
