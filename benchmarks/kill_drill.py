"""Kills a training run at random moments and compares its end, bit by bit, with a run that was left alone.

    python benchmarks/kill_drill.py --kills=20

Prints a line a kill and at the end how many arrays and numbers were found identical. The runs are tiny and on the
CPU: about ten seconds a kill.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "train"))

import drill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    flags = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for line in drill.kill_drill(Path(folder), flags.kills, seed=flags.seed):
            print(line, flush=True)
    print(f"{flags.kills} kills in {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
