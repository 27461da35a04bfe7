"""Files that are cut off, lost, zeroed or changed by a bit, read by every command that reads them.

The files of users, which have no checksums, are in hostile.py; here are those of our own.
"""

import dataclasses
import pathlib
import random
import shutil
from collections.abc import Callable

from benchmarks.drills import processes
from benchmarks.drills.bench import JOBS, OUT, Bench, Contents
from benchmarks.drills.verdicts import Case, Verdict, error_of, verdict

NEWEST = "9"  # of the run's checkpoints


def _truncated(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data))]


def _flipped(data: bytearray, rng: random.Random) -> bytearray:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _zeroed(data: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(data))
    size = min(rng.choice((1, 64, 4096)), len(data) - start)
    data[start : start + size] = bytes(size)
    return data


def _emptied(data: bytearray, rng: random.Random) -> bytearray:
    del rng
    return data[:0]


def _overwritten(data: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(data))
    size = min(rng.randrange(1, 200), len(data) - start)
    data[start : start + size] = rng.randbytes(size)
    return data


def _longer(data: bytearray, rng: random.Random) -> bytearray:
    return data + rng.randbytes(rng.randrange(1, 100))


HOW: dict[str, Callable[[bytearray, random.Random], bytearray] | None] = {
    "truncated": _truncated,
    "a bit flipped": _flipped,
    "deleted": None,
    "zeroed": _zeroed,
    "emptied": _emptied,
    "overwritten": _overwritten,
    "longer": _longer,
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """Which files are damaged, and which command reads them.

    Attributes:
        job: a name of `bench.JOBS`.
        files: patterns of them in the case's folder.
        ready: puts what the job needs into the case's folder; returns the inputs it reads.
        less: whether a part of the result may be missing that the command mentions.
    """

    job: str
    files: tuple[str, ...]
    ready: Callable[[Bench, pathlib.Path], pathlib.Path]
    less: bool = False


def _finished(bench: Bench, folder: pathlib.Path) -> pathlib.Path:
    """The workdir of the run that is done."""
    shutil.copytree(bench.made("main/scenes"), folder, dirs_exist_ok=True)
    return bench.inputs


def _stopped(bench: Bench, folder: pathlib.Path) -> pathlib.Path:
    """The same workdir without its last checkpoint: three steps are taken again."""
    inputs = _finished(bench, folder)
    shutil.rmtree(folder / OUT / "checkpoints" / NEWEST)
    return inputs


def _inputs(*names: str) -> Callable[[Bench, pathlib.Path], pathlib.Path]:
    """A copy of these inputs, and links to the others."""

    def ready(bench: Bench, folder: pathlib.Path) -> pathlib.Path:
        inputs = folder / "inputs"
        inputs.mkdir()
        for path in bench.inputs.iterdir():
            if path.name in names:
                shutil.copytree(path, inputs / path.name)
            else:
                (inputs / path.name).symlink_to(path)
        return inputs

    return ready


def _midway(job: str) -> Callable[[Bench, pathlib.Path], pathlib.Path]:
    """What the job left when it was killed."""

    def ready(bench: Bench, folder: pathlib.Path) -> pathlib.Path:
        shutil.copytree(bench.partial(job), folder, dirs_exist_ok=True)
        (folder / "log").unlink()
        return bench.inputs

    return ready


_CHECKPOINT = f"checkpoints/{NEWEST}/**/*"
CHECKPOINTS = {
    "a finished run": Subject("main/scenes", (f"{OUT}/{_CHECKPOINT}",), _finished),
    "a run to convert": Subject("convert/run", (f"inputs/run/{_CHECKPOINT}",), _inputs("run")),
    "a run to evaluate": Subject("evaluate", (f"inputs/run/{_CHECKPOINT}",), _inputs("run")),
}
FILES = {
    "the index of tars": Subject("cache/tars", ("inputs/tars/INDEX*",), _inputs("tars")),
    "prepared data": Subject("cache/prepared", ("inputs/prepared/*",), _inputs("prepared"), True),
    "a cache": Subject("main/cached", ("inputs/cache/*",), _inputs("cache")),
    "features": Subject("select_text", ("inputs/features/*",), _inputs("features")),
    "a model": Subject("convert/model", ("inputs/model/*",), _inputs("model")),
    "lines": Subject("main/scenes", (f"{OUT}/*.jsonl",), _stopped, True),
    "settings": Subject("main/scenes", (f"{OUT}/*.json",), _stopped),
    "settings to convert": Subject("convert/run", ("inputs/run/config.json",), _inputs("run")),
    "settings to evaluate": Subject("evaluate", ("inputs/run/config.json",), _inputs("run")),
    "lines to report": Subject("report", ("inputs/run/*.json*",), _inputs("run"), True),
    "half a preparation": Subject(
        "prepare/table", (".out.partial/**/*",), _midway("prepare/table")
    ),
    "half a cache": Subject("cache/prepared", (f"{OUT}/*",), _midway("cache/prepared")),
    "half a selection": Subject("select_text", (".out.selecting/**/*",), _midway("select_text")),
}


def of_checkpoints(count: int) -> list[Case]:
    """Every kind of damage to any file of the newest checkpoint."""
    return _cases("damaged checkpoint", CHECKPOINTS, count)


def of_files(count: int) -> list[Case]:
    """Every kind of damage to any other file that we write and read again."""
    return _cases("damaged file", FILES, count)


def _cases(kind: str, subjects: dict[str, Subject], count: int) -> list[Case]:
    pairs = [(name, how) for how in HOW for name in subjects]
    cases = []
    for seed in range(count):
        name, how = pairs[seed % len(pairs)]
        cases.append(Case(kind, subjects[name].job, f"{name}: {how}", seed))
    return cases


def damage(case: Case, bench: Bench, folder: pathlib.Path) -> Verdict:
    """Held: the result is as if there were no damage, or what is missing of it is mentioned."""
    name, _, how = case.what.partition(": ")
    subject, rng = (CHECKPOINTS | FILES)[name], random.Random(f"{case}")
    job = JOBS[subject.job]
    inputs = subject.ready(bench, folder)
    found = sorted(
        path
        for pattern in subject.files
        for path in folder.glob(pattern)
        if path.is_file() and (path.stat().st_size or how == "longer")
    )
    path = rng.choice(found)
    if (change := HOW[how]) is None:
        path.unlink()
    else:
        path.write_bytes(change(bytearray(path.read_bytes()), rng))
    place = f"{path.relative_to(folder)}"
    done = processes.call(job.line(inputs, folder / OUT), folder / "damaged.log")
    names = (path.name, str(path.parent), f"checkpoints/{NEWEST}")
    if done.code != 0 or done.is_crash:
        ended = error_of(done, names)
        return Verdict(ended.outcome, f"{place}\n{ended.detail}")
    try:
        result = bench.read(job, folder / OUT, done)
    except RuntimeError as error:
        return verdict(done, False, (), f"{place}: the result cannot be read: {error}")
    expected = bench.expected(job.name)
    is_right = result == expected
    if not is_right and subject.less and any(x in done.text for x in (path.name, "missing")):
        is_right = job.command == "report" or _is_part(result, expected)
    return verdict(done, is_right, (), f"{place}: another result")


def _is_part(found: Contents, whole: Contents) -> bool:
    """Whether all that is there of a cache or of a run is as in the whole one."""
    if isinstance(found, dict):
        return all(value in (None, whole[i]) for i, value in found.items())
    lines, picks, newest, state = found
    return (
        all(line in whole[0] for line in lines)
        and picks.items() <= whole[1].items()
        and (newest, state) == whole[2:]
    )
