"""Records of finished runs: read, checked against the study's page, joined, compared, and written as results.json."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from vqgan_jax.data import storage
from vqgan_jax.studies import verdict
from vqgan_jax.studies.page import Comparison, Study
from vqgan_jax.studies.plan import Job, digest
from vqgan_jax.studies.verdict import TEST

FORMAT = 1
PROTOCOL = (  # fields of `evaluate.protocol.Result` in which two comparable figures agree
    "unit",
    "variant",
    "subject_count",
    "reference",
    "reference_count",
    "reference_fingerprint",
    "resize",
    "rounding",
    "network",
    "network_hash",
    "weights",
)
Key = tuple[str, int]  # a run's name and its seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """A finished run with one seed.

    Attributes:
      run, seed: which one.
      key: digest of its config.
      measuring: how it was measured.
      changes: what the study changed for this variant.
      steps: that it was trained.
      minutes: of training steps, by the clock, without start, compilation and evaluations.
      cpu_minutes: of all its processes that ended; what a kill took with it is missing.
      peak_gib: the most memory that one of them had.
      commit: of the program that measured it.
      versions: of the libraries.
      machine: where it was measured.
      tokenizer: fingerprint of the tokenizer whose codes a prior learned; "" of a tokenizer.
      protocol: of each figure that `vqgan evaluate` measured.
      figures: by setting ("" where nothing was swept) and by name.
      curve: held-out figures while it trained: pairs of step and value.
    """

    run: str
    seed: int
    key: str
    measuring: dict[str, Any]
    changes: dict[str, Any]
    steps: int
    minutes: float
    cpu_minutes: float
    peak_gib: float
    commit: str
    versions: dict[str, str]
    machine: str
    tokenizer: str
    protocol: dict[str, dict[str, Any]]
    figures: dict[str, dict[str, float]]
    curve: dict[str, list[list[float | int]]]


def read(path: epath.Path) -> dict[Key, Record]:
    """Returns the records of a results.json by run and seed; none where there is no such file.

    Raises:
      ValueError: the file is of another format, is cut off, or counts a run twice.
    """
    if not path.exists():
        return {}
    try:
        whole = json.loads(path.read_text())
        if whole["format"] != FORMAT:
            raise ValueError(
                f"{path} must have format {FORMAT}, which this program writes; got {whole['format']!r}. Install the "
                "vqgan_jax that wrote it, or run the study again into another file."
            )
        protocols = whole["protocols"]
        records = [
            Record(**run | {"protocol": {name: protocols[mark] for name, mark in run["protocol"].items()}})
            for run in whole["runs"]
        ]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} must be the results.json of a study; it is none: {type(error).__name__}: {error}. Restore it, or "
            "remove it to run the study again."
        ) from None
    by_run: dict[Key, Record] = {}
    for record in records:
        if (record.run, record.seed) in by_run:
            raise ValueError(
                f"{path} must hold each run once; {record.run!r}, seed {record.seed}, is there twice. Remove one."
            )
        by_run[record.run, record.seed] = record
    return by_run


def misfit(record: Record, job: Job | None) -> str:
    """Returns why a record does not answer for a job of today, "" where it does."""
    if job is None:
        return "the page has no such run and seed"
    if record.key != job.key:
        return "it was trained with another config: the page, or one that it builds on, has changed since"
    if record.measuring != job.measuring:
        both = record.measuring.keys() | job.measuring.keys()
        changed = sorted(name for name in both if record.measuring.get(name) != job.measuring.get(name))
        return f"it was measured otherwise: {', '.join(changed)} changed since"
    return ""


def fitting(
    records: Mapping[Key, Record], jobs: Iterable[Job], path: epath.PathLike, *, renew: bool
) -> dict[Key, Record]:
    """Returns the records that answer for jobs of today.

    Args:
      records: of a file.
      jobs: of the study, for every seed.
      path: of the file, for the error.
      renew: leave out what does not fit, instead of an error.

    Raises:
      ValueError: a record was made by another config or measured otherwise.
    """
    known = {(job.run, job.seed): job for job in jobs}
    wrong = {key: why for key, record in records.items() if (why := misfit(record, known.get(key)))}
    if wrong and not renew:
        (run, seed), why = next(iter(wrong.items()))
        others = f" ({len(wrong) - 1} more likewise)" if len(wrong) > 1 else ""
        raise ValueError(
            f"a result in {path} must be of this study as it is today; that of {run!r}, seed {seed}, is not{others}: "
            f"{why}. Restore the page, or give --renew to run it again."
        )
    return {key: record for key, record in records.items() if key not in wrong}


def differing(ours: Mapping[Key, Record], others: Mapping[Key, Record]) -> list[Key]:
    """Returns the runs of which both files have results, and other figures."""
    return [key for key in ours if key in others and ours[key].figures != others[key].figures]


# Figures and verdicts


def variants(records: Iterable[Record]) -> dict[str, dict[str, dict[int, float]]]:
    """Returns values by variant, figure and seed; a setting of a run is a variant, "prior, top_k 100"."""
    values: dict[str, dict[str, dict[int, float]]] = {}
    for record in records:
        for setting, figures in record.figures.items():
            variant = values.setdefault(f"{record.run}, {setting}" if setting else record.run, {})
            for figure, value in figures.items():
                variant.setdefault(figure, {})[record.seed] = value
    return values


def check_protocols(study: Study, records: Iterable[Record]) -> None:
    """Raises ValueError where a figure that is compared was measured by two protocols."""
    records, compared = list(records), (*study.decides, *study.also)
    for figure in dict.fromkeys(comparison.figure for comparison in compared):
        names = {name.partition(", ")[0] for c in compared if c.figure == figure for name in (c.better, c.than)}
        first: Record | None = None
        for record in records:
            if record.run not in names or figure not in record.protocol:
                continue
            first = first or record
            mine, theirs = record.protocol[figure], first.protocol[figure]
            changed = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
            if changed:
                raise ValueError(
                    f"figures that are compared must have one protocol; `{figure}` of {record.run!r}, seed "
                    f"{record.seed}, and of {first.run!r}, seed {first.seed}, differ in {', '.join(changed)} "
                    f"({mine.get(changed[0])!r} and {theirs.get(changed[0])!r}). Measure one of them again: remove its "
                    "record from the results."
                )


def compare(study: Study, records: Iterable[Record]) -> list[tuple[Comparison, verdict.Outcome]]:
    """Returns the outcome of each comparison, those that decide first.

    Raises:
      ValueError: a compared figure was measured by two protocols.
    """
    records = list(records)
    check_protocols(study, records)
    values = variants(records)
    outcomes = []
    for comparison in (*study.decides, *study.also):
        better, than = (
            values.get(name, {}).get(comparison.figure, {}) for name in (comparison.better, comparison.than)
        )
        outcome = verdict.compare(
            better,
            than,
            direction=study.figures[comparison.figure],
            margin=comparison.margin,
            statements=len(study.decides) if comparison in study.decides else 1,
        )
        outcomes.append((comparison, outcome))
    return outcomes


def tokenizers_differ(study: Study, records: Iterable[Record]) -> list[str]:
    """Returns a line for each tokenizer that was trained twice, so that priors of one seed have other codes."""
    fingerprints: dict[tuple[str, int], set[str]] = {}
    for record in records:
        if record.tokenizer:
            fingerprints.setdefault((study.runs[record.run].tokenizer, record.seed), set()).add(record.tokenizer)
    return [
        f"priors of seed {seed} learned codes of {len(marks)} trainings of {name!r}: their difference is in the spread"
        for (name, seed), marks in fingerprints.items()
        if len(marks) > 1
    ]


@dataclasses.dataclass(frozen=True)
class Results:
    """Everything that is known of a study, for results.json and for pages.

    Attributes:
      name: of its page.
      study: the page.
      records: in the order of the page, by seed.
      values: by variant, figure and seed.
      outcomes: of all comparisons, those that decide first.
      verdict: on the claim.
      test: how the verdict came, in words.
    """

    name: str
    study: Study
    records: list[Record]
    values: dict[str, dict[str, dict[int, float]]]
    outcomes: list[tuple[Comparison, verdict.Outcome]]
    verdict: str
    test: str = TEST


def results_of(name: str, study: Study, records: Iterable[Record]) -> Results:
    """Returns the results of some records; ValueError where a compared figure was measured by two protocols."""
    order = {run: place for place, run in enumerate(study.runs)}
    ordered = sorted(records, key=lambda record: (order[record.run], record.seed))
    outcomes = compare(study, ordered)
    overall = verdict.overall([outcome for _, outcome in outcomes[: len(study.decides)]])
    return Results(name, study, ordered, variants(ordered), outcomes, overall)


def write(path: epath.Path, results: Results, failed: Mapping[str, str]) -> None:
    """Writes results.json whole or not at all: records, comparisons, the verdict, and what failed."""
    study, ordered, outcomes = results.study, results.records, results.outcomes
    protocols: dict[str, dict[str, Any]] = {}
    runs = []
    for record in ordered:
        marks = {figure: digest(protocol) for figure, protocol in record.protocol.items()}
        protocols |= {marks[figure]: protocol for figure, protocol in record.protocol.items()}
        runs.append(dataclasses.asdict(record) | {"protocol": marks})
    finite = lambda value: value if not isinstance(value, float) or math.isfinite(value) else None
    comparisons = [
        dataclasses.asdict(comparison)
        | {"decides": i < len(study.decides)}
        | {key: finite(value) for key, value in dataclasses.asdict(outcome).items()}
        for i, (comparison, outcome) in enumerate(outcomes)
    ]
    whole = {
        "format": FORMAT,
        "study": results.name,
        "question": study.question,
        "claim": study.claim,
        "verdict": results.verdict,
        "test": results.test,
        "comparisons": comparisons,
        "failed": dict(failed),
        "protocols": dict(sorted(protocols.items())),
        "runs": [],
    }
    lines = ",\n  ".join(json.dumps(run) for run in runs)  # a line a run: what a new seed adds is seen in a diff
    text = json.dumps(whole, indent=1).replace('"runs": []', f'"runs": [\n  {lines}\n ]')
    storage.write_whole(path, (text + "\n").encode())
