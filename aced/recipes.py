"""Recipes: the files of configs/ by name, and loading one, or the settings of an earlier run."""

import ast
import importlib.util
import os
import pathlib
import sys
import traceback

import ml_collections
from absl import flags

from aced import nearest
from aced.config import ArgumentHelp, ConfigError, listed
from aced.errors import UserError

FOLDER = "configs"
RECORD = "config.json"  # `record.FILE`, whose module takes seconds to import
_ROOT = "Start from the root of the repository, where configs/ is."


class Parser(flags.ArgumentParser):
    """Parses the flag --config: FILE, FILE:ARGUMENTS, or the config.json of a run.

    Attributes:
        config: the settings, before any of them is changed by another flag.
    """

    config: ml_collections.ConfigDict

    def parse(self, text: str) -> ml_collections.ConfigDict:
        """Returns the locked settings. With the argument "help", prints help and exits with 0.

        Raises:
            UserError: there is no such file or argument, or the file fails.
        """
        file, _, argument = text.partition(":")
        if is_record(text):
            self.config = _recorded(text)
        elif file.endswith(".py") and os.path.isfile(file):
            self.config = _loaded(file, argument)
        else:
            raise UserError(_no_file(file))
        self.config.lock()
        return self.config


def is_record(path: str) -> bool:
    """Whether `path` is that of a run's config.json, and no recipe with an argument like it."""
    return ".py:" not in path and os.path.basename(path) == RECORD


def summaries() -> str:
    """The recipes of the current folder, with the first line of the documentation of each.

    A file that Python cannot parse is listed, too.
    """
    lines = {}
    for path in sorted(pathlib.Path(FOLDER).glob("*.py")):
        try:
            module = ast.parse(path.read_bytes(), str(path))
        except (SyntaxError, ValueError) as error:  # ValueError: null bytes, before Python 3.12
            lines[path.stem] = f"does not parse: {error}"
            continue
        names = [node.name for node in module.body if isinstance(node, ast.FunctionDef)]
        if "get_config" in names:
            lines[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0]
    if not lines:
        return f"There are no recipes in {os.getcwd()}. {_ROOT}"
    width = max(map(len, lines))
    return "\n".join(
        [
            f"Recipes, each a file {FOLDER}/NAME.py:",
            *(f"  {name:{width}}  {text}" for name, text in lines.items()),
            f"What one costs, and its arguments: --config={FOLDER}/NAME.py:help",
        ]
    )


def _no_file(file: str) -> str:
    if os.path.isfile(file):
        return f"{file} is neither a recipe, NAME.py, nor the {RECORD} of a run.\n{summaries()}"
    if os.path.isfile(path := os.path.join(file, RECORD)):
        hint = f"; did you mean the settings of the run there, {path}?"
    else:
        names = {path.stem: str(path) for path in pathlib.Path(FOLDER).glob("*.py")}
        stem = pathlib.Path(file).stem
        hint = nearest.did_you_mean([names[name] for name in nearest.names(stem, names)])
    return f"There is no config file {file} in {os.getcwd()}{hint}\n{summaries()}"


def _loaded(file: str, argument: str) -> ml_collections.ConfigDict:
    """What `get_config` of a config file returns."""
    spec = importlib.util.spec_from_file_location("config_file", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.get_config(*([argument] if argument else []))
    except ArgumentHelp as request:
        header = (module.__doc__ or "").strip()
        print(f"{header}\n\nArguments, with their defaults:\n{listed(request.defaults)}")
        sys.exit(0)
    except UserError as error:
        raise UserError(str(error)) from error  # absl would rewrite a ValueError
    except ModuleNotFoundError as error:
        raise UserError(f"{file}: {error}. {_ROOT}") from error
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        place = f"{file}, line {lines[-1]}" if lines else file
        raise UserError(f"{place}: {type(error).__name__}: {error}") from error


def _recorded(file: str) -> ml_collections.ConfigDict:
    """The settings of the run that wrote `file`."""
    from etils import epath

    from aced.checkpoints import record
    from aced.train.config import recorded

    path = epath.Path(file)
    if not path.exists():
        raise UserError(
            f"{file} is no {record.FILE} of a run; it is in the workdir of every run, such as "
            f"runs/smoke/{record.FILE}."
        )
    try:
        return recorded(record.read(path.parent).settings)
    except ConfigError as error:
        raise UserError(str(error)) from error
