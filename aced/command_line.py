"""Command lines: the flags of a command, its help, and messages about what was mistyped."""

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable

from absl import app, flags

from aced import nearest
from aced.errors import UserError

_HELP = re.compile(r"--?(h|\?|help|helpshort)")
_OF_ABSL = ("flagfile", "undefok")  # not among the defined flags
_CONFIG = "config"  # the flag of a recipe, whose settings are flags, too: --config.seed=1


def parsed(argv: list[str]) -> list[str]:
    """Parses the flags in `argv`; returns the name of the command and the other arguments."""
    check_names(argv)
    return flags.FLAGS(argv)


def passing_on(argv: list[str]) -> list[str]:
    """Parses the command's own flags; returns its name, and all else, to be passed on."""
    return flags.FLAGS(argv, known_only=True)


def run(
    main: Callable[[list[str]], None],
    parse: Callable[[list[str]], list[str]] = parsed,
    *,
    takes: str = "",
    notes: Callable[[], str] = str,
) -> None:
    """Parses the flags of the running command and calls its `main` with what is left.

    --help prints the documentation of the module of `main` and its flags in the order of their
    definition, and exits with 0. A mistake exits with 1 and a message without a stack trace.

    Args:
        main: is called with the name of the command and its arguments that are no flags.
        parse: as `parsed`.
        takes: what the arguments that are no flags are, such as "runs"; empty: there are none.
        notes: returns the text at the end of the help.
    """

    def checked(argv: list[str]) -> list[str]:
        if any(_HELP.fullmatch(argument) for argument in argv[1:]):
            print(_help(sys.modules[main.__module__].__doc__, notes()))
            sys.exit(0)
        if "--helpfull" in argv:
            app.usage(writeto_stdout=True)
            sys.exit(0)
        try:
            rest = parse(argv)
            if len(rest) > 1 and not takes:
                raise UserError(_unknown_argument(rest[1]))
        except (flags.Error, UserError) as error:
            sys.exit(f"\n{str(error).rstrip()}\nSee python -m aced.{_name(argv[0])} --help.")
        return rest

    app.run(main, flags_parser=checked)


def check_names(argv: list[str]) -> None:
    """Checks that the flags in `argv` exist, before any is parsed.

    Raises:
        UserError: one does not; the message has those that resemble it.
    """
    for argument in argv[1:]:
        if argument == "--":
            return
        name = argument.removeprefix("--").partition("=")[0]
        is_setting = name.removeprefix("no").startswith(f"{_CONFIG}.") and _CONFIG in flags.FLAGS
        if argument.startswith("--") and not is_setting and not _is_flag(name):
            raise UserError(f"There is no flag --{name}{nearest.did_you_mean(alike(name))}")


def _is_flag(name: str) -> bool:
    if name.startswith("no") and name[2:] in flags.FLAGS:
        return flags.FLAGS[name[2:]].boolean
    return name in flags.FLAGS or name in _OF_ABSL


def alike(name: str) -> list[str]:
    """Returns the flags that resemble `name`, or the settings that are commonly called so."""
    found = nearest.names(name, [*(flag.name for flag in _own_flags()), "help"])
    if _CONFIG in flags.FLAGS:
        found = [f"{_CONFIG}.{path}" for path in nearest.usual(name)] or found
    return [f"--{one}" for one in found]


def _unknown_argument(argument: str) -> str:
    """The message about an argument that is no flag, where a command takes only flags."""
    name = argument.partition("=")[0]
    found = [f"--{name}"] if _is_flag(name) else alike(name)
    hint = nearest.did_you_mean(found) if "=" in argument else "."
    return f"{argument!r} is no flag, and the command takes nothing else{hint}"


def _own_flags() -> list[flags.Flag]:
    """The flags that the command defined, in the order of their definition."""
    return flags.FLAGS.get_key_flags_for_module(sys.argv[0])


def _name(program: str) -> str:
    """The name of a command, which is a module or the __main__.py of a package."""
    return os.path.splitext(program.removesuffix("/__main__.py"))[0].rpartition("/")[2]


def _help(documentation: str, notes: str) -> str:
    width = min(shutil.get_terminal_size().columns, 100)
    lines = [documentation.strip(), "", "Flags:"]
    for flag in _own_flags():
        name = f"--[no]{flag.name}: " if flag.boolean else f"--{flag.name}: "
        text = f"  {name}{' '.join((flag.help or '').split())}"
        if flag.default_as_str not in (None, "''", "'None'", "'false'"):
            text += f" (default: {flag.default_as_str})"
        lines += textwrap.wrap(text, width, subsequent_indent="      ", break_on_hyphens=False)
    lines += ["", "--helpfull also lists the flags of libraries, such as --verbosity."]
    return "\n".join([*lines, *(["", notes] if notes else [])])
