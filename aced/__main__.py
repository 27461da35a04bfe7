"""The command `aced`: `aced train` is `python -m aced.main`, and so on."""

import ast
import os
import pathlib
import runpy
import sys

from aced import nearest

COMMANDS = {  # the module of each command
    "train": "main",
    "sweep": "sweep",
    "evaluate": "evaluate",
    "report": "report",
    "prepare": "prepare",
    "cache": "cache",
    "select-text": "select_text",
    "convert": "convert",
    "preflight": "preflight",
    "suite": "suite",
    "latency": "latency",
}


def main() -> None:
    """Runs the command that the first argument names, in this process."""
    name, *arguments = sys.argv[1:] or [""]
    if name in COMMANDS:
        sys.path[:1] = [os.getcwd()]  # as for python -m: recipes import from configs/ there
        module = f"aced.{COMMANDS[name]}"
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif name in ("", "help", "-h", "--help"):
        print(usage())
    else:
        known = {**{module: name for name, module in COMMANDS.items()}, **dict.fromkeys(COMMANDS)}
        found = [known[near] or near for near in nearest.names(name, known)]
        hint = nearest.did_you_mean([f"aced {one}" for one in dict.fromkeys(found)])
        sys.exit(f"\nThere is no command {name!r}{hint}\nSee aced --help.")


def usage() -> str:
    """The commands, with the first line of the documentation of each."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "aced COMMAND --FLAG=VALUE ...",
            "",
            *(f"  {name:{width}}  {_summary(module)}" for name, module in COMMANDS.items()),
            "",
            "The flags of each: aced COMMAND --help. Without aced on the PATH: "
            "python -m aced COMMAND.",
        ]
    )


def _summary(module: str) -> str:
    """The first line of a command's documentation, read without importing it."""
    package = pathlib.Path(__file__).parent / module
    path = package / "__main__.py" if package.is_dir() else package.with_suffix(".py")
    documentation = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return documentation.partition("\n")[0].partition(": `")[0].rstrip(".") + "."


if __name__ == "__main__":
    main()
