"""Files of users that are broken, foreign or made to do harm, beside good ones.

The good ones are to come out as they went in. What is left out has to be counted or mentioned; an
error has to name the file.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import random
import shutil
from collections.abc import Callable
from typing import Any

from benchmarks.drills import (
    bench as benches,
)
from benchmarks.drills import (
    hostile_parquet,
    hostile_pictures,
    hostile_tables,
    hostile_tars,
    processes,
)
from benchmarks.drills.bench import COUNT, JOBS, OUT, Bench
from benchmarks.drills.verdicts import Case, Verdict, error_of, verdict

# Words of warnings about what is lost.
_LOSS = ("left out", "damaged", "cut off", "no example", "has no ")


@dataclasses.dataclass(frozen=True)
class Trial:
    """A case in its folder.

    Attributes:
        inputs: the folder that the job reads.
        names: an error has to mention one of them.
        lost: good examples that may be left out; None: all, if that is mentioned.
        kept: by key, what else may be among the result.
    """

    inputs: pathlib.Path
    names: tuple[str, ...]
    lost: frozenset[str] | None = frozenset()
    kept: dict[str, Any] = dataclasses.field(default_factory=dict)


Make = Callable[[str, Bench, pathlib.Path, random.Random], Trial]


def _inputs(bench: Bench, folder: pathlib.Path, *copied: str) -> pathlib.Path:
    inputs = folder / "inputs"
    inputs.mkdir()
    for path in bench.inputs.iterdir():
        if path.name not in copied:
            (inputs / path.name).symlink_to(path)
        elif path.is_dir():
            shutil.copytree(path, inputs / path.name)
        else:
            shutil.copy2(path, inputs / path.name)
    return inputs


def _rows(bench: Bench) -> list[tuple[str, str]]:
    lines = (bench.inputs / "captions.jsonl").read_text().splitlines()
    return [(row["image"], row["caption"]) for row in map(json.loads, lines)]


def _table(what: str, bench: Bench, folder: pathlib.Path, rng: random.Random) -> Trial:
    rows = _rows(bench)
    if what in hostile_tables.FORMS:
        ending, data = hostile_tables.FORMS[what](rows)
    elif what.startswith("JSON: "):
        line = hostile_tables.JSON_LINES[what.removeprefix("JSON: ")]
        ending, data = "jsonl", hostile_tables.with_line(hostile_tables.json_table(rows), line, rng)
    else:
        line = hostile_tables.CSV_LINES[what.removeprefix("CSV: ")]
        ending, data = "csv", hostile_tables.with_line(hostile_tables.csv_table(rows), line, rng)
    inputs = _inputs(bench, folder, "captions.jsonl", "captions.csv", "images")
    os.mkfifo(inputs / "images" / "pipe.png")
    (inputs / "images" / "device.png").symlink_to("/dev/zero")
    (inputs / f"captions.{ending}").write_bytes(data)
    if ending == "csv":
        (inputs / "captions.jsonl").unlink()
    return Trial(inputs, (f"captions.{ending}",))


def _picture(what: str, bench: Bench, folder: pathlib.Path, rng: random.Random) -> Trial:
    inputs = _inputs(bench, folder, "images")
    key, caption = rng.choice(_rows(bench))
    picture = hostile_pictures.PICTURES[what](rng)
    (inputs / "images" / key).write_bytes(picture.data)
    kept = {key: (hashlib.sha256(picture.data).hexdigest(), (caption,))} if picture.is_whole else {}
    return Trial(inputs, (key,), frozenset([key]), kept)


def _tar(what: str, bench: Bench, folder: pathlib.Path, rng: random.Random) -> Trial:
    inputs = _inputs(bench, folder, "tars")
    for index in (inputs / "tars").glob("INDEX*"):
        index.unlink()
    path = inputs / "tars" / "00000.tar"
    with benches.tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    if what in hostile_tars.PAIRS:
        path.write_bytes(hostile_tars.packed([*members, *hostile_tars.PAIRS[what]]))
        return Trial(inputs, (path.name,))
    if what in hostile_tars.FORMS:
        path.write_bytes(hostile_tars.FORMS[what](members, rng))
    else:
        blocks = hostile_tars.BLOCKS[what](rng)
        path.write_bytes(hostile_tars.with_blocks(members, blocks, rng))
    return Trial(inputs, (path.name,), None)


def _parquet(what: str, bench: Bench, folder: pathlib.Path, rng: random.Random) -> Trial:
    inputs = _inputs(bench, folder, "rows")
    rows = _rows(bench)
    columns = {
        "image": [(bench.inputs / "images" / name).read_bytes() for name, _ in rows],
        "caption": [caption for _, caption in rows],
    }
    (path,) = (inputs / "rows").iterdir()
    if what in hostile_parquet.FORMS:
        path.write_bytes(hostile_parquet.FORMS[what](columns, rng))
        return Trial(inputs, (path.name, "rows"))
    path.write_bytes(hostile_parquet.ROWS[what](columns))
    return Trial(inputs, (path.name,), frozenset([f"/{hostile_parquet.ROW}"]))


def _third_tar(what: str, bench: Bench, folder: pathlib.Path, rng: random.Random) -> Trial:
    inputs = _inputs(bench, folder, "tars")
    data = hostile_pictures.PICTURES[what](rng).data
    members = [("zzz.png", data), ("zzz.txt", b"a red circle")]
    (inputs / "tars" / "99999.tar").write_bytes(hostile_tars.packed(members))
    return Trial(inputs, ("99999.tar",))


_MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json")
_MODEL_CHANGES = ("cut off", "deleted", "emptied", "random", "another type", "a list", "no UTF-8")


def _model(what: str, bench: Bench, folder: pathlib.Path, rng: random.Random) -> Trial:
    inputs = _inputs(bench, folder, "transformers")
    name, _, how = what.partition(": ")
    path = inputs / "transformers" / name
    data = path.read_bytes()
    if how == "deleted":
        path.unlink()
    else:
        path.write_bytes(
            {
                "cut off": lambda: data[: rng.randrange(1, len(data))],
                "emptied": lambda: b"",
                "random": lambda: rng.randbytes(len(data)),
                "another type": lambda: _retyped(data, rng),
                "a list": lambda: b"[1, 2, 3]",
                "no UTF-8": lambda: data[:40] + b"\xff\xfe" + data[40:],
            }[how]()
        )
    return Trial(inputs, (name, "transformers"))


def _retyped(data: bytes, rng: random.Random) -> bytes:
    """JSON with one value of another type."""
    try:
        tree = json.loads(data)
    except ValueError:
        return data[:8] + b"{" + data[8:]  # of safetensors: the header
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in list(items)[:50]:
            places.append((node, key))
            if isinstance(value, dict | list):
                walk(value)

    walk(tree)
    node, key = rng.choice(places)
    node[key] = {"a": [1]} if not isinstance(node[key], dict) else "text"
    return json.dumps(tree).encode()


_GROUPS: tuple[tuple[str, Make, tuple[str, ...]], ...] = (
    (
        "prepare/table",
        _table,
        (
            *(f"JSON: {name}" for name in hostile_tables.JSON_LINES),
            *(f"CSV: {name}" for name in hostile_tables.CSV_LINES),
            *hostile_tables.FORMS,
        ),
    ),
    ("prepare/table", _picture, tuple(hostile_pictures.PICTURES)),
    (
        "prepare/tars",
        _tar,
        (*hostile_tars.BLOCKS, *hostile_tars.PAIRS, *hostile_tars.FORMS),
    ),
    ("prepare/parquet", _parquet, (*hostile_parquet.ROWS, *hostile_parquet.FORMS)),
    ("cache/tars", _third_tar, tuple(hostile_pictures.PICTURES)),
    (
        "convert/transformers",
        _model,
        tuple(f"{name}: {how}" for name in _MODEL_FILES for how in _MODEL_CHANGES),
    ),
)


def cases(count: int) -> list[Case]:
    """Each thing once, then again with other seeds."""
    queues = [
        [Case("hostile file", job, f"{make.__name__[1:]}: {what}") for what in whats]
        for job, make, whats in _GROUPS
    ]
    every = [queue[i] for i in range(max(map(len, queues))) for queue in queues if i < len(queue)]
    return [dataclasses.replace(every[seed % len(every)], seed=seed) for seed in range(count)]


def hostile(case: Case, bench: Bench, folder: pathlib.Path) -> Verdict:
    """Held: all that is good came out as it went in, and what is left out is counted."""
    job, rng = JOBS[case.command], random.Random(f"{case}")
    group, _, what = case.what.partition(": ")
    make = next(m for _, m, _ in _GROUPS if m.__name__ == f"_{group}")
    trial = make(what, bench, folder, rng)
    line = job.line(trial.inputs, folder / OUT)
    if not (trial.inputs / "captions.jsonl").exists():
        line = [x.replace("captions.jsonl", "captions.csv") for x in line]
    done = processes.call(line, folder / "hostile.log")
    if done.code != 0 or done.is_crash:
        return error_of(done, trial.names)
    read = benches.dataset if job.command == "prepare" else job.contents
    try:
        found = processes.in_fork(read, folder / OUT)
    except RuntimeError as error:
        return verdict(done, False, (), f"the result cannot be read: {error}")
    if job.command == "convert":
        return verdict(done, found == bench.expected(job.name), (), "another model")
    if job.command == "cache":
        good = {i: found[i] for i in range(COUNT)}
        return verdict(done, good == bench.expected(job.name), (), "other embeddings")
    return _pairs(done, trial, found, bench.pairs[job.name])


def _pairs(
    done: processes.Done, trial: Trial, found: dict[str, Any], good: dict[str, Any]
) -> Verdict:
    """The verdict on a prepared data set."""
    strange = {k: v for k, v in found.items() if v not in (good.get(k), trial.kept.get(k))}
    lacking = [key for key in good if key not in found]
    may_lack = trial.lost is None or all(key.endswith(tuple(trial.lost) or "/") for key in lacking)
    counted = "Left out:\n  nothing" not in done.text or any(
        name in text and word in text
        for text in done.text.splitlines()
        for name in trial.names
        for word in _LOSS
    )
    is_right = not strange and may_lack and (counted or not lacking)
    return verdict(done, is_right, (), f"strange: {strange}\nlacking: {lacking}")
