"""The verbs of `vqgan`, one file each: flags in, files out. Here is only what they share: reading a config."""

import argparse
import ast
import contextlib
import dataclasses
import importlib.util
import json
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.experimental.compilation_cache import compilation_cache as jax_cache
from ml_collections import ConfigDict
from rich.console import Console

from vqgan_jax import config as configs
from vqgan_jax import convert as readers
from vqgan_jax.convert import hub, taming
from vqgan_jax.data import storage
from vqgan_jax.train import stored

# The lab book: inside the installed package, or beside it in a clone.
PAGES = [Path(__file__).parents[i] / "experiments" for i in (1, 2)]
WEIGHTS = "of weights, a folder that holds one, hf://OWNER/NAME[@REVISION][/FILE], or a name of `vqgan models`"  # help


class UsageError(ValueError):
    """A mistake of the caller in what they typed."""


def parser(verb: str, description: str | None, examples: str) -> argparse.ArgumentParser:
    """Returns the parser of a verb: its module's docstring, and examples in the lines in which they are written."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"vqgan {verb}", description=description, epilog=examples, formatter_class=form)


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of a verb that may run on many hosts at once."""
    group = parser.add_argument_group("many hosts")
    group.add_argument(
        "--distributed", action="store_true", help="join the other processes, as TPU pods and SLURM tell"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: where process 0 listens")
    group.add_argument("--processes", type=int, help="elsewhere: how many there are")
    group.add_argument("--process_id", type=int, help="elsewhere: which one this is, from 0")


def join_cluster(flags: argparse.Namespace) -> Console:
    """Does what the flags of `add_cluster_flags` say, before anything else touches a device.

    Returns:
      A console that prints in process 0 only; absl's own lines begin with warnings.

    Raises:
      UsageError: only some of the three flags for elsewhere are given, or they without `--distributed`.
    """
    elsewhere = (flags.coordinator, flags.processes, flags.process_id)
    if any(flag is not None for flag in elsewhere) and (None in elsewhere or not flags.distributed):
        raise UsageError("`--coordinator`, `--processes` and `--process_id` go together, and with `--distributed`.")
    if flags.distributed:
        jax.distributed.initialize(*elsewhere)
    logging.set_verbosity(logging.WARNING)
    return Console(quiet=jax.process_index() != 0)


@contextlib.contextmanager
def compilation_cache(folder: str | None, default: str = "") -> Iterator[None]:
    """Sets JAX's compilation cache inside: `folder`; for None the environment's or else `default`; for "" no cache.

    What takes less than a second to compile is not kept, unless the environment says so. Of a cluster, process 0
    writes and all read, so the folder must be one that all see.
    """
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    kept = os.environ.get("JAX_COMPILATION_CACHE_DIR") or default if folder is None else folder
    jax.config.update("jax_compilation_cache_dir", kept or None)
    jax_cache.reset_cache()  # it looks for its folder once
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        jax_cache.reset_cache()


def add_step_flag(parser: argparse.ArgumentParser, default: str = "newest", of: str = "") -> None:
    """`--step`, of every verb that loads a run, as `models.load_tokenizer` takes it."""
    parser.add_argument(
        "--step",
        type=lambda text: int(text) if text.isdecimal() else text,
        default=default,
        metavar="N",
        help=f"checkpoint{of}: its number, newest or best, by what was held out; default: newest",
    )


def add_sampling_flags(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds the flags of how a prior draws; `sampling_options` reads them."""
    for name, kind in (("temperature", float), ("top_k", int), ("top_p", float), ("guidance", float), ("power", float)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--schedule", help="of the guidance: constant, linear or cosine")
    parser.add_argument("--greedy", action="store_true", default=None)


def sampling_options(flags: argparse.Namespace, config: Any) -> dict[str, Any]:
    """Returns what `sample_indices` takes: the run's own settings (`config.Sampling`), and the flags over them."""
    changed = {name: value for name, value in vars(flags).items() if name in vars(config) and value is not None}
    return dict(vars(dataclasses.replace(config, **changed).settings))


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the verbs that read other people's files; `checkpoint_options` reads all but `--from`."""
    parser.add_argument("--from", dest="format", metavar="FORMAT", help="default: told by the names of the tensors")
    parser.add_argument("--config", metavar="YAML", help="the model's own, for its number of heads")
    parser.add_argument("--heads", type=int, help="of a transformer, which no shape tells; default: by its width")
    parser.add_argument("--condition", metavar="KIND", help="of a transformer; default: by its tokenizer or length")
    parser.add_argument("--tokenizer", metavar="FILE", help="of a transformer whose own file has none, LlamaGen's")
    parser.add_argument("--codes", type=int, help="of an image that a transformer makes; default: by its positions")
    parser.add_argument("--allow", action="append", metavar="PATTERN", help="of tensors that may be missing or extra")


def checkpoint_options(flags: argparse.Namespace) -> dict[str, Any]:
    """What these flags say: options of a format's `plan`; None where nothing is said."""
    options = taming.read_options(flags.config) if flags.config else {}
    if flags.tokenizer:
        options["tokenizer"] = readers.plan(readers.open_checkpoint(hub.fetch(flags.tokenizer)))
    named = {"num_heads": flags.heads, "condition": flags.condition, "num_codes": flags.codes, "allow": flags.allow}
    return options | {key: value for key, value in named.items() if value is not None}


def load_config(spec: str, overrides: Sequence[str] = ()) -> Any:
    """Runs a page of configs and reads what it returns.

    Args:
      spec: `PAGE` or `PAGE:variant`. The page is a Python file that defines `get_config(variant: str)`, or the name of
        one that comes with the package, such as stage1_photos. Or the `config.json` of a run, of this version or an
        earlier one, from a disk or a bucket, to go on with it or to do it again.
      overrides: `--config.section.key=value`, values as Python literals or plain text.

    Returns:
      `config.Stage1` or `config.Stage2`.

    Raises:
      UsageError: there is no such page, or an override is not of this form.
      ValueError: an unknown key, a value of the wrong type, values that contradict each other.
    """
    if storage.in_bucket(spec):
        nested = stored.current(json.loads(storage.place(spec).read_text()))
    else:
        page, _, variant = spec.partition(":")
        path = find_page(page)
        nested = stored.current(json.loads(path.read_text())) if path.suffix == ".json" else run_page(path, variant)
    return configs.read(override(nested, overrides))


def find_page(page: str) -> Path:
    """Returns the file of a page; UsageError if there is none of that name."""
    path = Path(page).resolve()
    if path.is_file() and path.suffix in (".py", ".json"):
        return path
    files = [file for folder in PAGES for file in sorted(folder.glob("*.py")) if file.stem != "recipe"]
    shipped = {file.stem: file for file in files}
    if page not in shipped:
        raise UsageError(
            "`--config` must name a Python file, the config.json of a run, or a page that comes with the package; "
            f"{page!r} is none. The pages are {', '.join(shipped)}."
        )
    return shipped[page]


def run_page(path: Path, variant: str) -> dict[str, Any]:
    """The config that a page of the lab book returns, as nested dicts."""
    with page_module(path) as module:
        if not hasattr(module, "get_config"):
            raise UsageError(f"a config file must define `get_config(variant)`; {path} does not. See experiments/.")
        config = module.get_config(variant) if variant else module.get_config()
    return config.to_dict() if isinstance(config, ConfigDict) else dict(config)


@contextlib.contextmanager
def page_module(path: Path) -> Iterator[Any]:
    """Runs a page of the lab book; inside, its functions find the files of its folder."""
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    with neighbours(path.parent):
        module_spec.loader.exec_module(module)
        yield module


@contextlib.contextmanager
def neighbours(folder: Path) -> Iterator[None]:
    """Lets a page import the files of its folder, and nothing else by their names; afterwards they are forgotten.

    Each folder may have a `recipe.py` of its own. A name of the standard library stays the library's.
    """
    names = {path.stem for path in folder.glob("*.py")} - sys.stdlib_module_names
    others = {name: sys.modules.pop(name) for name in names & sys.modules.keys()}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in names & sys.modules.keys():
            del sys.modules[name]
        sys.modules.update(others)


def size(text: str | None, side: int) -> tuple[int, int]:
    """Height and width of `--size`, of a square without it; UsageError if it is of another form."""
    height, _, width = (text or f"{side}x{side}").partition("x")
    if not height.isdecimal() or not width.isdecimal():
        raise UsageError(f"`--size` must look like 512x2048, height and width; got {text!r}.")
    return int(height), int(width)


def override(nested: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Returns a nested config with some values changed, as `config.vary` does.

    Raises:
      UsageError: an override does not look like `--config.section.key=value`.
      ValueError: it goes into what is no section, or names a kind that does not exist.
    """
    changes = {}
    for text in overrides:
        flag, equals, value = text.partition("=")
        if not flag.startswith("--config.") or not equals:
            raise UsageError(f"overrides must look like --config.section.key=value; got {text!r}.")
        changes[flag.removeprefix("--config.")] = literal(value)
    return configs.vary(nested, changes).to_dict()


def literal(text: str) -> Any:
    """A Python literal, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text, text)


def load_function(flag: str, text: str) -> Callable[..., Any]:
    """The function that `FILE.py:NAME` names; the file is run."""
    file, _, name = text.rpartition(":")
    if not file.endswith(".py") or not Path(file).is_file():
        raise UsageError(f"`{flag}` must look like FILE.py:NAME, of a file that is there; got {text!r}.")
    function = runpy.run_path(file).get(name)
    if not callable(function):
        raise UsageError(f"`{flag}` must name a function of {file}; it has no {name!r}.")
    return function
