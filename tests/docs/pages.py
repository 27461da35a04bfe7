"""What the documentation holds: its pages, their blocks of code, and the commands in them."""

import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(page: pathlib.Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: pathlib.Path, language: str) -> list[str]:
    """The fenced blocks of a page in this language."""
    return [code for found, code in FENCE.findall(page.read_text("utf-8")) if found == language]


def commands(page: pathlib.Path) -> list[list[str]]:
    """The words of every command: of the fenced blocks of bash, and of indented lines."""
    text = page.read_text("utf-8")
    indented = "".join(re.findall(r"^    (?:python|pip|launch/).*\n", text, re.MULTILINE))
    lines = "\n".join([*blocks(page, "bash"), indented]).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words]
