"""A run while it trains: the figures of `vqgan evaluate`, of some held-out examples."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import multihost_utils

from vqgan_jax import build, drawing, models
from vqgan_jax import config as configs
from vqgan_jax import prior as priors
from vqgan_jax.evaluate import of_prior, of_tokenizer, protocol
from vqgan_jax.evaluate.features import open_networks
from vqgan_jax.evaluate.protocol import Request

Judge = Callable[[Any, int], list[protocol.Result]]  # of a state and its step


def judge(config: configs.Stage1 | configs.Stage2, *, workdir: str) -> Judge:
    """What `config.log.eval_metrics` asks for, of `eval_examples` held-out images, or of as many samples against them.

    Averaged parameters where there are any. Every process must call it; each draws and looks at its share, with whole
    parameters on every device.

    Raises:
      ValueError: a metric that the run cannot have.
      FileNotFoundError: a metric's network is not there.
    """
    request = Request(
        metrics=config.log.eval_metrics, seed=config.seed, batch_size=config.batch_size, inception=None,
        track=lambda name, total: lambda done: None, limit=config.log.eval_examples,
    )  # fmt: skip
    subject = "tokenizer" if isinstance(config, configs.Stage1) else "prior"
    open_networks(protocol.choose(request.metrics, subject).values(), None)  # what is missing is missed now
    if isinstance(config, configs.Stage1):
        of_tokenizer.check(config)
        module = build.vqgan(config)

        def of_state(state: Any, step: int) -> list[protocol.Result]:
            params, weights = parameters(state, "generator")
            model = models.Tokenizer(params, module, run=models.Run(config, step, weights))
            return of_tokenizer.evaluate(model, config, request, workdir=workdir).results

        return of_state

    tokenizer, condition = models.load_frozen(config, near=workdir)
    code_prior = priors.from_config(config, models.condition_module(tokenizer, condition))
    asked = of_prior.DrawRequest(
        samples=request.limit, settings=[drawing.options_of(config.sampling)], reference="validation", neighbours=0
    )

    def of_prior_state(state: Any, step: int) -> list[protocol.Result]:
        params, weights = parameters(state, "transformer")
        prior = models.Prior(params, tokenizer, code_prior, condition, run=models.Run(config, step, weights))
        return of_prior.evaluate(prior, request, asked, workdir=workdir).results

    return of_prior_state


def parameters(state: Any, name: str) -> tuple[Any, str]:
    """Whole parameters of a network on the host, and their kind."""
    params = state.ema.get(name, state.params[name])
    whole = multihost_utils.process_allgather(params, tiled=True) if jax.process_count() > 1 else jax.device_get(params)
    return whole, "ema" if name in state.ema else "raw"
