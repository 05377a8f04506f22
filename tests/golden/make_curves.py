"""Writes the curves of runs that are well into `curves/`: what the rules of a diagnosis read, with five digits.

    python tests/golden/make_curves.py quickstart_prior=runs/quickstart/prior losses_l2=studies/runs/stage1-e4093a697d-0

Of paths in a config only the last part is kept. The README of this folder says which runs these are.
"""

import json
import sys
from pathlib import Path

from etils import epath

from vqgan_jax.train.metrics import Writer

FOLDER = Path(__file__).parent / "curves"
UNREAD = ("goodput/", "train/accuracy", "train/images_per_second", "train/commitment_loss", "train/codebook_loss")


def short(value):
    """The value without the folders of a path."""
    if isinstance(value, dict):
        return {key: short(each) for key, each in value.items()}
    if isinstance(value, str) and "/" in value:
        kind, colon, path = value.rpartition(":")
        return kind + colon + Path(path).name
    return value


def main(pairs):
    for name, workdir in (pair.split("=") for pair in pairs):
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        config = json.loads((Path(workdir) / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(short(config), indent=1) + "\n")
        lines = []
        for line in Writer.read(epath.Path(workdir) / "metrics.jsonl"):
            values = {key: value for key, value in line.items() if "/" in key and not key.startswith(UNREAD)}
            if values:
                rounded = {key: float(f"{value:.5g}") for key, value in values.items()}
                lines.append(json.dumps({"step": line["step"], **rounded}) + "\n")
        (folder / "metrics.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main(sys.argv[1:])
