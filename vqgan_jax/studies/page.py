"""What a page of a study says: the question, the claim, the runs, how they are measured, and what decides."""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

TRAINING = ("tokenizer", "condition", "start")  # roles of runs that shape a training
ROLES = (*TRAINING, "decoder")  # of all runs that a run needs
Function = Callable[[str, int], Mapping[str, Mapping[str, float]]]  # (workdir, seed) -> figures by setting and name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """How a trained run is measured.

    Attributes:
      metrics: of `vqgan evaluate`; () where `function` measures alone.
      examples: held-out examples that are looked at, spread over all; 0 for every one.
      samples: images that a prior draws.
      reference: "validation" or "train", of the run's own images; or a folder or .npz.
      sweep: settings of drawing, as `vqgan evaluate --sweep` takes them; each counts as a variant of its own.
      scorer: FILE.py:NAME of the settings with an `accept_rate`.
      classifier: a small one, trained once on the runs' own images, for `class_accuracy` and, without `scorer`, for
        `accept_rate`.
      function: of the page; figures by setting ("" where there are no settings) and by name.
    """

    metrics: tuple[str, ...] = ()
    examples: int = 0
    samples: int = 0
    reference: str = "validation"
    sweep: str = ""
    scorer: str = ""
    classifier: bool = False
    function: Function | None = None

    def identity(self) -> dict[str, Any]:
        """Returns what a record keeps of it: the fields that differ from their defaults."""
        default = type(self)()
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values = {name: value for name, value in values.items() if value != getattr(default, name)}
        return values | ({"function": self.function.__name__} if self.function else {})


@dataclasses.dataclass(frozen=True)
class Base:
    """What runs have in common: a page of the lab book and the budget of this study.

    Attributes:
      page: PAGE[:VARIANT], as `vqgan train --config` takes it; `--base` names another one of the same stage.
      changes: values by "section.key", such as the steps; they go with the page when `--base` replaces it.
      measure: of each run that says nothing else.
      cached: whether a prior learns a token cache, which all priors over the same codes share.
    """

    page: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    measure: Measure = Measure()
    cached: bool = False


@dataclasses.dataclass(frozen=True)
class Run:
    """A variant: it is trained once for each seed.

    Attributes:
      base: name of one of the study's bases.
      changes: what is special about this variant, by "section.key".
      tokenizer: the run of this study whose codes a prior learns: of the same seed, or of its only seed.
      condition: likewise, the run that encodes the maps of a prior's condition.
      start: likewise, the run whose parameters a run of stage 1 begins with.
      decoder: likewise, the run of the same codes that decodes the samples of a prior; "" is `tokenizer`.
      measure: None for the base's.
      seeds: () for the study's.
      minutes: the training ends after so many minutes of steps, if it has not reached its last step; 0 is no limit.
        The learning rate's schedule still goes by steps: let it be constant where runs of a limit are compared.
    """

    base: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tokenizer: str = ""
    condition: str = ""
    start: str = ""
    decoder: str = ""
    measure: Measure | None = None
    seeds: tuple[int, ...] = ()
    minutes: float = 0.0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The statement that one variant is better than another by a figure.

    Attributes:
      better, than: variants: the name of a run, or of a setting of it, such as "prior, top_k 100".
      figure: one of the study's.
      margin: that the advantage is above; see `verdict.compare`.
    """

    better: str
    than: str
    figure: str
    margin: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A question and the runs that answer it.

    Attributes:
      title: two or three words.
      question: one sentence.
      claim: what was published, with its source.
      header, published: the published table; () where there is none.
      bases: by name.
      runs: variants by name, in the order of tables.
      seeds: of each run.
      figures: "higher" or "lower", whichever is better, or "none", by the name that a result has: fd_vgg2k, nll.
      decides: the claim holds if all of these statements do.
      also: statements that are tested and do not decide.
      notes: what a reader must know to weigh the result, such as how it differs from the published setting.
    """

    title: str
    question: str
    claim: str
    bases: Mapping[str, Base]
    runs: Mapping[str, Run]
    figures: Mapping[str, str]
    decides: tuple[Comparison, ...]
    also: tuple[Comparison, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    header: tuple[str, ...] = ()
    published: tuple[tuple[str, ...], ...] = ()
    notes: str = ""

    def check(self) -> None:
        """Raises ValueError for a name that there is not, and for runs that contradict each other."""
        if not self.seeds or not self.runs or not self.decides:
            raise ValueError(f"a study must have seeds, runs and a comparison that decides; {self.title!r} lacks some.")
        for name, run in self.runs.items():
            self.check_run(name, run)
        for comparison in (*self.decides, *self.also):
            check_name("a comparison's figure", comparison.figure, self.figures)
            for variant in (comparison.better, comparison.than):
                check_name("a compared run", variant.partition(", ")[0], self.runs)
            if comparison.better == comparison.than:
                raise ValueError(f"a comparison must have two variants; got {comparison.better!r} twice.")
        for figure, direction in self.figures.items():
            check_name(f"the direction of {figure}", direction, ("higher", "lower", "none"))

    def check_run(self, name: str, run: Run) -> None:
        """Raises ValueError for a run whose base or tokenizers are not there, or have other seeds."""
        check_name(f"the base of run {name!r}", run.base, self.bases)
        if ", " in name or "/" in name:
            raise ValueError(f"a run's name must have no comma with a space and no slash; got {name!r}. Rename it.")
        if run.decoder and self.measure_of(name).function:
            raise ValueError(f"run {name!r} has a decoder, of which the function that measures it does not know.")
        for role in ROLES:
            other = getattr(run, role)
            if not other:
                continue
            check_name(f"the {role} of run {name!r}", other, self.runs)
            if self.runs[other].tokenizer or other == name:
                raise ValueError(f"the {role} of run {name!r} must be a run of stage 1; {other!r} is a prior.")
            theirs, ours = self.seeds_of(other), self.seeds_of(name)
            if len(theirs) > 1 and not set(ours) <= set(theirs):
                raise ValueError(
                    f"run {name!r} must have the seeds of its {role} {other!r}, {theirs}, or that one a single seed; "
                    f"got {ours}. Set the seeds of one of them."
                )

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """Returns the seeds of a run."""
        return self.runs[name].seeds or self.seeds

    def measure_of(self, name: str) -> Measure:
        """Returns how a run is measured."""
        run = self.runs[name]
        return run.measure or self.bases[run.base].measure


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raises ValueError for a name that is none of `known`; the nearest one is named."""
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        raise ValueError(f"{what} must be one of {', '.join(names) or 'none'}; got {name!r}{hint}. Correct the page.")
