"""Every module can be imported, and warns of nothing."""

import pkgutil
import subprocess
import sys

import aced
from tests import many_processes

IMPORT_EACH = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_every_module_in_a_process_of_its_own():
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
