"""Shows a run in the browser: its codes, samples, completions, conditions and wide images."""

import os
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vqgan_jax import cli

EXAMPLES = """examples:
  vqgan demo --workdir=runs/quickstart/prior
  vqgan demo --workdir=runs/quickstart/tokenizer --port=8000
  vqgan demo --workdir=runs/photos_prior --classifier=classifiers/photos
  vqgan demo --workdir=runs/photos_prior --host=0.0.0.0

It needs `pip install 'vqgan-jax[demo]'`. A tokenizer shows its codes; a prior shows what it draws, too. Only this
machine can open the page, unless --host says otherwise: then everyone who reaches the machine can, without a password.
What visitors upload is deleted after an hour, and when the demo ends.
"""


def main(argv: Sequence[str]) -> int:
    """`vqgan demo`."""
    parser = cli.parser("demo", __doc__, EXAMPLES)
    parser.add_argument("--workdir", required=True, help="of a run of either stage, or of converted weights")
    cli.add_step_flag(parser)
    parser.add_argument("--tokenizer", help="folder of a prior's tokenizer; default: as the run's config names it")
    parser.add_argument("--condition_tokenizer", help="likewise, of its condition's tokenizer")
    parser.add_argument("--classifier", metavar="DIR", help="of `vqgan evaluate --classifier`: rejects samples by it")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: 127.0.0.1, this machine")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    flags = parser.parse_args(argv)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it ends the page, too, and deletes the folder
    with tempfile.TemporaryDirectory(prefix="vqgan_demo_") as folder:
        # Gradio reads these when it is imported. It keeps files of visitors in this folder, and asks nobody for news.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
        try:
            from vqgan_jax.demo import actions, app
        except ModuleNotFoundError as error:
            raise cli.UsageError(f"the demo needs {error.name}: `pip install 'vqgan-jax[demo]'`.") from None
        console = Console()
        with console.status("loading"):
            models = actions.load(
                flags.workdir,
                step=flags.step,
                tokenizer=flags.tokenizer,
                condition_tokenizer=flags.condition_tokenizer,
                scorer=flags.classifier,
            )
        with console.status("compiling for the first clicks, a minute or so"):
            actions.warm(models)
        newest = models.prior or models.tokenizer
        name = "/".join(Path(flags.workdir).parts[-2:])
        app.launch(models, f"{name}, step {newest.step}", host=flags.host, port=flags.port)
    return 0
