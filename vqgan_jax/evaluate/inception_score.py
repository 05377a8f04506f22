"""The Inception Score: sure of each image, and of many kinds over all of them."""

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp


def inception_score(logits: Float[np.ndarray, "n c"], *, split: int = 5000, seed: int) -> tuple[float, float]:
    r"""Mean and standard deviation over splits of :math:`\exp(E_x\, KL(p(y|x)\, \|\, p(y)))`: 1 to how many classes.

    Samples are shuffled first: written class by class, a split of few classes could not score higher than these.
    Logarithms are those of the logits, never of a probability that has become 0.

    Args:
      logits: of Inception, for FID's weights those without the classifier's bias.
      split: images in each; the set is cut into equal parts, as many as come nearest to that, at least one.
      seed: of the shuffle.

    Raises:
      ValueError: no image, or logits that are not finite.

    References:
      Salimans et al. 2016, Improved Techniques for Training GANs, section 4.
    """
    if not len(logits) or not np.isfinite(logits).all():
        raise ValueError(f"logits must be finite and of one image at least; got {len(logits)} images. See the weights.")
    shuffled = np.random.default_rng(seed).permutation(logits.astype(np.float64))
    scores = []
    for part in np.array_split(shuffled, max(1, round(len(logits) / split))):
        logs = part - logsumexp(part, axis=1, keepdims=True)
        marginal = logsumexp(logs, axis=0, keepdims=True) - np.log(len(logs))
        scores.append(np.exp(np.mean(np.sum(np.exp(logs) * (logs - marginal), axis=1))))
    return float(np.mean(scores)), float(np.std(scores))
