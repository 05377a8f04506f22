"""A study of seconds: two tokenizers of rendered scenes, two priors over the codes of one of them."""

from pathlib import Path

from vqgan_jax.studies import Base, Comparison, Measure, Run, Study

TRAIN = Path(__file__).parents[1] / "train"


def steps_apart(workdir: str, seed: int) -> dict[str, dict[str, float]]:
    """A figure of the page's own, of two settings."""
    return {"one": {"own": seed + 1.0}, "two": {"own": seed + 2.0 + 0.1 * seed}}


STUDY = Study(
    title="A tiny study",
    question="Does a study come to its end?",
    claim="Two steps more are better.",
    header=("variant", "l1"),
    published=(("short", "2"), ("long", "1")),
    bases={
        "tokenizer": Base(
            str(TRAIN / "tiny.py"),
            {"steps": 4, "log.eval_every": 2, "log.checkpoint_every": 2},
            measure=Measure(metrics=("psnr", "l1"), examples=16),
        ),
        "prior": Base(
            f"{TRAIN / 'tiny_prior.py'}:plain",
            {"data.source": "photos", "condition.num_classes": 11, "steps": 4, "log.checkpoint_every": 2},
            measure=Measure(metrics=("nll",), examples=16, function=steps_apart),
            cached=True,
        ),
    },
    runs={
        "short": Run("tokenizer", {"data.source": "photos"}),
        "long": Run("tokenizer", {"data.source": "photos", "steps": 6}),
        "spiral": Run("prior", tokenizer="short"),
        "raster": Run("prior", {"transformer.order": "raster"}, tokenizer="short"),
    },
    seeds=(0, 1),
    figures={"l1": "lower", "psnr": "higher", "nll": "lower", "own": "higher"},
    decides=(Comparison("long", "short", "l1"),),
    also=(Comparison("raster", "spiral", "nll"), Comparison("raster, two", "raster, one", "own")),
)
