"""Is one variant better than another? A paired test over seeds, and the verdict on a claim of several statements.

Two runs of one seed begin with the same draws and see the same data in the same order (and priors the same codes), so
differences are taken seed by seed. Their mean over n seeds has Student's t with n - 1 degrees of freedom. With three
seeds a mean must be 2.5 times its spread (the standard deviation of the differences) to be decided at 5%, with two
seeds 9 times; with one seed nothing is decided. A test of signs or ranks could never decide with so few.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

HOLDS, FAILS = "holds", "does not hold"
LEVEL = 0.05  # of the two-sided interval
TEST = "paired t over seeds, two-sided 95% interval of the mean advantage"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a comparison came to.

    Attributes:
      verdict: "holds", "does not hold" or "not decided by N seeds".
      seeds: that both variants have.
      advantages: of the first variant over the second, seed by seed; above 0 it is the better one.
      mean, spread: of the advantages; the spread is their standard deviation, NaN of one seed.
      low, high: ends of the 95% interval of the mean.
      p: two-sided, of a mean advantage that is the margin.
    """

    verdict: str
    seeds: tuple[int, ...]
    advantages: tuple[float, ...]
    mean: float
    spread: float
    low: float
    high: float
    p: float


def compare(
    better: Mapping[int, float],
    than: Mapping[int, float],
    *,
    direction: str,
    margin: float = 0.0,
    statements: int = 1,
    level: float = LEVEL,
) -> Outcome:
    """Tests whether the advantage of one variant over another is above a margin.

    The statement holds if the whole interval of the mean advantage lies above the margin, and does not if all of it
    lies below. For the latter the level is divided by the number of a claim's `statements` (Bonferroni), because one
    that fails is enough to refuse the claim; that all of them hold needs no such correction.

    Args:
      better, than: values by seed; only seeds of both count.
      direction: "higher" or "lower", whichever is better.
      margin: 0 asks whether it is better, a number above 0 by how much, one below 0 whether it is not much worse.
      statements: of the claim.
      level: of the two-sided interval.
    """
    seeds = tuple(sorted(better.keys() & than.keys()))
    sign = {"higher": 1.0, "lower": -1.0}[direction]
    advantages = np.array([sign * (better[seed] - than[seed]) for seed in seeds])
    count = len(seeds)
    undecided = f"not decided by {count} seed{'' if count == 1 else 's'}"
    nan = float("nan")
    mean = float(np.mean(advantages)) if count else nan
    if count < 2:
        return Outcome(undecided, seeds, tuple(advantages.tolist()), mean, nan, nan, nan, nan)
    spread = float(np.std(advantages, ddof=1))
    error = spread / math.sqrt(count)
    half = lambda level: float(stats.t.ppf(1 - level / 2, count - 1)) * error
    low, high = mean - half(level), mean + half(level)
    p = float(2 * stats.t.sf(abs(mean - margin) / error, count - 1)) if error else float(mean == margin)
    if low > margin:
        verdict = HOLDS
    elif mean + half(level / statements) < margin or (error == 0 and mean == margin):  # the same run twice
        verdict = FAILS
    else:
        verdict = undecided
    return Outcome(verdict, seeds, tuple(advantages.tolist()), mean, spread, low, high, p)


def overall(outcomes: Sequence[Outcome]) -> str:
    """Returns the verdict on a claim: it holds if all statements do, and not if one does not."""
    verdicts = [outcome.verdict for outcome in outcomes]
    if FAILS in verdicts:
        return FAILS
    if all(verdict == HOLDS for verdict in verdicts):
        return HOLDS
    fewest = min(len(outcome.seeds) for outcome in outcomes if outcome.verdict != HOLDS)
    return f"not decided by {fewest} seed{'' if fewest == 1 else 's'}"
