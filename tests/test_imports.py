"""Every module can be imported, and warns of nothing."""

import pathlib
import pkgutil
import subprocess
import sys

import aced
from tests import many_processes

IMPORT_EACH = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*{"tensorflow", "torch"} & set(sys.modules))
"""


def test_every_module_can_be_imported_alone():
    names = [found.name for found in pkgutil.walk_packages(aced.__path__, "aced.")]
    assert {"aced.main", "aced.methods.contrastive"} < set(names)
    # What other packages warn of while they are imported is theirs.
    ours = [f"-Werror:::{name}" for name in names]
    done = subprocess.run(
        [sys.executable, *ours, "-c", IMPORT_EACH, *names],
        cwd=many_processes.ROOT, env=many_processes.environment(1), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip()  # what takes seconds to import, and we never use


def test_help_does_not_import_jax():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, aced.main; print('jax' in sys.modules)"],
        cwd=many_processes.ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "False\n"


def test_names_of_test_files_differ():
    """pytest imports them by their names alone."""
    names = [path.name for path in pathlib.Path(__file__).parent.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
