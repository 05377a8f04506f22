"""Opens damaged checkpoints of every kind: the only error may be `ConvertError`; nothing may run, and nothing may hang.

    python benchmarks/fuzz_convert.py --minutes=10

Inputs are random mutations of valid files, by turns of every container, and random programs of pickle opcodes, bare
and within archives. An audit hook ends the run when a file makes Python import, execute, delete or look up a class; the
programs name `os.system`, also by a code of the extension registry. Prints how many were opened and how many refused,
the slowest one and the peak of memory. What ends otherwise is kept, and its path printed with the error; what takes
longer than a minute is ended with its stack.
"""

import argparse
import codecs
import collections
import copyreg
import faulthandler
import pickle
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "convert"))

import mutations
import torch_files

FORBIDDEN = (
    "import",
    "exec",
    "os.exec",
    "os.posix_spawn",
    "os.remove",
    "os.system",
    "pickle.find_class",
    "subprocess.Popen",
)


class Escape(BaseException):
    """A file made Python do what no file may."""


def forbid(watching: list[bool]) -> None:
    """Ends the run at an event of `FORBIDDEN` while `watching` holds True."""

    def hook(event: str, arguments: tuple) -> None:
        if watching[0] and event in FORBIDDEN:
            raise Escape(event, arguments)

    sys.addaudithook(hook)


def write_input(path: Path, sample: Path, rng: random.Random) -> str:
    """The next input, and what kind it is."""
    kind = rng.randrange(4)
    if kind == 0:
        path.write_bytes(b"\x80\x02" + mutations.program(rng, 60))
        return "program"
    if kind == 1:
        tensor = torch_files.Pickle().opcodes(torch_files.tensor("0", mutations.BASE))
        body = b"\x80\x02}(" + mutations.text("a") + tensor + mutations.program(rng, 20)[:-1] + b"u."
        torch_files.write_zip(path, {}, archive={"data.pkl": body, "data/0": mutations.BASE.tobytes()})
        return "program in an archive"
    path.write_bytes(mutations.mutated(sample.read_bytes(), rng))
    return sample.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    rng, counts, slowest = random.Random(flags.seed), collections.Counter(), (0.0, "")
    folder = Path(tempfile.mkdtemp(prefix="fuzz_convert"))
    samples, path = mutations.samples(folder), folder / "input"
    codecs.lookup("cp437")  # of names in archives; this and the samples import what is imported late
    for sample in samples:
        mutations.try_to_read(sample)
    copyreg.add_extension("posix", "system", mutations.EXTENSION)
    pickle.loads(mutations.OF_EXTENSION + b".")  # from here on the registry knows the function
    watching = [False]
    forbid(watching)
    before, until = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic() + 60 * flags.minutes
    while time.monotonic() < until:
        kind = write_input(path, rng.choice(samples), rng)
        faulthandler.dump_traceback_later(60, exit=True)
        began = time.perf_counter()
        watching[0] = True
        try:
            counts[kind, "opened" if mutations.try_to_read(path) else "refused"] += 1
        except BaseException:
            print(f"{kind}: kept as {path}", flush=True)
            raise
        finally:
            watching[0] = False
        slowest = max(slowest, (time.perf_counter() - began, kind))
    faulthandler.cancel_dump_traceback_later()
    for (kind, what), count in sorted(counts.items()):
        print(f"{kind:22} {what:8} {count:8}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{counts.total()} inputs; the slowest took {slowest[0]:.3f} s ({slowest[1]}); memory grew by", end=" ")
    print(f"{(peak - before) / 1024:.0f} MB to {peak / 1024:.0f} MB")


if __name__ == "__main__":
    main()
