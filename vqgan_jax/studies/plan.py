"""From a study's page to jobs: the config of each run, its folder, and the commands that train and measure it.

A folder's name is a digest of everything that shapes a run, so two runs that are the same training, of one study or of
two, are one folder and are trained once.
"""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from vqgan_jax.nn import fields
from vqgan_jax.studies.page import ROLES, TRAINING, Measure, Study

Load = Callable[[str, Sequence[str]], Any]  # (PAGE[:VARIANT], flags) -> config
# Keys that shape no parameter: where things are, how fast they go, what is written.
APART = ("seed", "log", "mesh", "sampling")
PLACES = {"data": ("data_dir", "num_threads", "timeout_seconds")}
CACHED = ("data", "tokenizer", "condition")  # sections that shape a token cache


@dataclasses.dataclass(frozen=True)
class Job:
    """A run with one seed.

    Attributes:
      run: the variant's name.
      seed: of parameters, data and samples.
      config: of the training.
      key: digest of what shapes the run, its seed apart.
      page: PAGE[:VARIANT].
      overrides: what differs from the page, by "section.key".
      changes: what the study itself changes for this variant.
      folder: the run's workdir.
      measure: how it is measured.
      tokenizer, condition: the jobs whose codes it reads.
      start: the job whose parameters it begins with.
      decoder: the job whose decoder draws its samples; None for that of `tokenizer`.
      cache: folder of its token cache; None where it reads images.
      minutes: see `page.Run`.
      study: the study's page.
      bases: pages that replace its own.
    """

    run: str
    seed: int
    config: Any
    key: str
    page: str
    overrides: Mapping[str, Any]
    changes: Mapping[str, Any]
    folder: epath.Path
    measure: Measure
    tokenizer: "Job | None" = None
    condition: "Job | None" = None
    start: "Job | None" = None
    decoder: "Job | None" = None
    cache: epath.Path | None = None
    minutes: float = 0.0
    study: str = ""
    bases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Returns the run and its seed in words."""
        return f"{self.run}, seed {self.seed}"

    @property
    def needs(self) -> tuple["Job", ...]:
        """Returns the jobs that must be trained before this one."""
        return tuple(job for job in (getattr(self, role) for role in ROLES) if job is not None)

    @property
    def measuring(self) -> dict[str, Any]:
        """Returns what shapes the figures beside the training, of JSON's types."""
        settings = identity(self.config, apart=()) if self.config.stage == 2 else {}
        sampling = {path: value for path, value in settings.items() if path.startswith("sampling.")}
        decoder = {"decoder": self.decoder.key} if self.decoder else {}
        return json.loads(json.dumps(self.measure.identity() | sampling | decoder))

    @property
    def measured(self) -> epath.Path:
        """Returns the folder of what is measured."""
        return self.folder / f"measured-{digest(self.measuring)}"

    def train(self) -> list[str]:
        """Returns the arguments of `vqgan` that train it."""
        source = {"data.source": f"tokens:{self.cache}"} if self.cache else {}
        return ["train", f"--config={self.page}", f"--workdir={self.folder}", *as_flags({**self.overrides, **source})]

    def tokenize(self) -> list[str]:
        """Returns the arguments of `vqgan` that write its token cache: the same for all runs that share it."""
        assert self.tokenizer is not None
        shaping = {path: value for path, value in self.overrides.items() if path.partition(".")[0] in CACHED}
        flags = as_flags(shaping | {"seed": self.tokenizer.seed})
        return ["tokenize", f"--config={self.page}", f"--workdir={self.cache}", *flags]

    def evaluate(self) -> list[str]:
        """Returns the arguments of `vqgan` that measure it by the metrics of its `measure`."""
        m = self.measure
        options = {
            "metrics": ",".join(m.metrics),
            "examples": m.examples,
            "reference": m.reference,
            "seed": self.seed,
            "output": self.measured,
        }
        if self.config.stage == 2:
            images = {path: value for path, value in identity(self.config).items() if path.startswith("data.")}
            classifier = self.folder.parent / f"classifier-{digest(images)}" if m.classifier else ""
            options |= {"samples": m.samples, "sweep": m.sweep, "scorer": m.scorer, "classifier": classifier}
            options |= {"tokenizer": self.decoder.folder} if self.decoder else {}
        flags = [f"--{name}={value}" for name, value in options.items() if value != ""]
        return ["evaluate", f"--workdir={self.folder}", *flags]

    def measure_by_page(self, workdir: epath.PathLike) -> list[str]:
        """Returns the arguments of `vqgan` that measure it by the function of the study's page."""
        bases = [f"--base={page}" for page in self.bases]
        return ["study", self.study, f"--workdir={workdir}", f"--measure={self.run}", f"--seeds={self.seed}", *bases]

    def commands(self, workdir: epath.PathLike) -> list[str]:
        """Returns the shell commands that do the whole job, for a cluster to launch one after the other."""
        verbs = [*([self.tokenize()] if self.cache else []), self.train()]
        verbs += [self.evaluate()] if self.measure.metrics else []
        verbs += [self.measure_by_page(workdir)] if self.measure.function else []
        return [shlex.join(["vqgan", *arguments]) for arguments in verbs]


def jobs(
    study: Study,
    page: str,
    workdir: epath.Path,
    load: Load,
    *,
    bases: Mapping[int, str] | None = None,
    seeds: Sequence[int] = (),
    data_dir: str = "",
) -> list[Job]:
    """Returns the jobs of a study, those that others need first.

    Args:
      study: checked.
      page: where it stands.
      workdir: of all studies; runs are in its folder `runs`.
      load: reads a page of a config with flags.
      bases: pages that replace those of the study, by stage.
      seeds: instead of the study's, for every run that names none itself.
      data_dir: of prepared TFDS datasets.

    Raises:
      ValueError: a config that cannot be, or two variants that are the same.
    """
    study = dataclasses.replace(study, seeds=tuple(seeds) or study.seeds)
    study.check()
    by_run: dict[tuple[str, int], Job] = {}
    depth = lambda run: (bool(run.tokenizer), bool(run.start))  # stage 1 comes first, and of it what needs no other
    for name in sorted(study.runs, key=lambda name: depth(study.runs[name])):
        for seed in study.seeds_of(name):
            by_run[name, seed] = make(study, page, workdir, load, name, seed, by_run, bases or {}, data_dir)
    names: dict[epath.Path, str] = {}
    for job in by_run.values():
        if (other := names.setdefault(job.measured, job.run)) != job.run:
            raise ValueError(
                f"each run of a study must be another training or be measured otherwise; {job.run!r} and {other!r} are "
                "the same. Change one of them, or remove it."
            )
    return list(by_run.values())


def make(
    study: Study,
    page: str,
    workdir: epath.Path,
    load: Load,
    name: str,
    seed: int,
    by_run: Mapping[tuple[str, int], Job],
    bases: Mapping[int, str],
    data_dir: str,
) -> Job:
    """Returns the job of one run and seed; `by_run` has the runs that it needs."""
    run = study.runs[name]
    base = study.bases[run.base]
    parts = {role: of_seed(study, by_run, getattr(run, role), seed) for role in ROLES}
    changes = {"seed": seed} | ({"data.data_dir": data_dir} if data_dir else {})
    for role, key in (("tokenizer", "tokenizer"), ("condition", "condition.tokenizer"), ("start", "start")):
        if part := parts[role]:
            changes[f"{key}.workdir"] = str(part.folder)
    spec, budget = base.page, base.changes
    try:
        if bases and (replaced := bases.get(load(spec, []).stage)):
            spec, budget = replaced, {}
        overrides = {**budget, **run.changes, **changes}
        config = load(spec, as_flags(overrides))
    except ValueError as error:
        raise ValueError(f"run {name!r} of the study {study.title!r} must have a config that can be: {error}") from None
    if config.stage == 2 and not parts["tokenizer"]:
        raise ValueError(f"run {name!r} is a prior and must name the run whose codes it learns, as `tokenizer`.")
    keys = {role: part.key for role in TRAINING if (part := parts[role])}
    seeds = {role: part.seed for role in TRAINING if (part := parts[role])}
    # Another seed's tokenizer has other codes. Where all seeds share that of seed 0, nothing is added.
    others = [{role: of for role, of in seeds.items() if of}] if any(seeds.values()) else []
    key = digest([identity(config), keys, base.cached, run.minutes, *others])
    runs, cache = workdir / "runs", None
    if base.cached:
        sections = {path: value for path, value in identity(config).items() if path.split(".")[0] in CACHED}
        cache = runs / f"tokens-{digest([sections, keys, seeds])}"
    return Job(
        run=name,
        seed=seed,
        config=config,
        key=key,
        page=spec,
        overrides=overrides,
        changes=run.changes,
        folder=runs / f"stage{config.stage}-{key}-{'-'.join(map(str, (*seeds.values(), seed)))}",
        measure=study.measure_of(name),
        **parts,
        cache=cache,
        minutes=run.minutes,
        study=page,
        bases=tuple(bases.values()),
    )


def of_seed(study: Study, by_run: Mapping[tuple[str, int], Job], name: str, seed: int) -> Job | None:
    """Returns the job of a run of this seed, or of its only seed; None for no run."""
    if not name:
        return None
    theirs = study.seeds_of(name)
    return by_run[name, seed if seed in theirs else theirs[0]]


def as_flags(changes: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns changes as flags of the command line."""
    return tuple(f"--config.{path}={value}" for path, value in changes.items())


def identity(config: Any, apart: Sequence[str] = APART) -> dict[str, Any]:
    """Returns what shapes a run and differs from the defaults, by "section.key", but for the sections `apart`.

    A key that a later version adds has the default that does what was done before it, so it changes no identity.
    """
    defaults, changed = flat(fields.write(type(config)())), {}
    for path, value in flat(fields.write(config)).items():
        section, _, key = path.partition(".")
        elsewhere = key in PLACES.get(section, ()) or path.endswith((".workdir", ".fingerprint"))
        if section not in apart and not elsewhere and defaults.get(path) != value:
            changed[path] = plain(value)
    return dict(sorted(changed.items()))


def plain(value: Any) -> Any:
    """Returns a value of a config so that equal ones are the same text: 500.0 is 500, a tuple a list."""
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def flat(nested: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Returns nested values by "section.key"."""
    values: dict[str, Any] = {}
    for key, value in nested.items():
        values |= flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return values


def digest(value: Any) -> str:
    """Returns ten hexadecimal digits of a value of JSON's types."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]
