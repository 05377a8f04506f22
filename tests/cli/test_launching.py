"""The scripts that start `vqgan train` on many hosts: what they would run, and that they start it again."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "experiments" / "launch"
TINY = ROOT / "tests" / "train" / "tiny.py"
NAMES = {
    "tpu_vm.sh": {"TPU": "slice", "ZONE": "us-central2-b"},
    "gke_xpk.sh": {"CLUSTER": "cluster", "WORKLOAD": "run", "TPU_TYPE": "v5p-128", "IMAGE": "gcr.io/me/image"},
    "slurm.sbatch": {},
    "ssh.sh": {"HOSTS": "alpha beta"},
}
FLAGS = ("--config=experiments/stage1_imagenet.py:f16_16384", "--workdir=gs://bucket/run")
HERE = '#!/usr/bin/env bash\nshift\nexec bash -c "$1"\n'  # what ssh does, but on this machine


def start(name: str, *flags: str, **env: str) -> subprocess.Popen:
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("JAX_", "XLA_"))}
    return subprocess.Popen(
        [str(LAUNCH / name), *flags], env=plain | env, text=True, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def launch(name: str, *flags: str, **env: str) -> tuple[int, str, str]:
    job = start(name, *flags, **env)
    out, err = job.communicate(timeout=300)
    return job.returncode, out, err


def script(path: Path, text: str) -> Path:
    """An executable file in the place of a program."""
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_every_script_is_known_here():
    assert {path.name for path in LAUNCH.iterdir()} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_parses_and_stops_at_its_first_error(name):
    assert subprocess.run(["bash", "-n", str(LAUNCH / name)], capture_output=True, check=True).stderr == b""
    assert "\nset -euo pipefail\n" in (LAUNCH / name).read_text()
    assert os.access(LAUNCH / name, os.X_OK)


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_prints_the_command_and_runs_nothing(name):
    status, out, err = launch(name, *FLAGS, DRY_RUN="1", **NAMES[name])
    assert (status, err) == (0, "")
    assert f"vqgan train {' '.join(FLAGS)} --distributed" in out
    assert all(value in out for value in NAMES[name].values() if " " not in value)


def test_a_dry_run_numbers_the_hosts():
    _, out, _ = launch("ssh.sh", *FLAGS, DRY_RUN="1", HOSTS="alpha beta gamma", PORT="99", DIR="/checkout")
    lines = out.splitlines()
    assert [line.split()[:5] for line in lines] == [
        ["ssh", h, "cd", "/checkout", "&&"] for h in ("alpha", "beta", "gamma")
    ]
    ends = [line.split("--distributed ")[1] for line in lines]
    assert ends == [f"--coordinator=alpha:99 --processes=3 --process_id={number}" for number in range(3)]


@pytest.mark.parametrize(("name", "missing"), [(n, key) for n, env in NAMES.items() for key in env])
def test_what_is_not_told_is_named(name, missing):
    status, out, err = launch(name, *FLAGS, **{key: v for key, v in NAMES[name].items() if key != missing})
    assert status == 1
    assert missing in err
    assert not out


def test_flags_with_spaces_reach_the_other_side_whole(tmp_path):
    told = script(tmp_path / "vqgan", '#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
    status, out, _ = launch("ssh.sh", "--config.data.source=folder:my images", HOSTS="one",
                            SSH=str(script(tmp_path / "ssh", HERE)), VQGAN=str(told))  # fmt: skip
    assert status == 0
    assert out.splitlines()[:2] == ["train", "--config.data.source=folder:my images"]


@pytest.mark.parametrize(("failures", "restarts", "status"), [(0, 0, 0), (2, 2, 0), (2, 1, 1)])
def test_what_fails_is_started_again_on_all_hosts_so_often(tmp_path, failures, restarts, status):
    """The second of two hosts fails at first."""
    told = script(
        tmp_path / "vqgan",
        f"""#!/usr/bin/env bash
        echo "started $*" >> {tmp_path}/log
        [[ $* != *process_id=1 ]] || (( $(grep -c process_id=1 {tmp_path}/log) > {failures} ))
        """,
    )
    env = {"HOSTS": "one two", "PAUSE": "0", "RESTARTS": str(restarts), "VQGAN": str(told)}
    code, _, err = launch("ssh.sh", *FLAGS, SSH=str(script(tmp_path / "ssh", HERE)), **env)
    assert code == status
    tries = min(failures, restarts) + 1
    assert (tmp_path / "log").read_text().count("started") == 2 * tries
    assert err.count("it failed; again") == tries - 1


def test_a_slurm_job_that_is_told_to_end_saves_and_queues_itself_again(tmp_path):
    """As `--signal=B:TERM@300` tells it; srun hands the signal on to its tasks."""
    script(
        tmp_path / "srun",
        f"""#!/usr/bin/env bash
        trap 'sleep 0.3; echo "$*" > {tmp_path}/saved; exit 0' TERM
        touch {tmp_path}/ready
        while true; do sleep 0.05; done
        """,
    )
    script(tmp_path / "scontrol", f'#!/usr/bin/env bash\necho "$*" "$(ls {tmp_path}/saved)" > {tmp_path}/queued\n')
    job = start("slurm.sbatch", *FLAGS, PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID="17")
    while not (tmp_path / "ready").exists():
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=30)
    assert job.returncode == 0
    assert "vqgan train --config=" in (tmp_path / "saved").read_text()
    assert (tmp_path / "queued").read_text().split() == ["requeue", "17", f"{tmp_path}/saved"], "after it has saved"


@pytest.mark.parametrize("status", [0, 3])
def test_a_slurm_job_that_ends_by_itself_is_not_queued_again(tmp_path, status):
    script(tmp_path / "srun", f"#!/usr/bin/env bash\nexit {status}\n")
    script(tmp_path / "scontrol", f"#!/usr/bin/env bash\ntouch {tmp_path}/queued\n")
    code, _, _ = launch("slurm.sbatch", *FLAGS, PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID="17")
    assert code == status
    assert not (tmp_path / "queued").exists()


@pytest.mark.slow
def test_two_hosts_that_are_this_machine_train_together(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    small = ("--config.steps=3", "--config.loss.disc_weight=0.0", "--config.model.num_res_blocks=0")
    flags = (f"--config={TINY}", f"--workdir={tmp_path / 'run'}", *small)
    env = {"HOSTS": "localhost localhost", "PORT": port, "RESTARTS": "0", "VQGAN": f"{sys.executable} -m vqgan_jax"}
    cpu = {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))}
    cpu["JAX_NUM_CPU_DEVICES"] = "4"
    status, out, err = launch("ssh.sh", *flags, SSH=str(script(tmp_path / "ssh", HERE)), **env, **cpu)
    assert status == 0, err
    assert out.count("starting in") == 1, "process 0 alone speaks"
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "train/slowest_process" in metrics, "of two"
    assert (tmp_path / "run" / "checkpoints" / "3").is_dir()
