"""Every study of the lab book can be planned, and what is committed is what pages and documents say."""

import json
from pathlib import Path

import pytest
from etils import epath

from vqgan_jax import cli
from vqgan_jax.cli import study as verb
from vqgan_jax.studies import plan, results

ROOT = Path(__file__).parents[2]
PAGES = verb.pages()
COMMITTED = sorted((ROOT / "experiments" / "results").glob("*.json"))


@pytest.mark.parametrize("name", PAGES)
def test_a_study_has_configs_that_can_be(name, tmp_path):
    with cli.page_module(PAGES[name]) as module:
        study = verb.study_of(module, PAGES[name])
        jobs = plan.jobs(study, str(PAGES[name]), epath.Path(tmp_path), cli.load_config, seeds=(0,))
    assert {job.run for job in jobs} == set(study.runs)
    folders = {job.folder: job for job in jobs}
    for job in jobs:
        for other in job.needs:
            assert folders[other.folder].config.stage == 1
        if job.start:
            models = [[each.config.model, each.config.quantizer] for each in (job, job.start)]
            assert models[0] == models[1]
        for other in filter(None, (job.tokenizer, job.decoder)):
            assert job.config.tokenizer.downsample_factor == other.config.model.downsample_factor
            assert job.config.tokenizer.codebook_size == other.config.quantizer.codebook_size


@pytest.mark.parametrize("name", PAGES)
def test_a_study_says_what_it_compares(name):
    with cli.page_module(PAGES[name]) as module:
        study = verb.study_of(module, PAGES[name])
    assert study.question.endswith("?")
    assert study.claim.endswith(".")
    assert all(len(row) == len(study.header) for row in study.published)
    assert name in (PAGES[name].read_text().partition('"""')[2].partition('"""')[0])


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_are_of_the_study_as_it_is(path, tmp_path):
    page = PAGES[path.stem]
    records = results.read(epath.Path(path))
    with cli.page_module(page) as module:
        study = verb.study_of(module, page)
        seeds = sorted({*study.seeds, *(seed for _, seed in records)})
        jobs = plan.jobs(study, str(page), epath.Path(tmp_path), cli.load_config, seeds=seeds)
    assert results.fitting(records, jobs, path, renew=False) == records
    written = epath.Path(tmp_path / "again.json")
    results.write(written, results.results_of(path.stem, study, records.values()), {})
    assert json.loads(written.read_text()) == json.loads(path.read_text()) | {"failed": {}}


@pytest.mark.parametrize("name", ["docs/results.md", "README.md"])
def test_documents_say_what_the_results_say(name):
    assert (ROOT / name).read_text() == verb.summary(ROOT / name)
