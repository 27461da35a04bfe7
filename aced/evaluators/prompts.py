"""Class names and prompts of installed packages, or of a file.

    open_clip:imagenet          ImageNet's 1,000 names and OpenAI's 80 prompts
    open_clip:imagenet_simple   the same names and 7 prompts
    clip_benchmark              those of CLIP_benchmark for the data set's own name
    clip_benchmark:NAME         those of CLIP_benchmark for another data set
    prompts.json                {"dtd": {"class_names": [...], "templates": ["a photo of a {}."]}}

The packages are found but not imported, which would import PyTorch.
"""

import importlib.util
import json
import pathlib
import runpy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from aced.config import ConfigError
from aced.evaluators import benchmarks

_OPEN_CLIP = {
    "imagenet": "OPENAI_IMAGENET_TEMPLATES",
    "imagenet_simple": "SIMPLE_IMAGENET_TEMPLATES",
}
_PACKAGES = {"open_clip": "open_clip_torch", "clip_benchmark": "clip-benchmark"}


class Wording(NamedTuple):
    """Names of the classes by number, and prompts with {} for the class; empty: not known."""

    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()


def is_package(source: str) -> bool:
    """Whether the words are those of an installed package, and not of a file."""
    return source.partition(":")[0] in _PACKAGES


def read(source: str, data_set: str) -> Wording:
    """The names and prompts for a data set; empty if the source has none for it.

    Args:
        source: see the module.
        data_set: its name in `benchmarks.SETS`, or the plain name of its folder.

    Raises:
        ConfigError: the package is not installed, or the source is unknown, damaged, or has nothing
            of the name that it gives.
    """
    package, _, name = source.partition(":")
    if package == "open_clip":
        if name not in _OPEN_CLIP:
            raise ConfigError(f"--prompts={source}: there are {_listed('open_clip', _OPEN_CLIP)}.")
        metadata = runpy.run_path(str(_folder(package) / "zero_shot_metadata.py"))
        templates = tuple(template("{}") for template in metadata[_OPEN_CLIP[name]])
        return Wording(tuple(metadata["IMAGENET_CLASSNAMES"]), templates)
    if package == "clip_benchmark":
        files = _folder(package) / "datasets"
        names = _json(files / "en_classnames.json")
        templates = _json(files / "en_zeroshot_classification_templates.json")
        if name and name not in templates:
            raise ConfigError(f"--prompts={source}: there are {_listed(package, templates)}.")
        return _wording(names, templates, (name,) if name else benchmarks.folders_of(data_set))
    content = _json(pathlib.Path(source))
    for key, entry in content.items():
        _check(entry, f"{source}: {key!r}")
    known = benchmarks.folders_of(data_set)
    entry = next((content[key] for key in content if benchmarks.plain(key) in known), {})
    return Wording(tuple(entry.get("class_names", ())), _templates(entry.get("templates", ())))


def _check(entry: Any, place: str) -> None:
    """Raises a ConfigError unless an entry of a file has lists of strings alone."""
    if not isinstance(entry, dict):
        raise ConfigError(f"{place} must be an object with {' and '.join(Wording._fields)}.")
    if wrong := entry.keys() - set(Wording._fields):
        raise ConfigError(f"{place} has {sorted(wrong)}; there are {', '.join(Wording._fields)}.")
    for key, values in entry.items():
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ConfigError(f"{place}: {key} must be a list of strings.")


def _templates(texts: Iterable[str]) -> tuple[str, ...]:
    """CLIP_benchmark writes {c} for the class, and we {}."""
    return tuple(text.replace("{c}", "{}") for text in texts)


def _wording(
    names: Mapping[str, Any], templates: Mapping[str, Any], wanted: Sequence[str]
) -> Wording:
    """The entries of the first of the `wanted` data sets that each file has."""

    def of(content: Mapping[str, Any]) -> list[str]:
        by_name = {benchmarks.plain(key): values for key, values in content.items()}
        return next((by_name[name] for name in wanted if name in by_name), [])

    # As CLIP_benchmark does it, ImageNet's prompts are for data sets that have none of their own.
    texts = of(templates) or templates.get("imagenet1k", [])
    return Wording(tuple(of(names)), _templates(texts))


def _folder(package: str) -> pathlib.Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"--prompts={package} needs the package {_PACKAGES[package]}: pip install "
            f"{_PACKAGES[package]}."
        )
    return pathlib.Path(spec.submodule_search_locations[0])


def _json(path: pathlib.Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(
            f"--prompts: there is no file {path}; give one, or open_clip:imagenet, "
            "open_clip:imagenet_simple or clip_benchmark."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must be a JSON object with an entry for each data set.")
    return content


def _listed(package: str, names: Mapping[str, Any]) -> str:
    return ", ".join(f"{package}:{name}" for name in names)
