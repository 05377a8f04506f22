"""Studies: many runs, one question, a verdict. A page of `experiments/studies` defines `STUDY` with these classes."""

from vqgan_jax.studies.page import Base, Comparison, Measure, Run, Study

__all__ = ["Base", "Comparison", "Measure", "Run", "Study"]
