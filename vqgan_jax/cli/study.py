"""Runs a study: all its variants with all seeds, as far as results are missing, and writes the verdict as a page."""

import argparse
import fcntl
import math
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from absl import logging
from etils import epath
from rich.console import Console
from rich.table import Table

from vqgan_jax import cli
from vqgan_jax.data import storage
from vqgan_jax.studies import Study, plan, report, results, run
from vqgan_jax.studies.page import check_name
from vqgan_jax.studies.plan import Job
from vqgan_jax.studies.results import Key, Record
from vqgan_jax.train.watch import Stop

EXAMPLES = """examples:
  vqgan study losses --workdir=studies --dry_run
  VQGAN_JAX_DATA=DIR vqgan study losses --workdir=studies
  vqgan study losses --workdir=studies --only=l2,adaptive --seeds=3,4
  vqgan study losses --workdir=gs://bucket/studies --base=stage1_imagenet:f16_1024 --print_commands
  vqgan study --summary=docs/results.md

A page of experiments/studies says what runs there are; what experiments/results/NAME.json holds is not run again. Kill
it as you like: the same command goes on. WORKDIR/NAME gets results.json and index.html; runs are in WORKDIR/runs, and
studies of one workdir share those that are the same training. $VQGAN_JAX_DATA is a folder with prepared datasets in
tfds/. To keep results, copy WORKDIR/NAME/results.json to experiments/results/NAME.json.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags."""
    parser = cli.parser("study", __doc__, EXAMPLES)
    parser.add_argument("page", nargs="?", metavar="PAGE", help="a page of experiments/studies, or a Python file")
    parser.add_argument("--workdir", help="folder of all studies")
    parser.add_argument(
        "--results", metavar="FILE", help="committed results; default: ../results/PAGE.json of the page"
    )
    parser.add_argument("--only", default="", metavar="RUN,...", help="these runs, and what they need")
    parser.add_argument("--seeds", default="", metavar="N,...", help="instead of the page's")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; default: 1")
    parser.add_argument(
        "--base", action="append", default=[], metavar="PAGE", help="instead of the study's page of the same stage"
    )
    parser.add_argument("--renew", action="store_true", help="run again what an earlier page or protocol made")
    parser.add_argument("--dry_run", action="store_true", help="print what is there and what is missing, and exit")
    parser.add_argument("--print_commands", action="store_true", help="print the commands of what is missing, and exit")
    parser.add_argument("--report", action="store_true", help="write results and page of what is there, and exit")
    parser.add_argument("--measure", metavar="RUN", help="call the page's own function for a trained run, and exit")
    parser.add_argument(
        "--summary",
        metavar="FILE",
        help="write what committed studies came to, and exit; in a file with the line <!-- studies --> there",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """`vqgan study`."""
    flags = parse(argv)
    if flags.summary:
        file = Path(flags.summary)
        file.write_text(summary(file))
        return 0
    if not flags.page or not flags.workdir:
        raise cli.UsageError("give a PAGE and a `--workdir`, the folder of all studies.")
    if flags.jobs < 1:
        raise cli.UsageError(f"`--jobs` must be at least 1; got {flags.jobs}.")
    logging.set_verbosity(logging.WARNING)
    page, workdir = find_page(flags.page), storage.place(flags.workdir)
    seeds = numbers("--seeds", flags.seeds)
    with cli.page_module(page) as module:
        study = study_of(module, page)
        folder = workdir / folder_name(page, flags.base)
        files = [*committed(flags, page), folder / "results.json"]
        stored = {file: results.read(file) for file in files}
        every_seed = sorted({*study.seeds, *seeds, *(seed for records in stored.values() for _, seed in records)})
        jobs = plan.jobs(
            study,
            str(page),
            workdir,
            cli.load_config,
            bases=bases_of(flags.base),
            seeds=every_seed,
            data_dir=f"{data}/tfds" if (data := os.environ.get("VQGAN_JAX_DATA")) else "",
        )
        if flags.measure:
            measure(study, jobs, flags.measure, seeds)
            return 0
        chosen = choose(study, jobs, list(filter(None, flags.only.split(","))), seeds or study.seeds)
        console = Console()
        records = join(stored, jobs, console, renew=flags.renew)
        return go_on(flags, study, page.stem, folder, jobs, chosen, records, console)


def committed(flags: argparse.Namespace, page: Path) -> list[epath.Path]:
    """Returns the file of committed results, if there is one; those beside the page are of its own bases."""
    if flags.results and not Path(flags.results).is_file():
        raise cli.UsageError(f"`--results` must be a file that is there; got {flags.results!r}.")
    beside = page.parent.with_name("results") / f"{page.stem}.json"
    if flags.results or flags.base:
        return [epath.Path(flags.results)] if flags.results else []
    return [epath.Path(beside)]


def folder_name(page: Path, bases: Sequence[str]) -> str:
    """Returns the folder of a study's results; on other bases than its own they are other results."""
    return "-".join([page.stem, *(re.sub(r"\W+", "_", base.rpartition("/")[2]) for base in sorted(bases))])


def choose(study: Study, jobs: Sequence[Job], only: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """Returns the jobs of the runs `only`, () for all runs, with the seeds of the run itself, or else `seeds`."""
    for name in only:
        check_name("`--only`", name, study.runs)
    return [job for job in jobs if (not only or job.run in only) and job.seed in (study.runs[job.run].seeds or seeds)]


def join(
    files: Mapping[epath.Path, Mapping[Key, Record]], jobs: Sequence[Job], console: Console, *, renew: bool
) -> dict[Key, Record]:
    """Returns the records of all files; of two results of one run the first file's counts."""
    joined: dict[Key, Record] = {}
    for file, records in files.items():
        fitting = results.fitting(records, jobs, file, renew=renew)
        for name, seed in results.differing(joined, fitting):
            console.print(f"{name}, seed {seed} has two results that differ; the committed one counts")
        joined = {**fitting, **joined}
    return joined


def go_on(
    flags: argparse.Namespace,
    study: Study,
    name: str,
    folder: epath.Path,
    jobs: Sequence[Job],
    chosen: Sequence[Job],
    records: dict[Key, Record],
    console: Console,
) -> int:
    """Runs the chosen jobs that have no record, or prints them, and returns the exit status."""
    workdir, missing = storage.place(flags.workdir), [job for job in chosen if (job.run, job.seed) not in records]
    if flags.print_commands:
        print("\n".join(commands_of(missing, workdir)))
        return 0
    if flags.dry_run:
        describe(study, chosen, missing, records, console)
        return 0
    if storage.in_bucket(workdir):
        raise cli.UsageError(
            f"a study runs in a folder of this machine; got {workdir}. For a bucket give --print_commands."
        )
    failed, whole = {}, True
    storage.make_folder(folder)

    def save() -> None:
        """Writes these results, and those that other processes of the study wrote meanwhile."""
        file = folder / "results.json"
        with (Path(folder) / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            others = results.fitting(results.read(file), jobs, file, renew=True)
            records.update({key: record for key, record in others.items() if key not in records})
            results.write(file, results.results_of(name, study, records.values()), failed)

    def done(job: Job, record: Record) -> None:
        results.check_protocols(study, [*records.values(), record])
        records[job.run, job.seed] = record
        save()
        figures = next(iter(record.figures.values()), {})  # of several settings the first one's
        line = "  ".join(f"{figure} {value:.4g}" for figure, value in figures.items())
        console.print(f"[bold]done[/]  {job.name}: {line}", highlight=False, soft_wrap=True)

    if not flags.report:
        jax.config.update("jax_platforms", "cpu")  # here: an accelerator belongs to the processes that train
        warn_of_retraining(missing, records, console)
        in_turn = sorted(missing, key=lambda job: job.seed)  # all variants of one seed, then of the next
        with Stop() as stop:
            failed, whole = run.run_all(in_turn, run.Runner(workdir, console, stop), flags.jobs, done)
    save()
    return finish(results.results_of(name, study, records.values()), jobs, failed, folder, console, whole=whole)


def commands_of(missing: Sequence[Job], workdir: epath.Path) -> list[str]:
    """Returns each command that the jobs need, once, in order; an error for a job that ends by the clock."""
    if timed := sorted({job.run for job in missing if job.minutes}):
        raise cli.UsageError(
            f"a printed command trains to its last step, and {', '.join(timed)} end by the clock. Leave them out by "
            "--only, or run `vqgan study` on the machine that should train them."
        )
    commands = [command for job in [*to_train_first(missing), *missing] for command in job.commands(workdir)]
    return list(dict.fromkeys(commands))


def finish(
    result: results.Results,
    jobs: Sequence[Job],
    failed: Mapping[str, str],
    folder: epath.Path,
    console: Console,
    *,
    whole: bool,
) -> int:
    """Writes the page and prints the verdict; returns the exit status."""
    notes, sheets, study = results.tokenizers_differ(result.study, result.records), {}, result.study
    for job in sorted(jobs, key=lambda job: (list(study.runs).index(job.run), job.seed)):
        if job.run not in sheets and (sheet := report.sheet_of(job.folder)) is not None:
            sheets[job.run] = sheet
    (folder / "index.html").write_text(report.page(result, failed=failed, notes=notes, sheets=sheets))
    for comparison, outcome in result.outcomes:
        console.print(report.sentence(comparison, outcome), highlight=False, soft_wrap=True)
    for line in notes:
        console.print(line)
    stopped = "" if whole else "  stopped; the same command goes on"
    console.print(f"[bold]{result.verdict}[/]: {study.claim}{stopped}", soft_wrap=True)
    console.print(f"{folder / 'results.json'} and index.html", soft_wrap=True)
    return 1 if failed else 0


def to_train_first(missing: Sequence[Job]) -> list[Job]:
    """Returns the jobs that are not trained and whose weights others need, each once."""
    needs = {other.folder: other for job in missing for other in job.needs}
    return [job for job in needs.values() if not (job.folder / run.TRAINED).exists()]


def warn_of_retraining(missing: Sequence[Job], records: Mapping[Key, Record], console: Console) -> None:
    """Prints the runs that have results but must be trained again, because others need their weights."""
    for job in to_train_first(missing):
        if (job.run, job.seed) in records:
            text = f"{job.name} is trained again: others need its weights, which are not in {job.folder}"
            console.print(text, highlight=False, soft_wrap=True)


def describe(
    study: Study, chosen: Sequence[Job], missing: Sequence[Job], records: Mapping[Key, Record], console: Console
) -> None:
    """Prints a line for each run and seed, and what is to be done."""
    table = Table("run", "seed", "steps", "needs", "state", title=study.question)
    for job in chosen:
        state = "has results" if job not in missing else "trained" if run.is_trained(job) else "missing"
        table.add_row(job.run, str(job.seed), f"{job.config.steps:,}", "; ".join(o.name for o in job.needs), state)
    console.print(table)
    warn_of_retraining(missing, records, console)
    console.print(f"{len(chosen) - len(missing)} of {len(chosen)} have results; {len(missing)} are to be run")


def measure(study: Study, jobs: Sequence[Job], name: str, seeds: Sequence[int]) -> None:
    """Calls the page's function for a run that is trained, and writes its figures."""
    check_name("`--measure`", name, study.runs)
    function = study.measure_of(name).function
    if function is None:
        raise cli.UsageError(f"run {name!r} is not measured by a function of its page.")
    for job in jobs:
        if job.run == name and job.seed in (seeds or study.seeds_of(name)):
            figures = {
                setting: {figure: finite(figure, value) for figure, value in values.items()}
                for setting, values in function(str(job.folder), job.seed).items()
            }
            storage.make_folder(job.measured)
            storage.write_json(job.measured / run.BY_PAGE, figures)


def finite(figure: str, value: float | int) -> float:
    """Returns a figure; ValueError for what is no finite number."""
    if not math.isfinite(value):
        raise ValueError(f"a figure must be a finite number; `{figure}` is {value}. Correct the function of the page.")
    return float(value)


def find_page(text: str) -> Path:
    """Returns the file of a study; UsageError if there is none of that name."""
    path = Path(text).resolve()
    if path.is_file() and path.suffix == ".py":
        return path
    shipped = pages()
    if text not in shipped:
        raise cli.UsageError(f"PAGE must be a Python file or one of {', '.join(shipped)}; got {text!r}.")
    return shipped[text]


def pages() -> dict[str, Path]:
    """Returns the studies of the lab book by name."""
    files = (file for folder in cli.PAGES for file in sorted((folder / "studies").glob("*.py")))
    return {file.stem: file for file in files if "\nSTUDY = " in file.read_text()}


def study_of(module: object, page: Path) -> Study:
    """Returns the `STUDY` of a page; UsageError if there is none."""
    study = getattr(module, "STUDY", None)
    if not isinstance(study, Study):
        raise cli.UsageError(f"a page of a study must define `STUDY`, a vqgan_jax.studies.Study; {page} does not.")
    study.check()
    return study


def bases_of(pages: Sequence[str]) -> dict[int, str]:
    """Returns the pages of `--base` by their stage."""
    by_stage = {cli.load_config(page).stage: page for page in pages}
    if len(by_stage) < len(pages):
        raise cli.UsageError(f"`--base` takes one page of each stage; got {shlex.join(pages)}.")
    return by_stage


def numbers(flag: str, text: str) -> tuple[int, ...]:
    """Returns 0,1,2 as numbers."""
    try:
        return tuple(int(number) for number in filter(None, text.split(",")))
    except ValueError:
        raise cli.UsageError(f"`{flag}` must be numbers with commas between; got {text!r}.") from None


def summary(file: Path) -> str:
    """Returns what all committed studies came to, for a file: its own text with the verdicts, or the whole document."""
    sections = []
    for name, page in pages().items():
        path = epath.Path(page.parent.with_name("results") / f"{name}.json")
        if path.exists():
            with cli.page_module(page) as module:
                sections.append(results.results_of(name, study_of(module, page), results.read(path).values()))
    text = file.read_text() if file.is_file() else ""
    if report.MARKS[0] in text:
        return report.insert(text, sections, "docs/results.md")
    return report.markdown(sections)
