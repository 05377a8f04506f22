"""Draws docs/healthy.png: the curves of both stages of a quickstart, with the phases that docs/diagnosis.md names.

python benchmarks/healthy_plot.py                     # of the curves that the tests keep
python benchmarks/healthy_plot.py runs/quickstart     # of a run of yours, into healthy.png here
"""

import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from vqgan_jax.report import plots
from vqgan_jax.report.run import read

ROOT = Path(__file__).parents[1]
PANELS = {  # title: metrics by the name of their line
    "What the generator lowers": {
        "pixels": "train/rec_loss",
        "perceptual": "train/perceptual_loss",
        "held-out LPIPS": "eval/lpips",
    },
    "Logits of the discriminator": {"images": "train/logits_real", "reconstructions": "train/logits_fake"},
    "Perplexity of 512 codes": {"training": "train/perplexity", "held out": "eval/perplexity"},
    "Prior: nats a token": {"training": "train/loss", "held out": "eval/nll"},
}


def main(folder: str = "") -> None:
    """Draws the four panels."""
    base = f"{folder}/" if folder else f"{ROOT}/tests/golden/curves/quickstart_"
    tokenizer, prior = (read(base + name).history for name in ("tokenizer", "prior"))
    loss = tokenizer.config.loss.in_steps(tokenizer.config.steps)
    phases = [0, tokenizer.config.optimizer.warmup_steps, loss.disc_start, loss.disc_start + loss.disc_ramp]
    with matplotlib.rc_context(plots.STYLE | {"font.family": "sans-serif"}):
        figure = Figure(figsize=(10, 6), layout="constrained", facecolor="white")
        for axes, (title, lines) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
            history = prior if "Prior" in title else tokenizer
            for label, metric in lines.items():
                axes.plot(*history.curves(metric), label=label, marker="o" if metric.startswith("eval/") else "")
            starts = [0, prior.config.optimizer.warmup_steps] if history is prior else phases
            for number, start in enumerate(starts, 1):
                axes.axvline(start, color=plots.RULE, linewidth=1)
                axes.annotate(
                    str(number), (start, 1), (3, -11), ("data", "axes fraction"), "offset points", color=plots.SOFT
                )
            axes.set_title(title, loc="left", fontsize=12, pad=24)
            axes.set_xlabel("step")
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=3)
        figure.savefig(ROOT / "docs" / "healthy.png" if not folder else "healthy.png", dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:])
