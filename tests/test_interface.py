"""What people type stays: the keys of configs with their defaults, and the flags of every verb.

`golden/interface.json` holds them. Whoever adds, renames or removes one of them on purpose writes the file again, by
`python tests/test_interface.py`, and says so in CHANGELOG.md; for a key, `vqgan_jax/train/stored.py` says what else.
"""

import argparse
import dataclasses
import importlib
import json
import pkgutil
from pathlib import Path
from unittest import mock

from vqgan_jax import cli, config
from vqgan_jax.nn import fields

GOLDEN = Path(__file__).parent / "golden" / "interface.json"


def keys(cls: type, path: str) -> dict[str, str]:
    """Defaults by `stage1.section(kind).key`."""
    found, kinds = {}, fields.kinds(cls)
    for name, field in fields.keys(cls).items():
        sections = {f"{path}.{name}({kind})": each for kind, each in kinds.get(name, {}).items()}
        if not sections and dataclasses.is_dataclass(field.type):
            sections = {f"{path}.{name}": type(field.default)}
        for section, each in sections.items():
            found |= keys(each, section)
        if not sections:
            found[f"{path}.{name}"] = repr(field.default)
    return found


class Parsed(Exception):
    """Carries a parser out of its verb."""


def parsed(parser: argparse.ArgumentParser, *_: object) -> None:
    raise Parsed(parser)


def flags(verb: str) -> list[str]:
    """The flags of a verb, which is stopped where it parses them."""
    with mock.patch("argparse.ArgumentParser.parse_known_args", parsed):
        try:
            importlib.import_module(f"vqgan_jax.cli.{verb}").main([])
        except Parsed as found:
            return sorted(flag for action in found.args[0]._actions for flag in action.option_strings)
    raise AssertionError(f"{verb} parses no flags")


def interface() -> dict[str, dict]:
    verbs = [module.name for module in pkgutil.iter_modules(cli.__path__)]
    stages = {name: value for n, cls in config.STAGES.items() for name, value in keys(cls, f"stage{n}").items()}
    return {"keys": stages, "flags": {verb: flags(verb) for verb in verbs}}


def test_keys_and_flags_are_what_they_were():
    assert interface() == json.loads(GOLDEN.read_text())


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(interface(), indent=1) + "\n")
