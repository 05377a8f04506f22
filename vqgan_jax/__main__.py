"""`vqgan VERB ...`, the same as `python -m vqgan_jax VERB ...`: finds cli/VERB.py and calls its `main`."""

import importlib
import os
import pkgutil
import sys
import traceback
from collections.abc import Sequence

from vqgan_jax import cli

# How much of a TPU core's own memory one operation may take, KiB. The compiler's measure of v5p is half of it, which
# cuts large products so small that a step takes 6 to 13% longer; of v6e it is this.
TPU_FLAGS = "--xla_tpu_scoped_vmem_limit_kib=32768"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; the result is the exit status. Mistakes of the caller end in one message, not in a traceback."""
    verb, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    verbs = sorted(module.name for module in pkgutil.iter_modules(cli.__path__))
    if verb in ("-h", "--help"):
        print("`vqgan VERB ...`, the same as `python -m vqgan_jax VERB ...`\n")
        for name in verbs:
            summary = (importlib.import_module(f"vqgan_jax.cli.{name}").__doc__ or "").splitlines()[0]
            print(f"  {name:<12} {summary}")
        print("\n`vqgan VERB --help` shows a verb's flags and examples.")
        return 0
    if verb not in verbs:
        print(f"vqgan: the verb must be one of {', '.join(verbs)}; got {verb!r}.", file=sys.stderr)
        return 2
    if argv is None and verb in ("quickstart", "train"):
        take_huge_pages()
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    if TPU_FLAGS not in given:
        os.environ["LIBTPU_INIT_ARGS"] = f"{TPU_FLAGS} {given}".strip()  # of two the last one counts
    try:
        return importlib.import_module(f"vqgan_jax.cli.{verb}").main(rest)
    except TimeoutError as error:
        print(f"vqgan {verb}: {error}", file=sys.stderr)
        leave()  # the interpreter's own end would wait for the thread that hangs
    except (cli.UsageError, ValueError, FloatingPointError, OSError) as error:
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


def take_huge_pages() -> None:
    """Starts the process anew, once, as one whose memory comes in huge pages; the caller's `GLIBC_TUNABLES` stay.

    XLA takes a program's memory anew at every run, and a training step on a CPU waits for each small page of it.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def one_of_several() -> bool:
    """Whether this process has joined others; they wait for it, and at the interpreter's end JAX waits for them."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def leave() -> None:
    """Ends the process, and waits for nothing."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
