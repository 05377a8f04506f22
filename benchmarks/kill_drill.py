"""Kills a run at random moments and compares its end, bit by bit, with a run that was left alone.

    python benchmarks/kill_drill.py --kills=20
    python benchmarks/kill_drill.py --kills=10 --stage=2
    python benchmarks/kill_drill.py --kills=10 --tokenize

Prints a line a kill and at the end how much was found identical: arrays and numbers of a training run, files and bytes
of a token cache. The runs are tiny and on the CPU: about ten seconds a kill.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.extend(str(Path(__file__).parents[1] / "tests" / folder) for folder in ("", "train"))

import drill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--stage", type=int, choices=(1, 2), default=1, help="of the training")
    what.add_argument("--tokenize", action="store_true", help="kill `vqgan tokenize` instead")
    flags = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if flags.tokenize:
            lines = drill.tokenize_drill(Path(folder), flags.kills, seed=flags.seed)
        else:
            lines = drill.kill_drill(Path(folder), flags.kills, stage=flags.stage, seed=flags.seed)
        for line in lines:
            print(line, flush=True)
    print(f"{flags.kills} kills in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
