"""A study plans, shares, resumes and refuses as it should; the verbs themselves are replaced by what they leave."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from etils import epath
from rich.console import Console

from vqgan_jax import cli
from vqgan_jax.cli import study as verb
from vqgan_jax.evaluate.protocol import Result
from vqgan_jax.studies import Base, Comparison, Measure, Run, Study, page, plan, results, run
from vqgan_jax.train import stored

PAGE = Path(__file__).with_name("tiny_study.py")
with cli.page_module(PAGE) as module:
    STUDY: Study = module.STUDY
VALUES = {"psnr": 20.0, "l1": 0.5, "nll": 3.0}


def jobs_of(workdir, study=STUDY, **options) -> list[plan.Job]:
    return plan.jobs(study, str(PAGE), epath.Path(workdir), cli.load_config, **options)


@dataclasses.dataclass
class Verbs:
    """Stands for the processes: leaves the files of each verb and remembers what was called."""

    jobs: list[plan.Job]
    calls: list[str] = dataclasses.field(default_factory=list)
    failing: str = ""

    def __call__(self, runner, folder, lock, arguments, text, ending=lambda: False):
        self.calls.append(f"{arguments[0]} {text.partition(':')[0]}")
        if self.failing and self.calls[-1].startswith(self.failing):
            raise run.Failed(f"{text}: exit 1: no space left on device")
        if arguments[0] == "tokenize":
            (folder / "tokens.json").write_text("{}")
            return
        job = next(job for job in self.jobs if job.folder == folder)
        if arguments[0] == "train":
            (folder / "config.json").write_text(json.dumps(stored.to_json(job.config)))
            lines = [{"step": 2, "train/images_per_second": 8.0, "train/loss": 2.0}, {"step": 2, "eval/nll": 3.5}]
            last = {"step": 3 if job.minutes else job.config.steps, "eval/nll": 3.0}
            (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, last]))
            assert ending() == (0 < job.minutes < 0.03)
        elif arguments[0] == "evaluate":
            offset = 0.1 * job.seed + (0.2 if job.run in ("long", "raster") else 0.0)
            records = [result(metric, VALUES[metric] - offset, job) for metric in job.measure.metrics]
            (job.measured / "evaluation.json").write_text(json.dumps({"results": records}))
        else:
            figures = {"one": {"own": 1.0 + job.seed}, "two": {"own": 2.0 + 1.1 * job.seed}}
            (job.measured / run.BY_PAGE).write_text(json.dumps(figures))


def result(metric: str, value: float, job: plan.Job) -> dict:
    return dataclasses.asdict(
        Result(
            metric=metric, value=value, unit="none", better="lower", variant="v", subject="s", subject_count=16,
            subject_fingerprint="f", reference="r", reference_count=16, reference_fingerprint="e", resize="none",
            rounding="none", network="none", network_hash="none", model=str(job.folder), step=job.config.steps,
            weights="ema", sampling={}, seed=job.seed, versions={"jax": "1"},
        )
    )  # fmt: skip


@pytest.fixture
def verbs(monkeypatch, tmp_path):
    """Every process of `vqgan study` in `tmp_path / "work"` is one of `Verbs`."""
    verbs = Verbs(jobs_of(tmp_path / "work"))
    monkeypatch.setattr(run.Runner, "call", lambda runner, *args, **kwargs: verbs(runner, *args, **kwargs))
    return verbs


def study(tmp_path, *flags) -> int:
    return verb.main([str(PAGE), f"--workdir={tmp_path / 'work'}", *flags])


def whole(tmp_path) -> dict:
    return json.loads((tmp_path / "work" / "tiny_study" / "results.json").read_text())


# Planning


def test_a_tokenizer_and_a_cache_serve_all_priors_of_a_seed(tmp_path):
    jobs = jobs_of(tmp_path)
    priors = [job for job in jobs if job.tokenizer]
    assert len(jobs) == 8
    assert len({job.folder for job in jobs}) == 8
    assert len({job.cache for job in priors}) == 2
    for job in priors:
        assert job.tokenizer.run == "short"
        assert job.tokenizer.seed == job.seed
        assert str(job.tokenizer.folder) == job.config.tokenizer.workdir
    names = [job.run for job in jobs]
    assert names.index("short") < names.index("spiral"), "what others need comes first"


def test_a_decoder_that_is_tuned_alone_draws_for_the_prior_of_the_first(tmp_path):
    short, spiral = STUDY.runs["short"], STUDY.runs["spiral"]
    runs = {
        **STUDY.runs,
        "other decoder": dataclasses.replace(spiral, decoder="tuned", measure=Measure(metrics=("nll",))),
        "tuned": dataclasses.replace(short, changes={"start.freeze": True}, start="short"),
    }
    jobs = {(job.run, job.seed): job for job in jobs_of(tmp_path, dataclasses.replace(STUDY, runs=runs))}
    first, tuned, plain, other = (jobs[name, 0] for name in ("short", "tuned", "spiral", "other decoder"))
    assert tuned.needs == (first,)
    assert tuned.config.start.workdir == str(first.folder) != str(tuned.folder)
    assert other.needs == (first, tuned)
    assert (other.folder, other.cache) == (plain.folder, plain.cache)  # one training
    assert other.measured != plain.measured
    assert f"--tokenizer={tuned.folder}" in other.evaluate()
    assert not any(flag.startswith("--tokenizer") for flag in plain.evaluate())
    names = list(dict.fromkeys(run for run, _ in jobs))
    assert names.index("short") < names.index("tuned") < names.index("other decoder")
    runs["other decoder"] = dataclasses.replace(spiral, decoder="tuned")
    with pytest.raises(ValueError, match="'other decoder' has a decoder, of which the function"):
        jobs_of(tmp_path, dataclasses.replace(STUDY, runs=runs))


def test_a_classifier_is_one_for_all_runs_of_the_same_images(tmp_path):
    measure = dataclasses.replace(STUDY.bases["prior"].measure, classifier=True)
    bases = {**STUDY.bases, "prior": dataclasses.replace(STUDY.bases["prior"], measure=measure)}
    jobs = jobs_of(tmp_path, dataclasses.replace(STUDY, bases=bases))
    flags = {flag for job in jobs for flag in job.evaluate() if flag.startswith("--classifier=")}
    assert len(flags) == 1


def test_a_tokenizer_of_one_seed_serves_all_seeds(tmp_path):
    runs = {**STUDY.runs, "short": dataclasses.replace(STUDY.runs["short"], seeds=(7,))}
    priors = [job for job in jobs_of(tmp_path, dataclasses.replace(STUDY, runs=runs)) if job.tokenizer]
    assert {job.tokenizer.seed for job in priors} == {7}
    assert len({job.cache for job in priors}) == 1
    assert {job.seed for job in priors} == {0, 1}
    own = {(job.run, job.seed): job.key for job in jobs_of(tmp_path)}
    assert all(job.key != own[job.run, job.seed] for job in priors), "a record says of which seed the codes are"


def test_a_folder_is_named_by_what_shapes_the_run(tmp_path):
    """Where data is, how often is logged and how fast is loaded shape nothing; a learning rate does."""
    before = jobs_of(tmp_path)[0]
    base = STUDY.bases["tokenizer"]

    def changed(**changes) -> plan.Job:
        bases = {**STUDY.bases, "tokenizer": dataclasses.replace(base, changes={**base.changes, **changes})}
        return jobs_of(tmp_path, dataclasses.replace(STUDY, bases=bases))[0]

    same = {"log.metrics_every": 7, "data.num_threads": 5, "data.data_dir": "elsewhere", "mesh.fsdp": 2}
    assert changed(**same).folder == before.folder
    assert changed(**{"optimizer.learning_rate": 0.5}).folder != before.folder
    assert plan.plain((1.0, 0.5, ("a", 2))) == plan.plain([1, 0.5, ["a", 2.0]]), "a key that becomes a float stays"
    assert jobs_of(tmp_path, data_dir="there")[0].folder == before.folder


def test_a_prior_of_other_codes_is_another_run(tmp_path):
    base = STUDY.bases["tokenizer"]
    bases = {**STUDY.bases, "tokenizer": dataclasses.replace(base, changes={**base.changes, "loss.pixel": "l2"})}
    old, new = jobs_of(tmp_path), jobs_of(tmp_path, dataclasses.replace(STUDY, bases=bases))
    assert all(a.key != b.key and a.cache != b.cache for a, b in zip(old, new, strict=True) if a.tokenizer)


def test_commands_are_those_that_would_run(tmp_path, capsys):
    assert study(tmp_path, "--print_commands", "--seeds=1", "--only=raster") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["train", "evaluate", "tokenize", "train", "evaluate", "study"]
    for words in (line.split() for line in lines if "--config=" in line):
        (spec,) = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
        flags = [word for word in words if word.startswith("--config.")]
        assert cli.load_config(spec, flags).seed == 1
    assert not (tmp_path / "work").exists()


def test_another_base_takes_the_place_of_the_page_and_its_budget(tmp_path):
    jobs = jobs_of(tmp_path, bases={1: "stage1_photos"})
    assert {job.page for job in jobs if not job.tokenizer} == {"stage1_photos"}
    assert {job.config.steps for job in jobs if job.run == "short"} == {1_200}, "the budget goes with the page"
    assert {job.config.steps for job in jobs if job.run == "long"} == {6}, "the variant stays"
    assert "--base=stage1_photos" in jobs[-1].measure_by_page("work")
    names = [verb.folder_name(PAGE, bases) for bases in ([], ["stage1_photos:quick"], ["stage2_photos"])]
    assert names == ["tiny_study", "tiny_study-stage1_photos_quick", "tiny_study-stage2_photos"]


def test_a_run_by_the_clock_has_no_command(tmp_path, monkeypatch):
    runs = {**STUDY.runs, "long": dataclasses.replace(STUDY.runs["long"], minutes=2.0)}
    monkeypatch.setattr(verb, "study_of", lambda module, page: dataclasses.replace(STUDY, runs=runs))
    with pytest.raises(cli.UsageError, match="a printed command trains to its last step, and long end by the clock"):
        study(tmp_path, "--print_commands")
    assert study(tmp_path, "--print_commands", "--only=short") == 0


def test_data_of_the_environment_are_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VQGAN_JAX_DATA", "/somewhere")
    study(tmp_path, "--print_commands", "--only=long")
    assert "--config.data.data_dir=/somewhere/tfds" in capsys.readouterr().out


# Runs


def test_everything_runs_once(tmp_path, verbs):
    assert study(tmp_path) == 0
    assert sorted(verbs.calls) == sorted(
        [f"{do} {name}, seed {seed}" for name in ("short", "long") for seed in (0, 1) for do in ("train", "evaluate")]
        + [f"{do} {name}, seed {seed}" for name in ("spiral", "raster") for seed in (0, 1)
           for do in ("train", "evaluate", "study")]
        + [f"tokenize spiral, seed {seed}" for seed in (0, 1)]
    )  # fmt: skip
    ended = whole(tmp_path)
    assert [(row["run"], row["seed"]) for row in ended["runs"]] == [(n, s) for n in STUDY.runs for s in (0, 1)]
    assert ended["verdict"] == "holds"
    assert ended["runs"][0]["minutes"] == round(2 * 8 / 8.0 / 60, 2)
    assert ended["runs"][4]["curve"] == {"nll": [[2, 3.5], [4, 3.0]], "train_loss": [[2, 2.0], [4, 2.0]]}
    verbs.calls.clear()
    before = whole(tmp_path)
    assert study(tmp_path) == 0
    assert verbs.calls == []
    assert whole(tmp_path) == before
    text = (tmp_path / "work" / "tiny_study" / "index.html").read_text()
    assert "Two steps more are better." in text
    assert "holds" in text


def test_one_that_fails_does_not_stop_the_others(tmp_path, verbs, capsys):
    verbs.failing = "train long, seed 1"
    assert study(tmp_path) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "failed long, seed 1" in told
    assert "no space left on device" in told
    assert len(whole(tmp_path)["runs"]) == 7
    assert list(whole(tmp_path)["failed"]) == ["long, seed 1"]
    assert whole(tmp_path)["verdict"] == "not decided by 1 seed"
    verbs.failing = ""
    verbs.calls.clear()
    assert study(tmp_path) == 0
    assert verbs.calls == ["train long, seed 1", "evaluate long, seed 1"]
    assert whole(tmp_path)["failed"] == {}


def test_what_needs_a_failed_tokenizer_fails_with_it_and_is_tried_once(tmp_path, verbs):
    verbs.failing = "train short, seed 0"
    assert study(tmp_path) == 1
    assert verbs.calls.count("train short, seed 0") == 1
    assert list(whole(tmp_path)["failed"]) == ["short, seed 0", "spiral, seed 0", "raster, seed 0"]


def test_what_needs_a_tokenizer_goes_on_where_only_its_measuring_failed(tmp_path, verbs):
    verbs.failing = "evaluate short, seed 0"
    assert study(tmp_path, "--seeds=0") == 1
    assert list(whole(tmp_path)["failed"]) == ["short, seed 0"]
    assert [row["run"] for row in whole(tmp_path)["runs"]] == ["long", "spiral", "raster"]


def test_several_at_a_time_come_to_the_same(tmp_path, verbs):
    assert study(tmp_path, "--jobs=3") == 0
    assert len(verbs.calls) == len(set(verbs.calls)) == 22
    assert len(whole(tmp_path)["runs"]) == 8


def test_what_another_process_wrote_meanwhile_stays(tmp_path, verbs, monkeypatch):
    study(tmp_path, "--only=short", "--seeds=0")
    file = tmp_path / "work" / "tiny_study" / "results.json"
    other = file.read_text()
    file.unlink()
    finish = run.Runner.finish
    monkeypatch.setattr(run.Runner, "finish", lambda *args: (finish(*args), file.write_text(other))[0])
    assert study(tmp_path, "--only=long", "--seeds=0") == 0
    assert [row["run"] for row in whole(tmp_path)["runs"]] == ["short", "long"]


def test_it_goes_on_from_committed_results_alone(tmp_path, verbs, capsys):
    """Another machine has the file and no workdir."""
    study(tmp_path, "--seeds=0")
    committed = tmp_path / "committed.json"
    (tmp_path / "work" / "tiny_study" / "results.json").rename(committed)
    (tmp_path / "work").rename(tmp_path / "other_machine")
    verbs.calls.clear()
    assert study(tmp_path, f"--results={committed}", "--seeds=0") == 0
    assert verbs.calls == []
    assert len(whole(tmp_path)["runs"]) == 4
    text = json.loads(committed.read_text())
    text["runs"] = [row for row in text["runs"] if row["run"] != "raster"]
    committed.write_text(json.dumps(text))
    (tmp_path / "work").rename(tmp_path / "second")
    capsys.readouterr()
    assert study(tmp_path, f"--results={committed}", "--seeds=0") == 0
    assert "short, seed 0 is trained again" in " ".join(capsys.readouterr().out.split())
    assert [call.partition(" ")[0] for call in verbs.calls] == ["train", "tokenize", "train", "evaluate", "study"]
    assert len(whole(tmp_path)["runs"]) == 4, "the tokenizer that was trained again counts once"


def test_of_two_results_the_committed_one_counts(tmp_path, verbs, capsys):
    study(tmp_path, "--only=long", "--seeds=0")
    committed = tmp_path / "committed.json"
    committed.write_text((tmp_path / "work" / "tiny_study" / "results.json").read_text())
    alter(committed, lambda w: w["runs"][0]["figures"][""].update(l1=0.125))
    assert study(tmp_path, f"--results={committed}", "--only=long", "--seeds=0") == 0
    assert "long, seed 0 has two results that differ" in " ".join(capsys.readouterr().out.split())
    assert [row["figures"][""]["l1"] for row in whole(tmp_path)["runs"]] == [0.125]


def test_a_new_result_of_another_protocol_is_refused_and_the_others_go_on(tmp_path, verbs):
    study(tmp_path, "--only=short", "--seeds=0")
    path = tmp_path / "work" / "tiny_study" / "results.json"
    alter(path, lambda w: [p.update(network_hash="0f0f") for p in w["protocols"].values()])
    assert study(tmp_path, "--only=long", "--seeds=0") == 1
    assert "network_hash" in whole(tmp_path)["failed"]["long, seed 0"]
    assert [row["run"] for row in whole(tmp_path)["runs"]] == ["short"]


def test_a_full_disk_is_told_and_loses_no_result(tmp_path, verbs, monkeypatch):
    write, full = results.write, [True]

    def written(*args) -> None:
        if full.pop() if full else False:
            raise OSError(28, "No space left on device")
        write(*args)

    monkeypatch.setattr(results, "write", written)
    assert study(tmp_path, "--only=short,long", "--seeds=0") == 1
    assert [row["run"] for row in whole(tmp_path)["runs"]] == ["short", "long"]
    assert "No space left" in whole(tmp_path)["failed"]["short, seed 0"]


def test_minutes_are_those_of_steps(tmp_path):
    """Four steps of 8 images at 4 and at 8 a second; a limit makes another run."""
    job = jobs_of(tmp_path)[0]
    lines = [{"step": 2, "train/images_per_second": 4.0}, {"step": 2, "eval/nll": 1.0}]
    assert run.minutes_of([*lines, {"step": 4, "train/images_per_second": 8.0}], job) == pytest.approx((4 + 2) / 60)
    runs = {**STUDY.runs, "short": dataclasses.replace(STUDY.runs["short"], minutes=2.0)}
    assert jobs_of(tmp_path, dataclasses.replace(STUDY, runs=runs))[0].folder != job.folder


@pytest.mark.parametrize(("minutes", "told"), [(0.01, ""), (5.0, "stopped from outside at step 3")])
def test_a_run_of_some_minutes_ends_with_them(tmp_path, verbs, minutes, told):
    runs = {**STUDY.runs, "short": dataclasses.replace(STUDY.runs["short"], minutes=minutes)}
    (job, *_) = verbs.jobs = jobs_of(tmp_path / "work", dataclasses.replace(STUDY, runs=runs))
    with run.Stop() as stop:
        runner = run.Runner(epath.Path(tmp_path / "work"), Console(quiet=True), stop)
        if told:
            with pytest.raises(run.Failed, match=told):
                runner.train(job)
        else:
            runner.train(job)
            assert json.loads((job.folder / run.TRAINED).read_text()) == {"step": 3}


def test_a_figure_of_the_page_must_be_finite():
    with pytest.raises(ValueError, match="`own`"):
        verb.finite("own", float("nan"))


def test_more_seeds_join_those_that_are_there(tmp_path, verbs):
    study(tmp_path, "--only=short,long")
    verbs.jobs += jobs_of(tmp_path / "work", seeds=(5,))
    assert study(tmp_path, "--only=short,long", "--seeds=5") == 0
    assert [row["seed"] for row in whole(tmp_path)["runs"]] == [0, 1, 5, 0, 1, 5]
    assert whole(tmp_path)["comparisons"][0]["seeds"] == [0, 1, 5]


# What is refused


@pytest.fixture
def finished(tmp_path, verbs):
    study(tmp_path)
    return tmp_path / "work" / "tiny_study" / "results.json"


def alter(path, change) -> None:
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w["runs"][1].update(key="0123456789"), ("'short', seed 1", "another config")),
        (lambda w: w["runs"][2]["measuring"].update(examples=9), ("'long', seed 0", "examples")),
        (lambda w: w["runs"][2].update(run="medium"), ("'medium', seed 0", "no such run")),
        (lambda w: w.update(format=9), ("format", "9")),
        (lambda w: w["runs"].append(w["runs"][0]), ("'short', seed 0", "twice")),
        (lambda w: w["runs"][0].pop("minutes"), ("minutes",)),
        (lambda w: w.pop("protocols"), ("protocols",)),
    ],
)
def test_a_result_of_something_else_is_refused(tmp_path, finished, verbs, change, told):
    alter(finished, change)
    verbs.calls.clear()
    with pytest.raises(ValueError) as error:  # noqa: PT011
        study(tmp_path)
    assert all(text in str(error.value) for text in told), error.value
    assert verbs.calls == []


def test_a_result_of_an_earlier_page_is_renewed_if_that_is_asked(tmp_path, finished, verbs):
    alter(finished, lambda w: w["runs"][1].update(key="0123456789"))
    assert study(tmp_path, "--renew") == 0
    assert len(whole(tmp_path)["runs"]) == 8
    assert whole(tmp_path)["runs"][1]["key"] != "0123456789"


def test_two_protocols_are_not_compared(tmp_path, finished):
    def other_reference(whole):
        mark = whole["runs"][2]["protocol"]["l1"]
        whole["protocols"]["another"] = whole["protocols"][mark] | {"reference_fingerprint": "0f0f"}
        whole["runs"][2]["protocol"]["l1"] = "another"

    alter(finished, other_reference)
    with pytest.raises(ValueError, match="reference_fingerprint") as error:
        study(tmp_path)
    assert "'long', seed 0" in str(error.value)


def test_a_file_that_was_cut_off_is_named(tmp_path, finished):
    finished.write_text(finished.read_text()[:200])
    with pytest.raises(ValueError, match=r"results\.json"):
        study(tmp_path)


def test_figures_of_another_step_do_not_count(tmp_path, verbs):
    study(tmp_path, "--only=short", "--seeds=0")
    (job,) = [job for job in verbs.jobs if job.name == "short, seed 0"]
    (job.measured / run.FIGURES).unlink()
    (tmp_path / "work" / "tiny_study" / "results.json").unlink()
    alter(job.measured / "evaluation.json", lambda w: w["results"][0].update(step=2))
    assert study(tmp_path, "--only=short", "--seeds=0") == 1
    assert "step 2" in whole(tmp_path)["failed"]["short, seed 0"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"runs": {"a": Run("tokenizr")}}, ("tokenizr", "tokenizer")),
        ({"decides": (Comparison("long", "shrot", "l1"),)}, ("shrot", "short")),
        ({"decides": (Comparison("long", "short", "l3"),)}, ("l3", "l1")),
        ({"decides": (Comparison("long", "long", "l1"),)}, ("long",)),
        ({"decides": ()}, ("decides",)),
        ({"runs": {**STUDY.runs, "p": Run("prior", tokenizer="spiral")}}, ("spiral", "stage 1")),
        ({"runs": {**STUDY.runs, "p": Run("prior")}}, ("'p'", "tokenizer")),
        ({"runs": {**STUDY.runs, "p": Run("prior", tokenizer="short", seeds=(0, 9))}}, ("'p'", "9")),
        ({"runs": {**STUDY.runs, "again": Run("tokenizer", {"data.source": "photos"})}}, ("'again'", "'short'")),
        ({"runs": {**STUDY.runs, "typo": Run("tokenizer", {"loss.pixle": "l2"})}}, ("typo", "pixle")),
        ({"figures": {**STUDY.figures, "l1": "down"}}, ("l1", "down")),
    ],
)  # fmt: skip
def test_a_page_that_contradicts_itself_is_refused(tmp_path, change, told):
    with pytest.raises((ValueError, cli.UsageError)) as error:
        jobs_of(tmp_path, dataclasses.replace(STUDY, **change))
    assert all(text in str(error.value) for text in told), error.value


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--only=lnog"], "lnog"),
        (["--seeds=a"], "'a'"),
        (["--jobs=0"], "0"),
        (["--results=nowhere.json"], "nowhere.json"),
        (["--base=stage1_photos", "--base=stage1_scenes"], "stage1_scenes"),
        (["--measure=short"], "short"),
    ],
)
def test_flags_that_cannot_be_are_refused(tmp_path, flags, told):
    with pytest.raises((ValueError, cli.UsageError), match=told):
        study(tmp_path, *flags)


def test_a_page_without_a_study_is_refused(tmp_path):
    with pytest.raises(cli.UsageError, match="STUDY"):
        verb.main([str(cli.find_page("stage1_photos")), f"--workdir={tmp_path}"])
    with pytest.raises(cli.UsageError, match="nothing_like_it"):
        verb.main(["nothing_like_it", f"--workdir={tmp_path}"])


def test_data_that_are_not_there_fail_one_run(tmp_path):
    """A real process: its last line is the reason."""
    runs = {"lost": Run("tokenizer", {"data.source": "folder:/nowhere"})}
    lost = dataclasses.replace(STUDY, runs=runs, seeds=(0,), decides=(Comparison("lost", "lost, b", "l1"),), also=())
    with run.Stop() as stop:
        runner = run.Runner(epath.Path(tmp_path), Console(quiet=True), stop)
        failed, tried = run.run_all(jobs_of(tmp_path, lost), runner, 1, lambda job, record: None)
    assert tried
    assert "/nowhere" in failed["lost, seed 0"]


# Processes


def test_a_folder_is_held_by_one(tmp_path):
    with run.Stop() as stop:
        runner, order = run.Runner(epath.Path(tmp_path), Console(quiet=True), stop), []

        def second() -> None:
            with runner.locked(epath.Path(tmp_path / "a"), epath.Path(tmp_path / "a")):
                order.append("second")

        with runner.locked(epath.Path(tmp_path / "a"), epath.Path(tmp_path / "a")):
            thread = threading.Thread(target=second)
            thread.start()
            time.sleep(2 * run.PAUSE)
            order.append("first")
        thread.join()
    assert order == ["first", "second"]


def test_a_stop_reaches_the_child_once():
    code = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
    code += "print('on', flush=True)\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"on\n"
    began = time.monotonic()
    usage = run.wait(process, lambda: time.monotonic() - began > 0.3)
    process.stdout.close()
    assert process.returncode == 7
    assert usage.ru_maxrss > 0
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)


def test_a_curve_is_short():
    lines = [{"step": step, "eval/nll": 1.0 / (step + 1)} for step in range(100)]
    curve = run.curve_of(lines)["nll"]
    assert len(curve) <= run.LONGEST
    assert curve[-1] == [99, 0.01]


def test_values_of_settings_are_variants(tmp_path, finished):
    values = results.variants(results.read(epath.Path(finished)).values())
    assert values["raster, two"]["own"] == {0: 2.0, 1: 3.1}
    assert set(values["raster"]) == {"nll"}
    assert page.Measure(function=lambda *_: {}).identity() == {"function": "<lambda>"}
    assert Base("p").measure.identity() == {}
