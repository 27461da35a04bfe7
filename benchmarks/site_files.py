"""A hook of mkdocs: the results of benchmarks are files of the site, where pages link to.

Pages link to `../benchmarks/results/NAME`, which is right in the repository. The site's root is
docs/, so there each of these links has one folder less to leave.
"""

import pathlib
import re
from typing import Any

from mkdocs.structure.files import File, Files

_RESULTS = pathlib.Path(__file__).parent / "results"
_LINK = re.compile(r"\]\((?:\.\./)((?:\.\./)*benchmarks/results/)")


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the results to the files of the site."""
    for path in sorted(_RESULTS.iterdir()):
        if path.is_file():
            name = f"benchmarks/results/{path.name}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Points links to the results at their place in the site."""
    return _LINK.sub(r"](\1", markdown)
