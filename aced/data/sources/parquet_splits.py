"""The splits of a folder of parquet files, by the rules of Hugging Face's `datasets`.

Splits are listed in README.md (`configs`, `data_files`), or follow from names:
train-00000-of-00002.parquet, data/validation.parquet, test/0000.parquet. Files without such names
form the split "train".
"""

import re
from typing import Any

import yaml
from absl import logging

from aced.config import ConfigError
from aced.files import storage
from aced.files.storage import File

DEFAULT = "train"
# Errors of a malformed README.md.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError, yaml.YAMLError)
_SUFFIX = ".parquet"
_MAX_README_BYTES = 1 << 22
_SHARD = re.compile(r"(\w+(?:\.\w+)*)-\d{5}-of-\d{5}\b.*")  # name of the split, place among many
_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def find(path: str, split: str) -> tuple[list[File], str]:
    """The files of `split` in the folder `path`, or all that a pattern or a file names.

    Files of a folder may be in data/ or in folders of splits, and a split may have a synonym, such
    as "val" for "validation".

    Returns:
        The files in order, and the folder's name of the split, "" if it has none.

    Raises:
        ConfigError: the split does not exist, `split` is set although `path` names files, or
            README.md has several sets of files and no default.
        StorageError: the path does not exist or cannot be listed.
    """
    if not storage.is_folder(path):
        if split != DEFAULT:
            raise ConfigError(
                f"data.parquet.split = {split!r} needs a folder, but {path} names files; give the "
                "folder, or leave the split out."
            )
        return storage.find(path, _SUFFIX), ""
    splits = _splits(path)
    matches = [name for name in splits if name == split] or [
        name for name in splits if _WORDS.get(name, name) == _WORDS.get(split, split)
    ]
    if list(splits) == [""] and split == DEFAULT:
        return splits[""], ""
    if len(matches) != 1:  # "val" and "dev" may both exist for "validation"
        known = ", ".join(filter(None, splits))
        if not known:
            known = f"none, because no file is named after a split, such as {split}-0.parquet"
        raise ConfigError(
            f"{path} has no split {split!r}. Its splits are: {known}. Set data.parquet.split "
            "(aced.prepare: --split) to one of them, or give the files: "
            f"{path}/NAME-*.parquet"
        )
    (name,) = matches
    others = [
        f"{other or 'of no split'} ({len(splits[other])})" for other in splits if other != name
    ]
    logging.info(
        "%s: the split %r is read, %d files. Left out are the files of: %s",
        path,
        name,
        len(splits[name]),
        ", ".join(others) or "nothing",
    )
    return splits[name], name


def names(path: str) -> list[str]:
    """The splits of `path`; empty if it is not a folder, or its files have no split.

    Raises:
        ConfigError, StorageError: see `find`.
    """
    return list(filter(None, _splits(path))) if storage.is_folder(path) else []


def _splits(path: str) -> dict[str, list[File]]:
    """The files of a folder by split; "" for files without one."""
    path = path.rstrip("/")
    return _from_readme(path) or _by_name(path)


def _by_name(path: str) -> dict[str, list[File]]:
    """The files by the split in their names or those of their folders."""
    splits: dict[str, list[File]] = {}
    if files := storage.matching(f"{path}/*{_SUFFIX}"):
        for file in files:
            splits.setdefault(_split_of(file.path), []).append(file)
        return splits
    others = set()
    for file in (
        *storage.matching(f"{path}/*/*{_SUFFIX}"),
        *storage.matching(f"{path}/data/*/*{_SUFFIX}"),
    ):
        folder = file.path.split("/")[-2]
        split = _split_of(file.path) if folder == "data" else _word(folder)
        if split or folder == "data":
            splits.setdefault(split, []).append(file)
        else:
            others.add(file.path.rpartition("/")[0])
    if others and not splits:
        raise storage.StorageError(
            f"{path} has no *{_SUFFIX} itself, but there are some in {', '.join(sorted(others))}; "
            "give one of these folders, or a pattern."
        )
    return splits or {"": storage.find(path, _SUFFIX)}  # which raises if the folder has no files


def _split_of(path: str) -> str:
    """The split in a file's name, or ""."""
    name = path.rpartition("/")[2].removesuffix(_SUFFIX)
    if (shard := _SHARD.fullmatch(name)) and _word(shard[1]):
        return shard[1]
    return _word(name)


def _word(name: str) -> str:
    """The split that a word of `name` stands for, or ""."""
    words = re.split(r"[-._ 0-9]+", name.lower())
    return next((_WORDS[word] for word in words if word in _WORDS), "")


def _from_readme(path: str) -> dict[str, list[File]]:
    """The files by split as listed in README.md; empty if it lists none."""
    if (file := storage.stat(f"{path}/README.md")) is None:
        return {}
    text = storage.read(file.path, 0, min(file.size, _MAX_README_BYTES))
    try:
        head = re.match(r"\ufeff?---\s*\n(.*?)\n---", text.decode(), re.DOTALL)
        configs = yaml.safe_load(head[1])["configs"] if head else []
        patterns = _patterns(configs, file.path)
    except ConfigError:
        raise
    except _MALFORMED as error:
        logging.warning("%s is not used, splits go by the names of files: %r", file.path, error)
        return {}
    splits = {}
    for split, split_patterns in patterns.items():
        files = []
        for pattern in split_patterns:
            if ".." in pattern.split("/") or storage.is_remote(pattern):
                raise ConfigError(f"{file.path} names {pattern}, which is not in its folder.")
            files += storage.matching(f"{path}/{pattern}")
        if files := [f for f in dict.fromkeys(files) if f.path.endswith(_SUFFIX)]:
            splits[split] = files
    return splits


def _patterns(configs: list[dict[str, Any]], readme: str) -> dict[str, list[str]]:
    """Patterns of files by split, from the only or default set of files in README.md."""
    configs = [config for config in configs if config.get("data_files")]
    if len(configs) > 1:
        names = [str(config["config_name"]) for config in configs]
        configs = [c for c in configs if c.get("default") or c["config_name"] == "default"]
        if len(configs) != 1:
            raise ConfigError(
                f"{readme} names several sets of files, none as the default: {', '.join(names)}. "
                "Give a pattern of the files of one of them."
            )
    patterns: dict[str, list[str]] = {}
    for config in configs:
        entries = config["data_files"]
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, str):
                entry = {"split": DEFAULT, "path": entry}
            paths = entry["path"]
            paths = paths if isinstance(paths, list) else [paths]
            patterns.setdefault(str(entry.get("split", DEFAULT)), []).extend(map(str, paths))
    return patterns
