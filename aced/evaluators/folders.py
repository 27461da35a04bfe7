"""Evaluations of data sets on disk, by the files in their folders.

A folder is read as one of:

    CLIP_benchmark, DataComp   test/*.tar, or *.tar, with classnames.txt
    Hugging Face parquet       *.parquet, data/*.parquet or test/*.parquet
    python -m aced.prepare     dataset.json, or test/dataset.json

Pictures with classes are classified; pictures with captions alone are retrieved; WinoGAViL's are
associated with cues.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from aced.config import ConfigError, expand
from aced.data import records
from aced.data.reader import known_fields
from aced.data.records import DatasetError
from aced.data.sources import (
    ArrayRecordConfig,
    DataConfig,
    candidates,
    open_source,
    parquet_splits,
    tar_index,
)
from aced.data.sources.candidates import CandidatesConfig
from aced.data.sources.parquet import ParquetConfig
from aced.data.sources.tars import WebDatasetConfig
from aced.evaluators import benchmarks
from aced.evaluators.benchmarks import DataSet
from aced.evaluators.config import EvalConfig, ProbeConfig
from aced.files import encoding, storage
from aced.files.storage import StorageError

# Files by which a folder is recognised, and the source that reads it.
_MARKS = {
    "test/*.tar": "webdataset",
    "*.tar": "webdataset",
    records.DESCRIPTION: "array_record",
    f"test/{records.DESCRIPTION}": "array_record",
    "*.parquet": "parquet",
    "data/*.parquet": "parquet",
    "{test,validation,val,train}/*.parquet": "parquet",
}
_TYPE = "dataset_type.txt"  # CLIP_benchmark's: classification, multilabel or retrieval
_SPLITS = ("test", "validation", "val")  # the first one that exists is evaluated

Kind = Literal["auto", "zeroshot", "linear_probe", "retrieval"]


@dataclasses.dataclass(frozen=True)
class Choices:
    """The choices of a user for all data sets."""

    kind: Kind = "auto"
    label: str = ""  # column of parquet, where there are several of classes
    classes: Literal["named", "occurring"] = "named"
    batch_size: int = EvalConfig.batch_size
    bootstrap: int = EvalConfig.bootstrap


def find(patterns: Sequence[str]) -> dict[str, str]:
    """The folders of data sets by their plain names.

    Args:
        patterns: folders of a data set, folders of such folders, or globs of either.

    Raises:
        ConfigError: nothing is found, or two folders have the same name.
        StorageError: a folder cannot be listed.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        path = expand(pattern).rstrip("/")
        folders = _marked(path) or _marked(f"{path}/*")
        if not folders:
            raise ConfigError(
                f"--data={pattern} has no data sets. A data set is a folder with test/*.tar, with "
                "*.parquet, or one that python -m aced.prepare wrote; give it, or a folder of such "
                "folders."
            )
        for folder in folders:
            name = _name(folder)
            if found.setdefault(name, folder) != folder:
                raise ConfigError(
                    f"{found[name]} and {folder} both hold a data set {name!r}; rename one of the "
                    "folders, or give one of them alone."
                )
    return found


def _marked(path: str) -> list[str]:
    """The folders that `path` names and that hold a data set."""
    folders = set()
    for mark in _MARKS:
        for file in storage.matching(f"{path}/{mark}"):
            folders.add(file.path.rsplit("/", mark.count("/") + 1)[0])
    # The folder test/ of a data set is not another one.
    inner = {f for f in folders if _is_split(f) and f.rpartition("/")[0] in folders}
    return sorted(folders - inner)


def _is_split(folder: str) -> bool:
    return folder.rpartition("/")[2] in (*_SPLITS, "train")


def _name(folder: str) -> str:
    parts = folder.split("/")
    return benchmarks.plain(parts[-2] if _is_split(folder) and len(parts) > 1 else parts[-1])


def evaluation(folder: str, about: DataSet, choices: Choices) -> EvalConfig:
    """The evaluation of the data set in `folder`.

    Args:
        folder: one that `find` returned.
        about: facts about the data set.
        choices: of the user.

    Raises:
        ConfigError: the data set has neither classes nor captions, no names of its classes, no
            training data for a linear probe other than those that it is evaluated on, or pictures
            that show one class where several are expected.
        DatasetError: files are damaged.
        StorageError: files cannot be read.
    """
    mark = next(mark for mark in _MARKS if storage.matching(f"{folder}/{mark}"))
    reads = {"webdataset": _tars, "parquet": _parquet, "array_record": _prepared}[_MARKS[mark]]
    found = reads(folder, _SPLITS, about, choices)
    if choices.kind == "retrieval":
        if found.kind != "retrieval":
            raise ConfigError(f"{folder} has no captions, which --kind=retrieval needs.")
    elif about.shows_several and found.classes_in != "captions":
        raise ConfigError(f"{folder} has one class per picture, where several are expected.")
    elif choices.kind != "auto" and found.kind != "zeroshot":
        raise ConfigError(f"{folder} has no classes, which --kind={choices.kind} needs.")
    if choices.kind == "linear_probe":
        # The folder of one split is beside that of the training data.
        whole = (folder.rpartition("/")[0] or ".") if _is_split(folder) else folder
        train = reads(whole, ("train",), about, choices)
        if train.data == found.data:
            raise ConfigError(f"{folder} is what a probe is trained on; evaluate it on other data.")
        found = dataclasses.replace(found, kind="linear_probe", probe=ProbeConfig(data=train.data))
    return dataclasses.replace(
        found,
        classes=choices.classes,
        batch_size=choices.batch_size,
        bootstrap=choices.bootstrap,
        resize=about.resize,
    )


def _classified(data: DataConfig, several: bool = False) -> EvalConfig:
    return EvalConfig(kind="zeroshot", data=data, classes_in="captions" if several else "label")


def _tars(folder: str, splits: Sequence[str], about: DataSet, choices: Choices) -> EvalConfig:
    path = folder if _is_split(folder) else f"{folder}/{splits[0]}"
    if not storage.matching(f"{path}/*.tar"):
        if splits == ("train",):
            raise ConfigError(f"{folder} has no train/*.tar, on which a probe is trained.")
        path = folder
    kinds = _kinds_of_members(path)
    declared = _dataset_type(path)

    def data(**settings: str | tuple[str, ...]) -> DataConfig:
        return DataConfig(source="webdataset", webdataset=WebDatasetConfig(path=path, **settings))

    if choices.kind == "retrieval" and "text" in kinds:
        return EvalConfig(kind="retrieval", data=data(captions=(".txt",)))
    several = about.shows_several and "npy" in kinds
    if declared == "multilabel" or several or kinds & {"cls", "npy"} == {"npy"}:
        return _classified(data(captions=(".npy",)), several=True)
    if declared == "retrieval" or "cls" not in kinds:
        return EvalConfig(kind="retrieval", data=data(captions=(".txt",)))
    group = about.group if "npy" in kinds else ""
    return _classified(data(label=".cls", group=group))


def _kinds_of_members(path: str) -> set[str]:
    """The kinds of members beside the first pictures of a set of tars."""
    files = storage.find(path, ".tar")
    entries = tar_index.load(files, WebDatasetConfig.cache_folder).entries
    return {kind for kind in ("cls", "npy", "text") if (entries[kind][:100] >= 0).any()}


def _dataset_type(path: str) -> str:
    for place in (path, path.rpartition("/")[0]):
        if (file := storage.stat(f"{place}/{_TYPE}")) is not None:
            try:
                return encoding.decode(storage.read(file.path, 0, min(file.size, 100))).strip()
            except ValueError as error:
                raise DatasetError(f"{file.path}: {error}.") from error
    return ""


def _parquet(folder: str, splits: Sequence[str], about: DataSet, choices: Choices) -> EvalConfig:
    from aced.data.sources import parquet_footer

    parquet_footer.pyarrow()  # raises a ConfigError that names the extra
    from aced.data.sources import parquet_roles

    present = parquet_splits.names(folder)
    split = next((s for s in splits if s in present), "")
    if not split and (present or splits == ("train",)):
        raise ConfigError(
            f"{folder} has none of the splits {', '.join(splits)}; it has {', '.join(present)}."
        )
    split = split or parquet_splits.DEFAULT
    if parquet_roles.has_columns(folder, split, candidates.COLUMNS):
        own = CandidatesConfig(path=folder, split=split)
        return EvalConfig(kind="associations", data=DataConfig(source="candidates", candidates=own))
    roles = parquet_roles.read(folder, split, choices.label)
    settings = {"path": folder, "split": split, "image": roles.image}

    def data(**more: str | tuple[str, ...]) -> DataConfig:
        return DataConfig(source="parquet", parquet=ParquetConfig(**settings, **more))

    if choices.kind == "retrieval" and roles.caption:
        return EvalConfig(kind="retrieval", data=data(captions=(roles.caption,)))
    if roles.classes and (about.shows_several or not roles.label):
        return _classified(data(captions=(roles.classes,)), several=True)
    if roles.label:
        return _classified(data(captions=(), label=roles.label))
    if roles.caption:
        return EvalConfig(kind="retrieval", data=data(captions=(roles.caption,)))
    raise ConfigError(f"{folder} has no column of classes, and none of captions with a usual name.")


def _prepared(folder: str, splits: Sequence[str], about: DataSet, choices: Choices) -> EvalConfig:
    path, split = f"{folder}/{splits[0]}", "train"  # a data set of its own for each split
    if storage.stat(f"{path}/{records.DESCRIPTION}") is None:
        path, present = folder, records.read_description(folder)["splits"]
        split = next((s for s in splits if s in present), "")
        if not split:
            raise ConfigError(
                f"{folder} has none of the splits {', '.join(splits)}; it has {', '.join(present)}."
            )
    prepared = ArrayRecordConfig(path=path, split=split)
    data = DataConfig(source="array_record", array_record=prepared)
    if choices.kind == "retrieval":
        return EvalConfig(kind="retrieval", data=data)  # every record has captions
    if "label" in known_fields(open_source(data), data):
        return _classified(data)
    if about.shows_several:
        return _classified(data, several=True)
    return EvalConfig(kind="retrieval", data=data)


def chosen(
    found: Mapping[str, str], suites: Sequence[str], choices: Choices
) -> tuple[dict[str, EvalConfig], dict[str, str]]:
    """The evaluations of data sets by their names, of all or of those that suites have.

    Args:
        found: folders by plain names; see `find`.
        suites: names of `benchmarks.SUITES`; none: all data sets that are found.
        choices: of the user; suites have kinds of their own.

    Returns:
        The evaluations, and the reason for each data set of the suites that has none.

    Raises:
        ConfigError: without suites, a data set cannot be evaluated; or there is no such suite.
    """
    if not suites:
        return dict(_every(found, choices)), {}
    evaluations: dict[str, EvalConfig] = {}
    missing: dict[str, str] = {}
    for suite in suites:
        numbers = benchmarks.numbers(suite)  # raises an error for an unknown suite
        kind = benchmarks.SUITES[suite].kind
        for name, number in zip(benchmarks.SUITES[suite].numbers, numbers, strict=True):
            key = number.rpartition("/")[0]
            if key not in evaluations and key not in missing:
                try:
                    evaluations[key] = _of_suite(found, name, kind, choices)
                except (ConfigError, DatasetError, StorageError) as error:
                    missing[key] = str(error)
    return evaluations, missing


def _every(found: Mapping[str, str], choices: Choices) -> Iterator[tuple[str, EvalConfig]]:
    for place, folder in found.items():
        name = benchmarks.known_name(place)
        made = evaluation(folder, benchmarks.SETS.get(name, DataSet()), choices)
        yield benchmarks.evaluation_name(name, made.kind), made


def _of_suite(found: Mapping[str, str], name: str, kind: str, choices: Choices) -> EvalConfig:
    """The evaluation of the data set `name`, whose data are opened.

    Raises:
        ConfigError: it is missing, or is another one.
        DatasetError, StorageError: see `evaluation`.
    """
    about = benchmarks.SETS[name]
    folder = next((found[f] for f in benchmarks.folders_of(name) if f in found), None)
    if folder is None:
        raise ConfigError("there is no folder of this name")
    made = evaluation(
        folder, about, dataclasses.replace(choices, kind="auto" if kind == "zeroshot" else kind)
    )
    if made.classes_in == "captions" and not about.shows_several:
        raise ConfigError(f"{folder} has several classes per picture, where one is expected")
    for data in (made.data, *([made.probe.data] if made.kind == "linear_probe" else [])):
        open_source(data)  # raises an error if files are missing or damaged
    return made
