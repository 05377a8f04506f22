"""Who may import whom, and how much one file and one function may hold."""

import ast
import configparser
import functools
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "vqgan_jax").rglob("*.py"))
PAGES = sorted((ROOT / "experiments").glob("*.py"))

# The floor plan: imports go from a layer to itself or down. Inside a folder files may import each other.
LAYERS = (
    ("nn", "losses", "ordering", "sampling", "pictures"),
    ("config", "conditions", "data"),
    ("prior", "models", "api", "train", "evaluate", "convert", "plan", "report"),
    ("train.loop", "quickstart", "studies", "demo", ""),  # "" is the package's own __init__
    ("cli", "__main__"),
)


def module_name(path: Path) -> str:
    """`train.loop` for vqgan_jax/train/loop.py; the package itself is the empty name."""
    parts = path.relative_to(ROOT / "vqgan_jax").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """All of a file's syntax, its module first."""
    return list(ast.walk(ast.parse(path.read_text())))


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Full names of everything that a file imports, wherever it does so."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def ours(path: Path) -> set[str]:
    """Our modules that a file imports; `from vqgan_jax import data` is `data`, not the package."""
    found = set()
    for name in imports(path):
        head, _, rest = name.partition(".")
        if head != "vqgan_jax":
            continue
        while rest not in MODULES:
            rest = rest.rpartition(".")[0]
        found.add(rest)
    return found


def layer_of(module: str) -> int:
    """The number of a module's layer, or of its folder's; StopIteration for what has no place in the floor plan."""
    head = module.split(".")[0]
    return next(i for names in ((module,), (head,)) for i, layer in enumerate(LAYERS) if set(names) & set(layer))


def test_imports_point_downwards_only():
    for module, path in MODULES.items():
        up = {name for name in ours(path) if layer_of(name) > layer_of(module)}
        assert not up, f"{module or 'the package'} must not import {', '.join(sorted(up))}"


def test_every_folder_is_packaged():
    """The wheel has each folder, and the lab book."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    listed = set(parser["options"]["packages"].split())
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in FILES}
    assert listed == folders | {"vqgan_jax.experiments", "vqgan_jax.experiments.studies"}


def test_there_is_no_cycle():
    graph = {name: ours(path) - {name} for name, path in MODULES.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
    assert order.index("nn.layers") < order.index("config") < order.index("train.loop")


def test_verbs_do_not_know_each_other():
    for name, path in MODULES.items():
        if name.startswith("cli."):
            assert not {other for other in ours(path) if other.startswith("cli.")}, name


def test_pictures_need_numpy_einops_and_pil_only():
    foreign = {name.split(".")[0] for name in imports(MODULES["pictures"])} - set(sys.stdlib_module_names)
    assert foreign <= {"numpy", "PIL", "einops", "jaxtyping"}


PAGE_WRITERS = ("quickstart", "cli.evaluate", "cli.export", "cli.report", "cli.train", "studies.report")


def test_only_who_draws_a_page_waits_for_its_libraries():
    """`report` imports jinja2 and matplotlib, and verbs import `report` where they write a page."""
    for name, path in MODULES.items():
        heads = {imported.split(".")[0] for imported in imports(path)}
        assert not heads & {"jinja2", "matplotlib"} or name.startswith("report."), name
        reports = {other for other in ours(path) if other.startswith("report.")}
        assert not reports or name.startswith("report.") or name in PAGE_WRITERS, name
    # The start of a training waits for neither: `vqgan train` imports its page when the run is over.
    at_once = [ast.unparse(node) for node in ast.parse(MODULES["cli.train"].read_text()).body]
    assert not [line for line in at_once if line.startswith(("import", "from")) and "report" in line]


def test_only_the_demos_page_knows_gradio():
    """It is an extra: `vqgan demo` imports the page and says what to install."""
    for name, path in MODULES.items():
        heads = {imported.split(".")[0] for imported in imports(path)}
        assert "gradio" not in heads or name == "demo.app", name
        assert "demo.app" not in ours(path) or name == "cli.demo", name


def test_nobody_asks_which_kind_a_condition_is():
    """The class answers: outside of `conditions` its subclasses have no names, and `kind` is compared with nothing."""
    from vqgan_jax.conditions import CONDITIONS

    names = {"conditions"} | {
        base.__name__ for cls in CONDITIONS.values() for base in cls.__mro__ if base is not object
    }
    for name, path in MODULES.items():
        if name.startswith("conditions"):
            continue
        heads = {imported.removeprefix("vqgan_jax.conditions.") for imported in imports(path)}
        assert not heads & (names - {"Condition"}), f"{name} imports {heads & names}"
        assert not {other for other in ours(path) if other.startswith("conditions.")}, name
        for node in nodes(path):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass", "type"):
                assert not names & {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}, ast.unparse(node)
            if isinstance(node, ast.Compare | ast.Match):
                sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else [node.subject]
                asked = [ast.unparse(side) for side in sides]
                assert not any(side.endswith(("condition.kind", "prefix.kind")) for side in asked), f"{name}: {asked}"


def test_the_lab_book_knows_configs_only():
    neighbours = {path.stem for path in PAGES}
    for path in PAGES:
        heads = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
        assert heads <= {"vqgan_jax"} | neighbours, path.name
        assert ours(path) <= {"config"}, path.name


def test_studies_know_our_package_and_numpy():
    pages = sorted((ROOT / "experiments" / "studies").glob("*.py"))
    neighbours = {path.stem for path in pages}
    for path in pages:
        heads = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
        assert heads <= {"vqgan_jax", "numpy", "jaxtyping"} | neighbours, path.name
        assert not {name for name in ours(path) if layer_of(name) > layer_of("studies")}, path.name


def test_only_one_file_knows_orbax_and_none_knows_torch():
    for name, path in MODULES.items():
        heads = {imported.split(".")[0] for imported in imports(path)}
        assert "orbax" not in heads or name == "train.checkpoint", name
        assert not heads & {"torch", "clu"}, name
        assert "tensorflow" not in heads, name


# What JAX does not promise to keep, and our libraries behind an underscore.
PRIVATE = (
    "jax.core",
    "jax.extend",
    "jax.interpreters",
    "jax.lib",
    "jaxlib",
    "jax.experimental.serialize_executable",
    "jax.experimental.topologies",
)
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax", "grain", "absl", "etils", "ml_collections", "numpy")


def private_names(path: Path) -> set[str]:
    """The private names of libraries that a file imports or reaches by an attribute of a module."""
    modules = {}
    for node in nodes(path):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    attributes = {ast.unparse(node) for node in nodes(path) if isinstance(node, ast.Attribute)}
    heads = ((modules.get(name.split(".")[0]), name.partition(".")[2]) for name in attributes)
    names = imports(path) | {f"{head}.{rest}" for head, rest in heads if head}
    ours = {name for name in names if name.split(".")[0] in LIBRARIES}
    hidden = {name for name in ours if any(part.startswith("_") and part[-2:] != "__" for part in name.split("."))}
    return hidden | {name for name in ours if any(f"{name}.".startswith(f"{prefix}.") for prefix in PRIVATE)}


def test_only_one_file_knows_private_names_of_jax():
    folders = ("vqgan_jax", "experiments", "benchmarks")
    found = {
        str(path.relative_to(ROOT)) for name in folders for path in (ROOT / name).rglob("*.py") if private_names(path)
    }
    assert found == {"vqgan_jax/train/compat.py"}


@pytest.mark.parametrize(
    "text",
    [
        "from jax._src import core",
        "import jax\njax.core.Tracer",
        "import jaxlib",
        "import jax.interpreters.ad as ad",
        "from jax import core",
        "import numpy as np\nnp._core",
        "from jax.extend.core import Jaxpr",
    ],
)
def test_a_private_name_is_found_however_it_is_spelt(tmp_path, text):
    (tmp_path / "page.py").write_text(text)
    assert private_names(tmp_path / "page.py")


def test_pure_modules_touch_no_clock_and_no_file():
    pure = (
        "losses",
        "sampling",
        "prior",
        "config",
        "config.sections",
        "train.state",
        "train.stage1",
        "train.stage2",
        "nn.autoencoder",
    )
    for module in pure:
        heads = {name.split(".")[0] for name in imports(MODULES[module])}
        assert not heads & {"time", "os", "pathlib", "etils", "signal", "random", "absl", "rich", "sys"}, module


# Budgets


def test_a_file_is_one_idea():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 450, path
        assert path.stem not in ("utils", "common", "misc", "helpers"), path


def lines_of_code(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the last one, without the docstring."""
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is not None:
        docstring = node.body[0]
        assert docstring.end_lineno is not None
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def test_a_function_is_short():
    for path in FILES:
        for node in filter(lambda node: isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef), nodes(path)):
            budget = 90 if (path.stem, node.name) == ("loop", "train") else 60
            assert lines_of_code(node) <= budget, f"{path}: {node.name}"


def test_everything_public_has_a_docstring():
    for path in FILES:
        tree = nodes(path)[0]
        assert ast.get_docstring(tree), path
        public = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        for node in [*tree.body, *(method for cls in public for method in cls.body)]:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name != "setup" and node.name[0] != "_":
                assert ast.get_docstring(node), f"{path}: {node.name}"


def test_the_package_is_a_house():
    assert sum(len(path.read_text().splitlines()) for path in FILES) <= 25_050  # with studies, demo and plans of GPUs
