"""What people install: the wheel that the source archive makes, without this folder beside it."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

pytest.importorskip("build")
ROOT = Path(__file__).parents[1]
SMALL = (
    "--config=stage1_photos",
    "--config.steps=2",
    "--config.loss.perceptual_weight=0.0",
    "--config.loss.disc_weight=0.0",
    "--config.log.eval_examples=4",
)


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(tmp_path):
    """Its dependencies are those of the environment that runs the tests."""

    def run(*command: str | Path) -> str:
        env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "XLA_FLAGS")}
        done = subprocess.run(command, cwd=tmp_path / "empty", env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    (tmp_path / "empty").mkdir()
    run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT)  # the wheel out of the archive
    (wheel,), (_,) = ((tmp_path / "dist").glob(f"vqgan_jax-*{end}") for end in (".whl", ".tar.gz"))
    venv.create(tmp_path / "clean", symlinks=True)
    python = tmp_path / "clean" / "bin" / "python"
    (site,) = (tmp_path / "clean").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel)

    vqgan = python.with_name("vqgan")
    package = Path(run(python, "-c", "import vqgan_jax; print(vqgan_jax.__file__)").strip())
    assert package.is_relative_to(site)
    assert package.with_name("py.typed").exists()
    assert "train" in run(vqgan, "--help")
    assert "vqgan_imagenet_f16_1024" in run(vqgan, "models")
    run(vqgan, "train", *SMALL, "--workdir=run")
    assert (tmp_path / "empty" / "run" / "checkpoints" / "2").is_dir()
