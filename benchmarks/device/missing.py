"""Prints those wheels of a folder whose packages are not installed: `... missing FOLDER`."""

import importlib.metadata
import pathlib
import sys
from collections.abc import Iterable


def missing(wheels: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """The wheels of packages that are not there, in any version."""
    found = []
    for wheel in sorted(wheels):
        try:
            importlib.metadata.distribution(wheel.name.partition("-")[0])
        except importlib.metadata.PackageNotFoundError:
            found.append(wheel)
    return found


if __name__ == "__main__":
    print(*missing(pathlib.Path(sys.argv[1]).glob("*.whl")), sep="\n")
