"""`vqgan VERB ...`, the same as `python -m vqgan_jax VERB ...`: finds cli/VERB.py and calls its `main`."""

import ast
import contextlib
import importlib
import os
import pkgutil
import select
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from vqgan_jax import cli
from vqgan_jax.data import storage

# How much of a TPU core's own memory one operation may take, KiB. The compiler's measure of v5p is half of it, which
# cuts large products so small that a step takes 6 to 13% longer; of v6e it is this.
TPU_FLAGS = "--xla_tpu_scoped_vmem_limit_kib=32768"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb and returns the exit status, 1 also where the reader of the output is gone, as `| head` soon is."""
    try:
        try:
            return run(argv)
        finally:
            sys.stdout.flush()  # here and not at the interpreter's end, which would print the error
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def run(argv: Sequence[str] | None) -> int:
    """Runs a verb and returns the exit status. Mistakes of the caller end in one message, not in a traceback."""
    verb, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    verbs = sorted(module.name for module in pkgutil.iter_modules(cli.__path__))
    if verb in ("-h", "--help"):
        print("`vqgan VERB ...`, the same as `python -m vqgan_jax VERB ...`\n")
        for name in verbs:
            tree = ast.parse((Path(cli.__path__[0]) / f"{name}.py").read_text())  # not imported: that takes seconds
            summary = (ast.get_docstring(tree) or "").splitlines()[0]
            print(f"  {name:<12} {summary}")
        print("\n`vqgan VERB --help` shows a verb's flags and examples.")
        return 0
    if verb not in verbs:
        print(f"vqgan: the verb must be one of {', '.join(verbs)}; got {verb!r}.", file=sys.stderr)
        return 2
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    if TPU_FLAGS not in given:
        os.environ["LIBTPU_INIT_ARGS"] = f"{TPU_FLAGS} {given}".strip()  # of two the last one counts
    try:
        with cli.compilation_cache(None, compiled_folder()):
            return importlib.import_module(f"vqgan_jax.cli.{verb}").main(rest)
    except TimeoutError as error:
        print(f"vqgan {verb}: {error}", file=sys.stderr)
        leave()  # the interpreter's own end would wait for the thread that hangs
    except (ValueError, FloatingPointError, OSError) as error:
        if not (isinstance(error, BrokenPipeError) and reader_is_gone()):
            print(f"vqgan {verb}: {error}", file=sys.stderr)
        if one_of_several():
            leave()
    except Exception:
        if not one_of_several():
            raise
        traceback.print_exc()
        hint = "where another process is gone, the same command goes on from the newest checkpoint"
        print(f"vqgan {verb}: this process of several ended by the error above; {hint}.", file=sys.stderr)
        leave()
    return 1


def compiled_folder() -> str:
    """Returns the folder where verbs find what earlier ones compiled; empty, so none, where it cannot be made."""
    folder = storage.cache_folder() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return ""
    return str(folder)


def reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def one_of_several() -> bool:
    """Whether this process has joined others; they wait for it, and at the interpreter's end JAX waits for them."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def leave() -> None:
    """Ends the process, and waits for nothing."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError):
            stream.flush()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
