"""Imports in the package run downwards only: from a later layer to an earlier one."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "aced"
# From the lowest to the highest. Modules of one layer do not import each other's packages.
LAYERS = (
    ("bounds", "errors", "nearest", "terminal"),
    ("config", "outputs"),
    ("files", "flag_settings", "command_line"),
    ("parallel",),
    ("command",),
    ("losses", "selection", "optim", "metrics", "checkpoints"),
    ("data",),
    ("models",),
    ("cost", "cache"),
    ("methods", "evaluators"),
    ("train",),
    ("recipes",),
    ("run_flags",),
    ("commands",),
)
COMMANDS = (
    "__main__",
    "main",
    "sweep",
    "evaluate",
    "suite",
    "inference",
    "latency",
    "prepare",
    "select_text",
    "convert",
    "preflight",
    "report",
)


def layer_of(module):
    """The number of the layer of a module such as aced.cache.reader, and its package's name."""
    _, package, *rest = module.split(".")
    if package in COMMANDS or rest[:1] in (["__main__"], ["command"]):
        package = "commands"
    (number,) = [n for n, layer in enumerate(LAYERS) if package in layer]
    return number, package


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(("aced", *path.relative_to(ROOT).with_suffix("").parts))
        yield name.removesuffix(".__init__"), path


def imports(path, known):
    """The modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aced"):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("aced"))


KNOWN = dict(modules())


@pytest.mark.parametrize("module", [name for name in KNOWN if name != "aced"])
def test_imports_run_downwards(module):
    number, package = layer_of(module)
    for imported in imports(KNOWN[module], KNOWN):
        if imported == "aced":
            continue
        below, other = layer_of(imported)
        assert below < number or package == other, f"{module} imports {imported}"


def test_packages_are_installed():
    for folder in {path.parent for path in ROOT.rglob("*.py")}:
        assert (folder / "__init__.py").exists(), f"{folder} would be left out of a wheel"
