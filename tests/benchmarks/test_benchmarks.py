"""The benchmarks start by the commands that the documentation and their own texts give."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks import documents

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
PACKAGES = sorted(path.parent for path in (ROOT / "benchmarks").glob("*/__main__.py"))
# Each in a process of its own, since their flags have the same names.
IMPORT_EACH = """
import importlib, os, sys
import aced.train
for name in sys.argv[1:]:
    if (child := os.fork()) == 0:
        importlib.import_module(f"benchmarks.{name}")
        print(name, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_the_commands_that_are_named_exist():
    texts = [*documents.TEXTS, *SCRIPTS]
    texts += [*(ROOT / "configs").glob("*.py"), *(path / "__main__.py" for path in PACKAGES)]
    read = " ".join(path.read_text(encoding="utf-8") for path in texts)
    named = set(re.findall(r"python\s+-m\s+benchmarks\.(\w+)", read))
    assert {"methods", "dime", "optima", "step"} <= named
    assert named <= {path.stem for path in (*SCRIPTS, *PACKAGES)}
    assert not re.findall(r"python\s+benchmarks/", read)  # finds no configs


def test_documents_have_the_numbers_of_the_tables():
    for path in documents.TEXTS:
        text = path.read_text(encoding="utf-8")
        assert documents.filled(text) == text, f"{path}: run python -m benchmarks.documents"


@pytest.mark.slow
def test_they_can_be_imported_from_a_clone():
    names = {path.stem for path in SCRIPTS}
    if importlib.util.find_spec("matplotlib") is None:
        names.discard("plots")  # the extra "plots"
    if importlib.util.find_spec("mkdocs") is None:
        names.discard("site_files")  # the extra "docs"
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, *sorted(names)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == sorted(names), done.stderr[-2000:]
