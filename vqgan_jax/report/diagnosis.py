"""Reads the curves of a run and says what goes wrong: a table of rules, each with the config key to turn.

A rule is one function of a `History`. It returns None where all is well, or where there is too little to say. The
thresholds below were chosen by runs that are well: the quickstart and the committed studies. docs/diagnosis.md has the
table, and the figures of those runs.
"""

import dataclasses
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vqgan_jax.config import Stage1, Stage2
from vqgan_jax.losses import ADAPTIVE_CEILING, ADVERSARIAL
from vqgan_jax.nn import fields

Values = Float[np.ndarray, "_n"]

# Behind each threshold: why, and what the runs that are well have, at their worst.
ENOUGH = 5  # lines of metrics; fewer say nothing about a course
LEAST_USAGE = 0.5  # of the codes, 1.0 in runs that are well; the paper's f16 with 1024 codes used 0.44
DRAWS = 4  # times as many codes must be drawn as there are: of a uniform draw 2% are then still unused
BEATEN = 0.005  # of what a guess costs the discriminator; well: 0.09 with the gate open
APART = 0.1  # logits between images and reconstructions; well: 0.3 after disc_start, 3 before it
AT_BOUND = 0.1  # of the bound, in a mean over steps: one step in ten is there; well: 7e-5 of it
HARM = 1.25  # times the best loss before the adversary, as the minimum of the newest half; well: 1.04
WAITING = 0.1  # of the time: a tenth of the devices is paid for nothing; well: 0.012
TURNED = 1.01  # times the fewest held-out nats, twice in a row; well: they fall to the end
LEARNED = 0.99  # of the first loss, behind the warm-up; well: 0.96 at the fifth line of metrics
LOST = 1.2  # times the best loss, as the minimum of the newest half; well: 1.0
GROWN = 1.2  # times the norm of the parameters one line of metrics before; well: 1.03
FAR = 5.0  # times the loss of a guess, in the first lines of metrics; well: 1.0
MOVED = 1.01  # times the first norm of the parameters: where nothing is learned and they moved, steps are not too small
TENFOLD = 10.0  # the step in which one looks for a learning rate; smaller errors do not show in these readings


@dataclasses.dataclass(frozen=True)
class History:
    """What the rules read.

    Attributes:
      config: of the run.
      rows: by step, in order: finite values by their names in metrics.jsonl, such as "train/rec_loss".
    """

    config: Stage1 | Stage2
    rows: Mapping[int, Mapping[str, float]]

    @classmethod
    def of(cls, config: Stage1 | Stage2, lines: Sequence[Mapping[str, Any]]) -> "History":
        """Returns the history of the lines of a metrics file; of a step that was written twice the last line counts."""
        rows: dict[int, dict[str, float]] = {}
        for line in lines:
            numbers = {name: value for name, value in line.items() if "/" in name and isinstance(value, int | float)}
            finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
            rows.setdefault(line["step"], {}).update(finite)
        return cls(config, dict(sorted(rows.items())))

    def curves(self, *names: str) -> tuple[Values, ...]:
        """Returns the steps at which all of the names were written, and the values of each name there."""
        rows = [(step, *(row[name] for name in names)) for step, row in self.rows.items() if set(names) <= set(row)]
        return tuple(np.array(rows, float).reshape(-1, 1 + len(names)).T)

    def __contains__(self, name: str) -> bool:
        return any(name in row for row in self.rows.values())


class Finding(NamedTuple):
    """What a rule saw, in a sentence with figures and steps, and the keys to change with their new values."""

    reading: str
    changes: dict[str, Any]


class Rule(NamedTuple):
    """A fault of a run.

    Attributes:
      symptom: what people see of it.
      reads: the reading at which the rule fires.
      plot: of the page of a run, that shows it.
      keys: of the config, that mend it.
      advice: what to do.
      goes_on: whether the same run can go on with the changed keys; else it begins again in another folder.
      find: the rule.
    """

    symptom: str
    reads: str
    plot: str
    keys: tuple[str, ...]
    advice: str
    goes_on: bool
    find: Callable[[History], Finding | None]


def diagnose(history: History) -> dict[str, Finding]:
    """Returns the findings, by the names of `RULES`."""
    findings = {name: rule.find(history) for name, rule in RULES.items()}
    return {name: finding for name, finding in findings.items() if finding is not None}


def command(workdir: str, name: str, finding: Finding) -> str:
    """Returns the command that does what a finding advises: goes on with the run, or begins it again beside it."""
    other = workdir if RULES[name].goes_on else f"{workdir}_again"
    flags = [f"--config.{key}={value}" for key, value in finding.changes.items()]
    return shlex.join(["vqgan", "train", f"--config={workdir}/config.json", f"--workdir={other}", *flags])


# What several rules read

LOWERED: dict[int, Callable[[Any], dict[str, float]]] = {  # by stage: losses and their weights
    1: lambda loss: {"train/rec_loss": loss.pixel_weight, "train/perceptual_loss": loss.perceptual_weight},
    2: lambda loss: {"train/loss": 1.0},
}
GUESS: dict[
    int, Callable[[Any], tuple[str, float]]
] = {  # by stage: a loss, and what it is of grey or of a uniform guess
    1: lambda config: ("train/rec_loss", max(1.0, math.log(config.model.image_channels))),
    2: lambda config: ("train/loss", math.log(config.tokenizer.codebook_size)),
}


def newest(values: Values) -> Values:
    """Returns the newer half of a curve, the middle one included."""
    return values[len(values) // 2 :]


def span(steps: Values) -> str:
    """Returns steps in words."""
    return f"steps {steps[0]:,.0f} to {steps[-1]:,.0f}"


def objective(history: History) -> tuple[Values, Values, Values]:
    """Returns steps, what the run lowers without the adversary and the codes, and the adversary's gate or zeros."""
    terms = {name: weight for name, weight in LOWERED[history.config.stage](history.config.loss).items() if weight}
    gate = ["train/disc_gate"] if "train/disc_gate" in history else []
    steps, *values = history.curves(*terms, *gate)
    total = sum((weight * value for weight, value in zip(terms.values(), values, strict=False)), np.zeros(len(steps)))
    return steps, total, values[-1] if gate else np.zeros(len(steps))


def alone(history: History) -> tuple[Values, Values]:
    """Returns steps and losses of the time in which no adversary pulls, from the first line of metrics on."""
    steps, loss, gate = objective(history)
    return steps[gate == 0], loss[gate == 0]


def settable(history: History, changes: dict[str, Any]) -> dict[str, Any]:
    """Returns the changes whose keys this run has with other values."""
    nested = fields.write(history.config)
    current = {key: fields.section_of(nested, key.partition(".")[0]).get(key.partition(".")[2]) for key in changes}
    return {key: value for key, value in changes.items() if current[key] not in (None, value)}


def scaled(history: History, key: str, factor: float) -> dict[str, float]:
    """Returns a key of the run with its value times a factor, to three significant digits."""
    section, name = key.split(".")
    return {key: float(f"{factor * getattr(getattr(history.config, section), name):.3g}")}


# The rules


def dead_codes(history: History) -> Finding | None:
    """Most codes are never the nearest."""
    part = "train" if "train/codebook_usage" in history else "eval"
    steps, usage, perplexity = history.curves(f"{part}/codebook_usage", f"{part}/perplexity")
    config: Any = history.config
    if len(steps) < ENOUGH:
        return None
    size = config.quantizer.codebook_size
    codes = (config.data.image_size // config.model.downsample_factor) ** 2
    images = {"train": config.batch_size * config.log.metrics_every, "eval": config.log.eval_examples}[part]
    share = newest(usage).max()
    if images * codes < DRAWS * size or share >= LEAST_USAGE:
        return None
    alive = {"quantizer.unit_length": True, "quantizer.kmeans_batches": 8, "quantizer.revive_below": 0.1}
    return Finding(
        f"at most {share:.0%} of {size:,} codes are used in {span(newest(steps))}; the perplexity is "
        f"{perplexity[-1]:,.0f}",
        settable(history, alive) or {"quantizer.kind": "fsq"},
    )


def strong_adversary(history: History) -> Finding | None:
    """The discriminator tells every patch, so that the generator learns nothing from it."""
    steps, loss, gate = history.curves("train/discriminator_loss", "train/disc_gate")
    config: Any = history.config
    if not len(steps):
        return None
    awake = (gate == 1) & (steps > config.loss.in_steps(config.steps).disc_train_start)  # before, its loss counts 0
    steps, loss = steps[awake], loss[awake]
    if len(steps) < ENOUGH:
        return None
    guess = float(ADVERSARIAL[config.loss.adversarial].discriminator_loss(*jnp.zeros(2)))
    cost = float(np.median(newest(loss)))
    if cost >= BEATEN * guess:
        return None
    return Finding(
        f"the discriminator's loss is {cost:.2g} in {span(newest(steps))}, where a guess costs {guess:.2g}: it tells "
        "every patch",
        scaled(history, "optimizer.disc_learning_rate", 1 / TENFOLD),
    )


def sleeping_adversary(history: History) -> Finding | None:
    """The discriminator cannot tell reconstructions from images, so that it pulls nowhere."""
    steps, real, fake = history.curves("train/logits_real", "train/logits_fake")
    config: Any = history.config
    if not len(steps):
        return None
    begun = steps > config.loss.in_steps(config.steps).disc_train_start + config.optimizer.warmup_steps
    steps, apart = steps[begun], (real - fake)[begun]
    if len(steps) < ENOUGH or newest(apart).max() >= APART:
        return None
    return Finding(
        f"the logits of images are at most {newest(apart).max():.2g} above those of reconstructions in "
        f"{span(newest(steps))}: the discriminator guesses",
        scaled(history, "optimizer.disc_learning_rate", TENFOLD),
    )


def bounded_weight(history: History) -> Finding | None:
    """The adaptive weight is clipped: the discriminator's gradient is nothing beside that of the other losses."""
    steps, weight, gate = history.curves("train/adaptive_weight", "train/disc_gate")
    config: Any = history.config
    if not len(steps):
        return None
    bound = config.loss.disc_weight * ADAPTIVE_CEILING
    high = (gate > 0) & (weight >= AT_BOUND * bound)
    if not high.any():
        return None
    return Finding(
        f"the weight is {weight[high].max():,.0f} in the mean before step {steps[high][0]:,.0f}, and in "
        f"{high.sum()} lines of metrics near its bound {bound:,.0f}; where all is well it is below 1",
        {"loss.adaptive": False, "loss.disc_weight": 0.02},
    )


def harm(history: History) -> Finding | None:
    """Images became worse when the generator met the discriminator, and stay so."""
    steps, loss, gate = objective(history)
    before, after = gate == 0, gate == 1
    if before.sum() < ENOUGH or after.sum() < ENOUGH:
        return None
    best, since = loss[before].min(), newest(loss[after]).min()
    if since < HARM * best:
        return None
    return Finding(
        f"the reconstruction loss was {best:.3g} before step {steps[~before][0]:,.0f}, where the adversary comes, and "
        f"is at least {since:.3g} in {span(newest(steps[after]))}",
        scaled(history, "loss.disc_weight", 1 / TENFOLD),
    )


def skipped_steps(history: History) -> Finding | None:
    """Losses or gradients were not finite."""
    (steps, skipped), (stopped, _) = history.curves("train/skipped"), history.curves("train/not_finite")
    if len(stopped):
        reading = f"the run stopped at step {stopped[-1]:,.0f}"
    elif skipped.sum():
        reading = f"{skipped.sum():,.0f} steps were skipped, the first of them before step {steps[skipped > 0][0]:,.0f}"
    else:
        return None
    safer = {"model.dtype": "float32", "transformer.dtype": "float32", "optimizer.clip_norm": 1.0}
    return Finding(
        f"{reading}, because a loss or a gradient was not finite",
        scaled(history, "optimizer.learning_rate", 1 / TENFOLD) | settable(history, safer),
    )


def starved_input(history: History) -> Finding | None:
    """The devices wait for data."""
    steps, waiting = history.curves("train/input_wait")
    if len(steps) < ENOUGH or (share := float(np.median(newest(waiting)))) < WAITING:
        return None
    return Finding(
        f"{share:.0%} of the time in {span(newest(steps))} went into waiting for data",
        {"data.num_threads": 2 * history.config.data.num_threads},
    )


def overfit(history: History) -> Finding | None:
    """The prior learns its images by heart: held-out nats rise again."""
    steps, nats = history.curves("eval/nll")
    if len(steps) < ENOUGH or min(nats[-2:]) < TURNED * nats.min():
        return None
    best = int(nats.argmin())
    return Finding(
        f"{nats[best]:.3f} held-out nats a token at step {steps[best]:,.0f} were the fewest; at step {steps[-1]:,.0f} "
        f"they are {nats[-1]:.3f}",
        {"steps": int(steps[best])} | settable(history, {"transformer.dropout": 0.2, "optimizer.weight_decay": 0.1}),
    )


def low_rate(history: History) -> Finding | None:
    """Nothing is learned, and the parameters stay where they are."""
    _, norms = history.curves("train/param_norm")
    if (reading := nothing_learned(history)) is None or norms[-1] >= MOVED * norms[0]:
        return None
    return Finding(
        f"{reading}, while the parameters stay; {rate(history)}", scaled(history, "optimizer.learning_rate", TENFOLD)
    )


def high_rate(history: History) -> Finding | None:
    """The loss rises, the parameters leap, or they move and nothing is learned."""
    (steps, loss), (at, norms) = alone(history), history.curves("train/param_norm")
    leaps, (name, cost) = norms[1:] / norms[:-1], GUESS[history.config.stage](history.config)
    first = history.curves(name)[1][:ENOUGH].max(initial=0.0)
    if len(steps) >= ENOUGH and newest(loss).min() >= LOST * loss.min():
        reading = f"the loss was {loss.min():.3g} at step {steps[loss.argmin()]:,.0f} and is at least "
        reading += f"{newest(loss).min():.3g} in {span(newest(steps))}"
    elif first >= FAR * cost:
        reading = f"the loss is {first:,.3g} at first, where a guess costs {cost:.3g} at most"
    elif len(at) >= ENOUGH and leaps.max() >= GROWN:
        pair = slice(leaps.argmax(), leaps.argmax() + 2)
        low, high = norms[pair]
        reading = f"the norm of the parameters leaps from {low:.4g} to {high:.4g} in {span(at[pair])}"
    elif (nothing := nothing_learned(history)) and norms[-1] >= MOVED * norms[0]:
        reading = f"{nothing}, though the norm of the parameters went from {norms[0]:.4g} to {norms[-1]:.4g}"
    else:
        return None
    return Finding(f"{reading}; {rate(history)}", scaled(history, "optimizer.learning_rate", 1 / TENFOLD))


def nothing_learned(history: History) -> str | None:
    """Returns in words that the loss stayed; None where it fell, or where the run began with trained parameters."""
    config: Any = history.config
    steps, loss = alone(history)
    warm = steps > config.optimizer.warmup_steps
    if warm.sum() < ENOUGH or (mean := newest(loss[warm]).mean()) < LEARNED * loss[0]:
        return None
    if fields.write(config).get("start", {}).get("workdir") or steps[0] > 2 * config.log.metrics_every:
        return None
    return f"the loss was {loss[0]:.4g} at step {steps[0]:,.0f} and is {mean:.4g} in {span(newest(steps[warm]))}"


def rate(history: History) -> str:
    """Returns learning rate and batch size in words."""
    config = history.config
    return f"the learning rate is {config.optimizer.learning_rate:g} for a batch of {config.batch_size}"


RULES: dict[str, Rule] = {
    "dead codes": Rule(
        "few details; codebook usage stays low",
        f"`codebook_usage` below {LEAST_USAGE:g}",
        "Codes used",
        ("quantizer.unit_length", "quantizer.kmeans_batches", "quantizer.revive_below", "quantizer.kind"),
        "Let codes start from latents, keep them at unit length and revive dead ones; or take a quantizer without a "
        "codebook, or fewer codes.",
        False,
        dead_codes,
    ),
    "adversary too strong": Rule(
        "reconstructions gain nothing from the adversary; `discriminator_loss` stays near 0",
        f"`discriminator_loss` below {BEATEN:g} of what a guess costs, with the gate open",
        "Adversarial losses",
        ("optimizer.disc_learning_rate", "loss.disc_augment", "loss.lecam_weight"),
        "Slow the discriminator down, show it changed images (`loss.disc_augment`), or tie it to its past "
        "(`loss.lecam_weight`).",
        False,
        strong_adversary,
    ),
    "adversary asleep": Rule(
        "reconstructions gain nothing from the adversary; `discriminator_loss` stays at what a guess costs",
        f"`logits_real` less than {APART:g} above `logits_fake`",
        "Logits of the discriminator",
        ("optimizer.disc_learning_rate", "loss.disc_weight"),
        "Let the discriminator learn faster; where it was awake before `loss.disc_start`, lower `loss.disc_weight`.",
        False,
        sleeping_adversary,
    ),
    "adaptive weight at its bound": Rule(
        "reconstructions break from one line of metrics to the next",
        f"`adaptive_weight` above {AT_BOUND:g} of `loss.disc_weight` times {ADAPTIVE_CEILING:,.0f}",
        "Adaptive weight",
        ("loss.adaptive", "loss.disc_weight", "loss.pixel_weight", "loss.perceptual_weight"),
        "Take a fixed weight (VQGAN+ has 0.02, LlamaGen 0.5), or bring the other losses near 1.",
        False,
        bounded_weight,
    ),
    "divergence after disc_start": Rule(
        "reconstructions become worse when the adversary comes, and do not recover",
        f"`rec_loss` and `perceptual_loss`, weighted, stay {HARM:g} times above the best before",
        "What the generator lowers",
        ("loss.disc_weight", "loss.disc_start", "loss.disc_ramp"),
        "Lower the weight, or let the adversary come later and over a longer ramp.",
        False,
        harm,
    ),
    "steps that are not finite": Rule(
        "lines `step N is skipped`, or the run stops",
        "`skipped` above 0, or `not_finite`",
        "Skipped steps",
        ("optimizer.learning_rate", "optimizer.clip_norm", "model.dtype", "transformer.dtype"),
        "Lower the learning rate, clip gradients, or compute in float32.",
        True,
        skipped_steps,
    ),
    "starved input": Rule(
        "few images a second; the devices idle",
        f"`input_wait` above {WAITING:g}",
        "Input wait",
        ("data.num_threads", "data.source"),
        "Give the loader more threads; a prior should learn from a token cache (`vqgan tokenize`), and images lie near "
        "the devices.",
        True,
        starved_input,
    ),
    "over-fitting": Rule(
        "samples repeat training images; held-out nats rise while the loss falls",
        f"`nll` {100 * (TURNED - 1):.2g}% above its lowest in the two newest evaluations",
        "Nats a token",
        ("steps", "transformer.dropout", "optimizer.weight_decay"),
        "The best checkpoint is kept: `--step=best` of `vqgan sample`. For a better one take more images or crops, "
        "more dropout, or a smaller transformer.",
        False,
        overfit,
    ),
    "learning rate too low": Rule(
        "nothing changes from sheet to sheet",
        f"the loss stays above {LEARNED:g} of its first value, and the parameters where they were",
        "Parameters",
        ("optimizer.learning_rate",),
        "Raise the learning rate. For another batch size multiply it by the square root of the ratio (`--scale_lr`).",
        False,
        low_rate,
    ),
    "learning rate too high": Rule(
        "the loss jumps, or never falls",
        f"before the adversary the loss stays {LOST:g} times above its best, or above {LEARNED:g} of its first value "
        f"while the parameters move; or it begins {FAR:g} times above that of a guess; or `param_norm` is {GROWN:g} "
        "times that of the line before",
        "Parameters",
        ("optimizer.learning_rate", "optimizer.warmup_steps", "optimizer.clip_norm"),
        "Lower the learning rate. For another batch size multiply it by the square root of the ratio (`--scale_lr`).",
        False,
        high_rate,
    ),
}
