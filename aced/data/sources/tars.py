"""WebDataset tars as img2dataset writes them, with random access.

    00000.tar: 000000000.jpg  000000000.txt  000000000.json  000000001.jpg  ...

The tars stay unchanged, on a disk or in an object store; `tar_index` has the positions of examples.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from typing import Any, SupportsIndex

import numpy as np
from absl import logging

from aced.config import Checked, ConfigError, MayChange
from aced.data import records
from aced.data.captions import check_kinds, joined
from aced.data.records import DatasetError, RecordError, check_index
from aced.data.sources import tar_index, tar_labels
from aced.files import encoding, storage

_LOOKED_AT = 1000  # first examples that are searched for captions when the data set is opened
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_SEARCHED = 100  # first examples whose KEY.json is searched for fields
_MEMBERS = {".cls": "cls", ".npy": "npy", ".txt": "text"}  # the kind of part that each names
_ENTRY = re.compile(r"\.npy:(\d{1,4})")
_SLACK = 1 << 16  # bytes between the parts of an example that are read along in one request


@dataclasses.dataclass(frozen=True)
class WebDatasetConfig(Checked):
    """Tars with pictures (.jpg, .png, .webp) and captions; uncompressed."""

    # A tar, a folder of them, or a pattern: /data/{00000..00099}.tar, gs://bucket/cc12m/*.tar.
    path: MayChange[str] = ""
    # Fields of KEY.json, or of KEY.syn.json as in DataCompDR, with captions; ".cls" or ".npy": the
    # names, in classnames.txt, of the classes in KEY.cls or KEY.npy; ".txt": every line of KEY.txt
    # is a caption. Empty: KEY.txt is one caption, which may be missing if there is a label.
    captions: tuple[str, ...] = ()
    # Kinds of the captions, one for each of these entries, for data.caption_weights: with captions
    # (".txt", "syn_text") for example ("given", "synthetic"). Empty: all are "given".
    kinds: tuple[str, ...] = ()
    # Field of KEY.json with the number of a class; ".cls": that in KEY.cls. Empty: no labels.
    label: str = ""
    # Field of KEY.json with the number of the picture's group, such as a region, for evaluations of
    # the worst group; ".npy:0": entry 0 of KEY.npy. Empty: no groups.
    group: str = ""
    # Folder of the index, if it cannot be stored beside the tars.
    cache_folder: MayChange[str] = "~/.cache/aced"

    def _check(self) -> None:
        check_kinds(self.kinds, self.captions, "data.webdataset")
        if self.label == ".npy":
            raise ConfigError(
                "data.webdataset.label = '.npy': a picture with a vector of classes has no single "
                "label; set data.webdataset.captions to ('.npy',), and classes_in of the "
                "evaluation to 'captions'."
            )
        if self.group.startswith(".") and not _ENTRY.fullmatch(self.group):
            raise ConfigError(
                f"data.webdataset.group = {self.group!r} must be a field of KEY.json, or an entry "
                "of KEY.npy such as '.npy:0'."
            )


class TarSource:
    """The examples of a set of tars; see `Source`.

    Attributes:
        class_names: the names in classnames.txt by number, if classes are read; else None.
        templates: the prompts beside classnames.txt, with {} for the class; else None.
    """

    def __init__(self, config: WebDatasetConfig):
        """Lists the tars and reads or builds their index.

        Raises:
            ConfigError: the tars are compressed, or KEY.txt, a field of KEY.json, or another member
                that the settings name is missing.
            DatasetError: a file is not a tar, no example has a picture, or nshards.txt in the
                folder states another number of tars.
            StorageError: the tars do not exist or cannot be read.
        """
        try:
            files = storage.find(config.path, ".tar")
        except storage.StorageError:
            refuse_packed(config.path)
            raise
        if storage.is_folder(config.path):
            tar_labels.check_count(config.path, len(files))
        self._config = config
        self._paths = [file.path for file in files]
        self._names = storage.names(self._paths)
        self._index = tar_index.load(files, config.cache_folder)
        self.name = config.path
        # With the version, since a new definition of an example would change the indices.
        self.fingerprint = (
            f"{tar_index.EXAMPLES} {self._index.digest} {config.captions} {config.label}"
        )
        if config.group:
            self.fingerprint += f" {config.group}"
        is_named = any(name in tar_labels.MEMBERS for name in config.captions)
        has_classes = is_named or bool(config.label)
        self.class_names = tar_labels.class_names(self._paths) if has_classes else None
        self.templates = tar_labels.templates(self._paths) if has_classes else None
        if is_named and self.class_names is None:
            raise ConfigError(
                f"data.webdataset.captions = {config.captions} are the names of classes, but there "
                f"is no {tar_labels.NAMES} beside the tars of {self.name}, nor in the folder above "
                "them; write one, with the name of a class in each line."
            )
        if is_named:
            names = "\n".join(self.class_names)
            self.fingerprint += f" {hashlib.sha256(names.encode()).hexdigest()}"
        self._check_damage()
        self._check_members()

    def __len__(self) -> int:
        return len(self._index.entries)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Example `index`, see `Source`; without captions `texts` is empty.

        Raises:
            IndexError: `index` is out of range.
            RecordError: the example is damaged or too large.
        """
        index = check_index(self, index)
        entry = self._index.entries[index]
        tar, key = int(entry["tar"]), self._index.key(entry)
        where = f"{self._paths[tar]}, {key}"
        if entry["damaged"]:
            raise RecordError(where)
        try:
            parts = self._read(self._paths[tar], entry)
            fields = {}
            for kind in ("syn", "json"):
                fields |= _json(parts[kind]) if kind in parts else {}
            out = {"image": parts["image"], "id": index, "key": f"{self._names[tar]}/{key}"}
            out |= joined(self._captions(parts, fields), self._config.kinds, records.MAX_ITEMS)
            if self._config.label == ".cls":
                out["label"] = tar_labels.number(parts)
            elif name := self._config.label:
                out["label"] = records.class_number(fields.get(name), f"label {name!r}")
            if entry := _ENTRY.fullmatch(self._config.group):
                out["group"] = tar_labels.entry(parts, int(entry[1]))
            elif name := self._config.group:
                out["group"] = records.class_number(fields.get(name), f"group {name!r}")
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{where}: {error}") from error
        return out

    @property
    def _fields(self) -> tuple[str, ...]:
        """Fields of KEY.json and `_MEMBERS` that the settings name."""
        group = ".npy" if _ENTRY.fullmatch(self._config.group) else self._config.group
        return (*self._config.captions, *filter(None, [self._config.label, group]))

    def _kinds(self) -> tuple[str, ...]:
        """The kinds of members that are read beside the picture."""
        kinds = [_MEMBERS.get(name, "json") for name in self._fields]
        kinds = kinds if self._config.captions else ["text", *kinds]
        return tuple(dict.fromkeys([*kinds, "syn"] if "json" in kinds else kinds))

    def _read(self, path: str, entry: np.void) -> dict[str, bytes]:
        """The parts of an example, in one read if they are close together."""
        spans = {}
        for kind in ("image", *self._kinds()):
            start, size = int(entry[kind]), int(entry[f"{kind}_size"])
            limit = records.MAX_IMAGE_BYTES if kind == "image" else records.MAX_STRING_BYTES
            if start >= 0:
                if not 0 <= size <= limit:
                    raise ValueError(f"{kind} of {size} bytes; at most {limit}")
                spans[kind] = start, start + size
        first, last = min(s for s, _ in spans.values()), max(e for _, e in spans.values())
        if last - first <= sum(e - s for s, e in spans.values()) + _SLACK:
            data = storage.read(path, first, last - first)
            parts = {kind: data[s - first : e - first] for kind, (s, e) in spans.items()}
        else:
            parts = {kind: storage.read(path, s, e - s) for kind, (s, e) in spans.items()}
        for kind, (start, end) in spans.items():
            if len(parts[kind]) != end - start:
                raise ValueError(f"the tar ends before {kind} does; it was cut off since")
        return parts

    def _captions(self, parts: dict[str, bytes], fields: dict[str, Any]) -> list[list[str]]:
        """The captions of each entry of the setting `captions`, or that of KEY.txt."""
        if not self._config.captions:
            return [[encoding.decode(parts["text"]).strip()]] if "text" in parts else []
        return [self._texts(name, parts, fields) for name in self._config.captions]

    def _texts(self, name: str, parts: dict[str, bytes], fields: dict[str, Any]) -> list[str]:
        if name in tar_labels.MEMBERS:
            texts = tar_labels.shown(name, parts, self.class_names)
        elif name == ".txt":
            texts = encoding.decode(parts.get("text", b"")).splitlines()
        else:
            value = fields.get(name)
            texts = value if isinstance(value, list) else [value]
        texts = [encoding.without_mark(text) for text in texts if isinstance(text, str)]
        for text in texts[: records.MAX_ITEMS]:
            text.encode()  # raises for lone surrogates, which JSON can hold but tokenizers refuse
        return texts

    def _check_damage(self) -> None:
        """Raises an error if all first examples are damaged, and warns if some are."""
        first = self._index.entries[:_LOOKED_AT]
        bad = first[first["damaged"] == 1]
        if len(first) and len(bad) == len(first):
            raise DatasetError(
                f"None of the first {len(first)} examples of {self.name} can be used; the first: "
                f"{self._paths[0]}, {self._index.key(first[0])}. Check the path and how the tars "
                "were made."
            )
        if len(bad):
            logging.warning("%s They are skipped and counted.", self._left_out(first))

    def _left_out(self, entries: np.ndarray) -> str:
        """How many of `entries` are damaged, with the reason of the first, or ""."""
        bad = entries[entries["damaged"] == 1]
        if not len(bad):
            return ""
        return (
            f"Of the first {len(entries)} examples of {self.name}, {len(bad)} cannot be used; "
            f"{self._paths[int(bad[0]['tar'])]}, {self._index.key(bad[0])}."
        )

    def _check_members(self) -> None:
        """Raises a ConfigError if no example fits the settings."""
        first = self._index.entries[:_LOOKED_AT]
        whole = first[first["damaged"] == 0]
        if not len(whole):
            return  # the pipeline refuses an empty data set
        required = {name for name in self._fields if name not in _MEMBERS}
        json_at = whole[(whole["json"] >= 0) | (whole["syn"] >= 0)][:_SEARCHED]
        known = self._known_fields(json_at, required)
        listed = encoding.printable(", ".join(sorted(known)[:100])) or "no field"
        problem = ""
        if not self._fields and not (whole["text"] >= 0).any():
            problem = (
                f"{self.name} has no KEY.txt that belongs to one of its pictures, by the same name "
                "in the same tar; add such files, or set data.webdataset.captions to the fields of "
                "KEY.json with captions."
            )
            if (whole["cls"] >= 0).any():
                problem += (
                    " To classify by KEY.cls set data.webdataset.label = '.cls'; to train on the "
                    "names of the classes, .captions = ('.cls',)."
                )
            if (whole["npy"] >= 0).any():
                problem += " For the classes in KEY.npy set .captions = ('.npy',)."
        elif missing := sorted(required - known):
            problem = (
                f"{self.name} has no field {missing[0]!r} in its first {len(json_at)} examples; "
                "correct data.webdataset.captions, .label and .group."
            )
        if problem:
            damaged = self._left_out(self._index.entries)
            raise ConfigError(f"{problem} KEY.json has: {listed}. {damaged}".rstrip())
        without = whole[whole["text"] < 0]
        if not self._fields and len(without):
            logging.warning(
                "Of the first %d examples of %s, %d are pictures without KEY.txt, such as %s, %s. "
                "Training skips and counts them.",
                len(first),
                self.name,
                len(without),
                self._paths[int(without[0]["tar"])],
                self._index.key(without[0]),
            )
        if len(required) < len(self._fields):
            self._check_classes(np.flatnonzero(first["damaged"] == 0)[:_SEARCHED])

    def _check_classes(self, indices: np.ndarray) -> None:
        """Raises a ConfigError if no example has a KEY.cls or KEY.npy that fits the names."""
        reasons = []
        for index in indices:
            try:
                self[index]
                return
            except RecordError as error:
                reasons.append(error)
        raise ConfigError(
            f"None of the first {len(reasons)} examples of {self.name} has what data.webdataset."
            f"captions = {self._config.captions} and .label = {self._config.label!r} ask for; "
            f"correct these, .group, or {tar_labels.NAMES}. {reasons[0]}"
        )

    def _known_fields(self, entries: np.ndarray, required: set[str]) -> set[str]:
        """The fields in KEY.json and KEY.syn.json of examples, until all `required` are found."""
        known: set[str] = set()
        for entry in entries:
            if known and required <= known:
                break
            for kind in ("json", "syn"):
                start, size = int(entry[kind]), int(entry[f"{kind}_size"])
                if start < 0 or not 0 <= size <= records.MAX_STRING_BYTES:
                    continue
                data = storage.read(self._paths[int(entry["tar"])], start, size)
                with contextlib.suppress(ValueError, RecursionError):  # counted when it is read
                    known |= _json(data).keys()
        return known


def _json(data: bytes) -> dict[str, Any]:
    value = json.loads(data)
    if not isinstance(value, dict):
        raise ValueError(f"its JSON is a {type(value).__name__}, not an object")
    return value


def refuse_packed(path: str) -> None:
    """Raises a ConfigError for a compressed tar, or a folder that has some.

    Raises:
        ConfigError: see above.
        StorageError: the folder cannot be listed.
    """
    if path.endswith(_PACKED):
        raise ConfigError(
            f"{path} is compressed, so it has no random access; decompress it to .tar first."
        )
    for ending in _PACKED if storage.is_folder(path) else ():
        if packed := storage.matching(f"{path}/*{ending}"):
            raise ConfigError(
                f"{path} holds {len(packed)} compressed tars, such as {packed[0].path}, which have "
                "no random access; decompress them to .tar first."
            )
