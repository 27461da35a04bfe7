"""Reads the metrics and picks of a run from its workdir."""

import math
import re
from collections.abc import Iterable, Sequence

from etils import epath

from aced.metrics import jsonl

FILE = "metrics.jsonl"
PICKS_FILE = "picks.jsonl"
CLAIMS_FILE = "claims.jsonl"
PICK_KEYS = ("step", "ids")
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # as they are written


def read(workdir: epath.PathLike) -> list[dict[str, int | float]]:
    """Returns a run's metrics, a dict per line in the order of writing.

    Incomplete and damaged lines are skipped with a warning.

    Raises:
        FileNotFoundError: `workdir` holds no metrics.
    """
    return [_parsed(line) for line in jsonl.read(_file(workdir, FILE), ("step",))]


def read_some(
    workdir: epath.PathLike, most: int, numbers: Iterable[str]
) -> tuple[list[dict[str, int | float]], int]:
    """`read` for long runs: evenly spaced lines, the last line, and those of evaluations.

    Args:
        workdir: of the run.
        most: runs with at most this many lines are read whole; of others, this many are read.
        numbers: all lines are read that have a metric EVALUATION/NUMBER with one of these names.

    Returns:
        The lines, and the number of incomplete and damaged ones that were skipped.

    Raises:
        FileNotFoundError: `workdir` holds no metrics.
    """
    pattern = b'/(?:%s)"' % b"|".join(re.escape(name).encode() for name in numbers)
    lines, skipped = jsonl.some(_file(workdir, FILE), most, pattern, ("step",))
    return [_parsed(line) for line in lines], skipped


def _parsed(line: jsonl.Line) -> dict[str, int | float]:
    """A line with its numbers that are not finite, which are written as texts."""
    return {name: NOT_FINITE.get(v, v) for name, v in line.items()}


def read_picks(workdir: epath.PathLike) -> dict[int, list[int]]:
    """Returns the ids of the examples trained on, by step, for the logged steps.

    Raises:
        FileNotFoundError: `workdir` holds no picks.
    """
    lines = jsonl.read(_file(workdir, PICKS_FILE), PICK_KEYS)
    return {line["step"]: line["ids"] for line in lines}


def some_picks(workdir: epath.PathLike, places: Sequence[float]) -> dict[int, list[int]]:
    """`read_picks` for single steps, without reading the whole file.

    Args:
        workdir: of the run.
        places: relative positions in the file, from 0, the first step, to 1, the last.

    Raises:
        FileNotFoundError: `workdir` holds no picks.
    """
    path = _file(workdir, PICKS_FILE)
    lines = [jsonl.at(path, place, PICK_KEYS) for place in places]
    return {line["step"]: line["ids"] for line in lines if line is not None}


def _file(workdir: epath.PathLike, name: str) -> epath.Path:
    path = epath.Path(workdir) / name
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; is {workdir} the workdir of a run?")
    return path


def last_values(workdir: epath.PathLike) -> dict[str, int | float]:
    """The last value of every metric of a run, in order of first appearance."""
    values: dict[str, int | float] = {}
    for line in read(workdir):
        values |= line
    return values


def lost_lines(workdir: epath.PathLike, step: int | None = None) -> list[str]:
    """Compares the files of a run with their sizes at a checkpoint, as `Writer.claim` wrote them.

    Args:
        workdir: of the run.
        step: of the checkpoint, the newest that has a claim; None: whichever that is.

    Returns:
        A sentence for each file that has lost lines.
    """
    folder = epath.Path(workdir)
    claims = folder / CLAIMS_FILE
    claimed = jsonl.at(claims, 1.0, ("step",)) or {}
    if not claimed and (step is None or not jsonl.size(claims)):
        return []  # the run is older than claims
    if step not in (None, claimed.get("step")):
        return [
            f"{claims} does not say how many lines checkpoint {step} came with, so that some of "
            f"{FILE} and {PICKS_FILE} may be lost."
        ]
    messages = []
    for name in (FILE, PICKS_FILE):
        if (lost := claimed.get(name, 0) - jsonl.size(folder / name)) > 0:
            last = (jsonl.at(folder / name, 1.0, ("step",)) or {"step": "none"})["step"]
            messages.append(
                f"{folder / name} has lost lines: {lost} bytes fewer than when checkpoint "
                f"{claimed['step']} was saved; its last line is of step {last}. A full disk, a "
                "power cut or another process may have done that."
            )
    return messages
