"""The card of a published model: what it is, how it is loaded, its figures with their protocol, its sheets."""

import json
from collections.abc import Sequence

from vqgan_jax.convert.trees import Converted
from vqgan_jax.evaluate.protocol import Result
from vqgan_jax.report.page import render


def card(converted: Converted, name: str, sheets: Sequence[str], evaluation: str) -> str:
    """Returns the text of a repository's README.md.

    Args:
      converted: the model.
      name: of the repository, hf://OWNER/NAME.
      sheets: pictures of the repository, by name without `.png`.
      evaluation: the run's `evaluation.json`; "" where nobody measured it. Figures of other steps are left out.

    Raises:
      ValueError: `evaluation` is none of `vqgan evaluate`.
    """
    try:
        results = [Result(**row) for row in json.loads(evaluation)["results"]] if evaluation else []
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"evaluation.json must be of `vqgan evaluate`; got {type(error).__name__}: {error}. Evaluate the run anew."
        ) from error
    here = [result for result in results if result.step == converted.step]
    return render("card.md", model=converted, name=name, sheets=sheets, results=here)
