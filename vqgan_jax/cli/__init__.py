"""The verbs of `vqgan`, one file each: flags in, files out. Here is only what they share: reading a config."""

import argparse
import ast
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from vqgan_jax import parsing


class UsageError(Exception):
    """A mistake of the caller, shown as one message without a traceback."""


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of a verb that may run on many hosts at once."""
    group = parser.add_argument_group("many hosts")
    group.add_argument(
        "--distributed", action="store_true", help="join the other processes, as TPU pods and SLURM tell"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: where process 0 listens")
    group.add_argument("--processes", type=int, help="elsewhere: how many there are")
    group.add_argument("--process_id", type=int, help="elsewhere: which one this is, from 0")


def join_cluster(flags: argparse.Namespace) -> None:
    """Does what the flags of `add_cluster_flags` say, before anything else touches a device.

    Raises:
      UsageError: only some of the three flags for elsewhere are given, or they without `--distributed`.
    """
    elsewhere = (flags.coordinator, flags.processes, flags.process_id)
    if any(flag is not None for flag in elsewhere) and (None in elsewhere or not flags.distributed):
        raise UsageError("`--coordinator`, `--processes` and `--process_id` go together, and with `--distributed`.")
    if flags.distributed:
        import jax

        jax.distributed.initialize(*elsewhere)


def load_config(spec: str, overrides: Sequence[str] = ()) -> Any:
    """Runs a config file and parses what it returns.

    Args:
      spec: `FILE` or `FILE:variant`; the file defines `get_config(variant: str) -> ConfigDict`.
      overrides: `--config.section.key=value`, values as Python literals or plain text.

    Returns:
      `config.Stage1` or `config.Stage2`.

    Raises:
      UsageError: the file is not there, or an override is not of this form.
      ValueError: an unknown key, a value of the wrong type, values that contradict each other.
    """
    file, _, variant = spec.partition(":")
    path = Path(file).resolve()
    if not path.is_file() or path.suffix != ".py":
        raise UsageError(
            f"`--config` must name a Python file, such as experiments/stage1_photos.py; {file!r} is not one."
        )
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.path.insert(0, str(path.parent))  # a page may import its neighbours
    try:
        module_spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    if not hasattr(module, "get_config"):
        raise UsageError(f"a config file must define `get_config(variant)`; {file!r} does not. See experiments/.")
    config = module.get_config(variant) if variant else module.get_config()
    nested = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    override(nested, overrides)
    return parsing.parse(nested)


def override(nested: dict[str, Any], overrides: Sequence[str]) -> None:
    """Sets values of a nested config; UsageError for what does not look like `--config.section.key=value`."""
    for text in overrides:
        flag, equals, value = text.partition("=")
        if not flag.startswith("--config.") or not equals:
            raise UsageError(f"overrides must look like --config.section.key=value; got {text!r}.")
        put(nested, flag.removeprefix("--config.").split("."), literal(value))


def put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets a value of a nested dict; `configs.parse` finds keys that should not be there."""
    *sections, key = path
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UsageError(
                f"`config.{section}` is a value, not a section; `--config.{'.'.join(path)}` cannot be set."
            )
    tree[key] = value


def literal(text: str) -> Any:
    """A Python literal, or else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text, text)
