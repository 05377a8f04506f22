"""A run while it trains: the figures of `vqgan evaluate`, of some held-out examples."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from vqgan_jax import config as configs
from vqgan_jax import models
from vqgan_jax import prior as priors
from vqgan_jax.data import storage
from vqgan_jax.evaluate import of_prior, of_tokenizer, protocol
from vqgan_jax.evaluate.features import open_networks
from vqgan_jax.evaluate.protocol import Request

Results = Callable[[Any, int], list[protocol.Result]]  # of a state and its step


def evaluator(config: configs.Stage1 | configs.Stage2, workdir: epath.Path) -> Callable[[Any, int], dict[str, float]]:
    """For `loop.train`: figures by name of a state and its step, with their protocol in WORKDIR/evaluations, too.

    Raises:
      ValueError: a metric that the run cannot have.
      FileNotFoundError: a metric's network is not there.
    """
    results_of = results(config, workdir=str(workdir))

    def evaluate(state: Any, step: int) -> dict[str, float]:
        results = results_of(state, step)
        if jax.process_index() == 0:
            storage.make_folder(workdir / "evaluations")
            records = {"results": [dataclasses.asdict(result) for result in results]}
            storage.write_json(workdir / "evaluations" / f"{step:07d}.json", records)
        return {result.metric: result.value for result in results}

    return evaluate


def results(config: configs.Stage1 | configs.Stage2, *, workdir: str) -> Results:
    """What `config.log.eval_metrics` names, of `eval_examples` held-out images, or of as many samples against them.

    Averaged parameters where there are any. Every process must call it; each draws and looks at its share, with whole
    parameters on every device.

    Raises:
      ValueError: a metric that the run cannot have.
      FileNotFoundError: a metric's network is not there.
    """
    request = Request(
        metrics=config.log.eval_metrics,
        seed=config.seed,
        batch_size=config.batch_size,
        inception=None,
        track=lambda name, total: lambda done: None,
        limit=config.log.eval_examples,
    )
    subject, of_stage = RESULTS[config.stage]
    open_networks(protocol.choose(request.metrics, subject).values(), None)  # what is missing is missed now
    return of_stage(config, request, workdir)


def of_tokenizers(config: configs.Stage1, request: Request, workdir: str) -> Results:
    """Results of the states of a stage-1 run."""
    of_tokenizer.check(config)
    module = config.make_vqgan()

    def of_state(state: Any, step: int) -> list[protocol.Result]:
        params, weights = parameters(state, "generator")
        model = models.Tokenizer(params, module, run=models.Run(config, step, weights))
        return of_tokenizer.evaluate(model, config, request, workdir=workdir).results

    return of_state


def of_priors(config: configs.Stage2, request: Request, workdir: str) -> Results:
    """Results of the states of a stage-2 run."""
    tokenizer, condition = models.load_frozen(config, near=workdir)
    code_prior = priors.from_config(config, models.condition_module(tokenizer, condition))
    of_prior.check_judges(request.metrics, code_prior.condition, has_classifier=False)
    draws = of_prior.DrawRequest(
        samples=request.limit, settings=[vars(config.sampling.settings)], reference="validation", neighbours=0
    )

    def of_state(state: Any, step: int) -> list[protocol.Result]:
        params, weights = parameters(state, "transformer")
        prior = models.Prior(params, tokenizer, code_prior, condition, run=models.Run(config, step, weights))
        return of_prior.evaluate(prior, request, draws, workdir=workdir).results

    return of_state


RESULTS: dict[int, tuple[str, Callable[[Any, Request, str], Results]]] = {
    1: ("tokenizer", of_tokenizers),
    2: ("prior", of_priors),
}


def parameters(state: Any, name: str) -> tuple[Any, str]:
    """Whole parameters of a network on the host, and their kind."""
    params = state.ema.get(name, state.params[name])
    whole = multihost_utils.process_allgather(params, tiled=True) if jax.process_count() > 1 else jax.device_get(params)
    return whole, "ema" if name in state.ema else "raw"
