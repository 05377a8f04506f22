"""Real runs of the command line that are killed, stopped, and compared to the last bit."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import untrained

TINY, PRIOR = (str(Path(__file__).with_name(name)) for name in ("tiny.py", "tiny_prior.py"))
# Every part of `tiny.py` in fewer layers: a life is mostly its start, and a start mostly tracing and compiling them. Of
# several processes all but process 0 compile at every start: on CPUs JAX's cache knows the programs of that one only.
SMALL = ("--config.model.num_res_blocks=0", "--config.discriminator.num_layers=1")
PHASES = ("start-up", "step", "writing")
CLOCKS = ("images_per_second", "input_wait", "input_wait_slowest", "slowest_process", "step_seconds")
TIMED = ("time", *(f"train/{name}" for name in (*CLOCKS, "step_seconds_slowest")))  # what two equal runs may differ in


def environment(**extra: str) -> dict[str, str]:
    """CPU, a quick compiler, warnings on, and the tests' compilation cache, so that a start takes seconds."""
    quick = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    if kept := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        quick["JAX_COMPILATION_CACHE_DIR"] = kept
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_"))}
    return ours | {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"} | quick | extra


def cluster(count: int) -> list[dict[str, str]]:
    """The environments of so many processes with eight devices together, as SLURM would start them."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    slurm = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(count)}
    shared = slurm | {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_CPU_DEVICES": str(8 // count)}
    return [shared | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)} for number in range(count)]


class Job:
    """`vqgan train`, or another verb, in a process; the workdir is `folder / name`, the output `folder / name.log`.

    Or the workdir is `inside / name`, of a bucket.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *flags: str,
        log: str = "",
        verb: str = "train",
        page: str = TINY,
        inside: Any = None,
        **env: str,
    ):
        self.workdir, self.log = (inside or folder) / name, folder / f"{log or name}.log"
        command = [sys.executable, "-m", "vqgan_jax", verb, f"--config={page}", f"--workdir={self.workdir}", *flags]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment(**env))
        self.began = time.perf_counter()

    def finish(self, timeout: float = 600) -> int:
        """Exit status; a run that hangs is killed and fails."""
        try:
            return self.process.wait(timeout)
        finally:
            self.process.kill()
            self.process.wait()

    def kill(self) -> float:
        """SIGKILL, while it still runs; the seconds that it had."""
        assert self.process.poll() is None, f"it ended before it was killed: {self.output()}"
        self.process.kill()
        self.process.wait()
        return time.perf_counter() - self.began

    def wait_for(self, condition: Callable[[], Any], timeout: float = 600, pause: float = 0.003) -> None:
        """Polls every few milliseconds; it is an error if the process ends first."""
        while not condition():
            if self.process.poll() is not None or time.perf_counter() - self.began > timeout:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"exit {self.process.returncode} too early:\n{self.output()}")
            time.sleep(pause)

    def output(self) -> str:
        """What it printed, on one line."""
        return " ".join(self.log.read_text().split())

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def run(folder: Path, name: str, *flags: str, **options: Any) -> Job:
    """Trains to the end."""
    job = Job(folder, name, *flags, **options)
    assert job.finish() == 0, job.output()
    return job


def rows(workdir: Path, prefix: str = "train") -> list[dict[str, Any]]:
    """The lines of the metrics that training (or "eval") wrote, without clocks."""
    there = {path.name: path for path in workdir.iterdir()} if workdir.exists() else {}
    files = [there[name] for name in sorted(there) if name.endswith(".jsonl")]  # in a bucket there are parts
    found = [json.loads(line) for file in files for line in file.read_text().splitlines() if line.endswith("}")]
    found = [row for row in found if any(name.startswith(f"{prefix}/") for name in row)]
    return [{name: value for name, value in row.items() if name not in TIMED} for row in found]


def checkpoints(workdir: Path) -> list[int]:
    """Steps of the complete checkpoints."""
    folder = workdir / "checkpoints"
    done = lambda path: "://" not in str(path) or (path / "commit_success.txt").exists()
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit() and done(path))


def newest(workdir: Path) -> int:
    """Step of the newest complete checkpoint; 0 without any."""
    return max(checkpoints(workdir), default=0)


def arrays(workdir: Path) -> dict[str, Any]:
    """Every array of the newest checkpoint by its path, on the host."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    from vqgan_jax.train import checkpoint

    checkpoint.teach_orbax()
    folder = workdir / "checkpoints" / str(newest(workdir)) / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(folder).item_metadata.tree
        args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        state = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=args))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def check_identical(workdir: Path, reference: Path) -> tuple[int, int]:
    """Asserts equal last states and equal metrics, each step once; the number of arrays and of numbers compared."""
    ours, theirs = arrays(workdir), arrays(reference)
    assert ours.keys() == theirs.keys()
    assert {name.split("/")[0] for name in ours} - {"stats"} == {"step", "params", "opt_state", "ema"}
    different = [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()]
    assert not different, f"{len(different)} of {len(ours)} arrays differ, such as {different[:3]}"
    for prefix in ("train", "eval"):
        assert rows(workdir, prefix) == rows(reference, prefix)
    steps = [row["step"] for row in rows(workdir)]
    assert steps == list(range(1, len(steps) + 1))
    return len(ours), sum(array.size for array in ours.values())


def flags_of_stage_2(folder: Path) -> tuple[str, ...]:
    """A tokenizer for `tiny_prior.py`: what its codes are does not matter."""
    return (f"--config.tokenizer.workdir={untrained.save_tokenizer(folder / 'tokenizer')}",)


def kill_drill(folder: Path, kills: int, *, stage: int = 1, seed: int = 0) -> Iterator[str]:
    """Kills a run at random moments of its whole life, lets it end, and compares it with one that was left alone.

    The moments go round steps (some way into one of the few after a new checkpoint), the writing of a checkpoint (some
    way into it) and start-up (anywhere in it), so that no part of a life is left out however fast the machine is.
    Gives a line for each kill.
    """
    rng = random.Random(seed)
    folder.mkdir(exist_ok=True)
    flags = (f"--config.steps={10 + 10 * kills}",)  # more than the kills can let happen
    flags += flags_of_stage_2(folder) if stage == 2 else SMALL
    page = {"page": {1: TINY, 2: PRIOR}[stage]}
    reference = Job(folder, "reference", *flags, **page)
    reference.wait_for(lambda: rows(reference.workdir))
    start_up = time.perf_counter() - reference.began
    assert reference.finish(600) == 0, reference.output()
    for number in range(1, kills + 1):
        phase = PHASES[number % len(PHASES)]
        job = Job(folder, "killed", *flags, **page)
        if phase == "start-up":
            time.sleep(rng.uniform(0.0, start_up))
        else:
            start_up = wait_for_life(job)
            wait_for_moment(job, phase, rng)
        seconds = job.kill()
        step = max((row["step"] for row in rows(job.workdir)), default=0)
        last = newest(job.workdir)
        yield f"kill {number:>2}  {phase:<8}  after {seconds:6.2f} s  last step {step:>4}  last checkpoint {last:>4}"
    run(folder, "killed", *flags, **page)
    yield "identical: {} arrays, {:,} numbers".format(*check_identical(folder / "killed", folder / "reference"))


def tokenize_drill(folder: Path, kills: int, *, seed: int = 0) -> Iterator[str]:
    """The same for `vqgan tokenize`: in start-up, in the writing of a shard, and around the end of one."""
    rng = random.Random(seed)
    folder.mkdir(exist_ok=True)
    flags = (*flags_of_stage_2(folder), f"--config.tokenizer.crops={40 * (kills + 3)}")
    plain = {"XLA_FLAGS": ""}  # so many crops take longer than the compiler
    job = lambda name: Job(folder, name, *flags, verb="tokenize", page=PRIOR, **plain)
    reference = job("reference")
    reference.wait_for(lambda: parts(reference.workdir))
    start_up = time.perf_counter() - reference.began
    assert reference.finish(600) == 0, reference.output()
    shards = len(finished(reference.workdir))
    a_shard = (time.perf_counter() - reference.began - start_up) / shards
    for number in range(1, kills + 1):
        phase, killed = ("start-up", "writing", "shard")[number % 3], job("killed")
        before = finished(killed.workdir)
        if phase == "start-up":
            time.sleep(rng.uniform(0.0, start_up))
        elif phase == "writing":
            left = parts(killed.workdir)
            killed.wait_for(lambda left=left: parts(killed.workdir) - left)  # noqa: B023
            time.sleep(rng.uniform(0.0, a_shard))
        else:
            killed.wait_for(lambda before=before: finished(killed.workdir) - before)  # noqa: B023
            time.sleep(rng.uniform(0.0, 0.02))
        seconds, there = killed.kill(), len(finished(killed.workdir))
        yield f"kill {number:>2}  {phase:<8}  after {seconds:6.2f} s  {there:>2} of {shards} shards"
    ended = job("killed")
    assert ended.finish(600) == 0, ended.output()
    ours, theirs = ({p.name: p.read_bytes() for p in j.workdir.iterdir()} for j in (ended, reference))
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if ours[name] != theirs[name]]
    assert not different, f"{len(different)} of {len(ours)} files differ, such as {different[:3]}"
    yield f"identical: {len(ours)} files, {sum(map(len, ours.values())):,} bytes"


def finished(cache: Path) -> set[str]:
    """The shards of a cache that are whole."""
    return {path.name for path in cache.glob("*.array_record")}


def parts(cache: Path) -> set[tuple[str, int]]:
    """The shards of a cache being written: name and time of change, since one left by a kill is written again."""
    found = set()
    for path in cache.glob("*.array_record.part"):
        try:
            found.add((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:  # it is finished by now
            continue
    return found


def wait_for_life(job: Job) -> float:
    """Until this process, not one before it, has written metrics of a step; the seconds since it began."""
    began = time.time()
    path = job.workdir / "metrics.jsonl"

    def alive() -> bool:
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        steps = [json.loads(line) for line in lines[-3:] if line.endswith("}\n") and "train/" in line]
        return any(step["time"] >= began for step in steps)

    job.wait_for(alive)
    return time.perf_counter() - job.began


def wait_for_moment(job: Job, phase: str, rng: random.Random) -> None:
    """Until some way into one of the steps after a new checkpoint, or into the writing of one."""
    if phase == "step":
        before = newest(job.workdir)
        job.wait_for(lambda: newest(job.workdir) > before)
        target = rows(job.workdir)[-1]["step"] + rng.randrange(4)
        job.wait_for(lambda: rows(job.workdir)[-1]["step"] >= target)
        time.sleep(rng.uniform(0.0, 0.1))
    else:
        for _ in range(rng.choice((1, 2))):
            before = unfinished(job.workdir)
            job.wait_for(lambda before=before: unfinished(job.workdir) - before)
        time.sleep(rng.uniform(0.0, 0.3))


def unfinished(workdir: Path) -> set[tuple[str, int]]:
    """Checkpoints being written: name and time of change, since one left by a kill is written again."""
    found = set()
    for path in (workdir / "checkpoints").glob("*tmp*"):
        try:
            found.add((path.name, path.stat().st_mtime_ns))
        except FileNotFoundError:  # it is finished by now
            continue
    return found


def terminate_at(job: Job, step: int) -> int:
    """SIGTERM once that step's metrics are there; exit status."""
    job.wait_for(lambda: len(rows(job.workdir)) >= step)
    job.process.send_signal(signal.SIGTERM)
    return job.finish()


def pair(folder: Path, name: str, *flags: str, **env: str) -> list[Job]:
    """The same run on two processes of four devices."""
    return [
        Job(folder, name, "--distributed", *flags, log=f"{name}{number}", **ours, **env)
        for number, ours in enumerate(cluster(2))
    ]


def copy(source: Path, target: Path) -> Path:
    """A copy of a workdir."""
    shutil.copytree(source, target)
    return target
