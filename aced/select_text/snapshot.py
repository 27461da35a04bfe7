"""The saved state of a selection: each process writes its part, and any number can restore it.

`state.json` names the folder with the complete state. It is replaced in one rename after all files
are written, so that a kill at any moment leaves a complete state.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt64

from aced.select_text.corpus import Counts
from aced.select_text.neighbours import Neighbours, Search
from aced.select_text.reading import Reading
from aced.select_text.sentences import Sample, whole
from aced.select_text.workspace import Workspace

_ABOUT = "state.json"
_LISTS = ("score", "upper", "lower")


@dataclasses.dataclass
class State:
    """The state of the pass over the corpus."""

    blocks: int  # number of blocks so far
    reading: Reading
    sample: Sample  # of the sentences that this process has read
    found: Neighbours | None  # None: the method does not search neighbours


def save(workspace: Workspace, state: State) -> None:
    """Writes `state`; all processes call this after the same block."""
    name = f"state-{state.blocks}"
    folder = workspace.root / name
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        "positions": state.reading.positions,
        "done": state.reading.done,
        "counts": np.frombuffer(json.dumps(state.reading.counts).encode(), np.uint8),
        "sample": state.sample.hashes(),
    }
    if state.found is not None:
        starts, lists = _own_rows(state.found)
        arrays |= {"starts": starts, **lists, "broken": np.asarray(state.found.broken)}
    workspace.save_arrays(f"{name}/{jax.process_index()}.npz", arrays)
    workspace.wait_for_all(f"{name}-written")
    if jax.process_index() == 0:
        about = {"folder": name, "blocks": state.blocks, "processes": jax.process_count()}
        about["checked"] = True  # older states have no checksums
        workspace.write_json(_ABOUT, about)
        for old in workspace.root.glob("state-*"):
            if old != folder:
                shutil.rmtree(old)
    workspace.wait_for_all(f"{name}-saved")


def restore(workspace: Workspace, state: State, search: Search | None, images: int) -> State:
    """Returns the saved state; or the initial `state`, which may be changed, if nothing is saved.

    The lists of the first `images` rows are placed on the devices of `search`.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    if not (workspace.root / _ABOUT).is_file():
        return state
    reading = state.reading
    for process, file in enumerate(_files(workspace)):
        np.maximum(reading.positions, file["positions"], out=reading.positions)
        np.logical_or(reading.done, file["done"], out=reading.done)
        if process % jax.process_count() == jax.process_index():
            state.sample.add(file["sample"])
            reading.counts += Counts(json.loads(file["counts"].tobytes()))
    state.blocks = _about(workspace)["blocks"]
    if search is not None:
        state.found = _lists(workspace, search, state.found, images)
    return state


def sample(workspace: Workspace, empty: Sample) -> Sample:
    """Merges the saved samples of all processes into `empty`."""
    for file in _files(workspace):
        empty.add(file["sample"])
    return empty


def counts(workspace: Workspace) -> Counts:
    """The counts of all processes; "broken" are sentences without a finite embedding."""
    total, broken = Counts(), 0
    for file in _files(workspace):
        total += Counts(json.loads(file["counts"].tobytes()))
        broken = int(file.get("broken", 0))  # the total of all processes, in every file
    return total + Counts(broken=broken)


def neighbours(
    workspace: Workspace, images: int
) -> tuple[list[UInt64[np.ndarray, "_ k"]], list[np.ndarray]]:
    """The saved hashes and scores of all images, in pieces, on the host."""
    hashes, scores = [], []
    for file in _files(workspace):
        for piece, start in enumerate(file["starts"]):
            count = max(0, min(images - int(start), file["score"].shape[1]))
            both = np.stack([file["upper"][piece, :count], file["lower"][piece, :count]], -1)
            hashes.append(whole(both))
            scores.append(file["score"][piece, :count])
    return hashes, scores


def _own_rows(found: Neighbours) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The distinct rows on this process's devices, in pieces of equal lengths.

    Processes with the same rows all write them.
    """
    starts = sorted({s.index[0].start or 0 for s in found.score.addressable_shards})
    lists = {}
    for name in _LISTS:
        shards = {s.index[0].start or 0: s.data for s in getattr(found, name).addressable_shards}
        lists[name] = np.stack([np.asarray(shards[start]) for start in starts])
    return np.array(starts, np.int64), lists


def _lists(workspace: Workspace, search: Search, empty: Neighbours, images: int) -> Neighbours:
    starts, lists = _own_rows(empty)
    broken = np.uint32(0)
    for file in _files(workspace):
        broken = file["broken"]
        old = {name: file[name] for name in _LISTS}
        for piece, start in enumerate(file["starts"]):
            for own, begin in enumerate(starts):
                stop = min(images, start + old["score"].shape[1], begin + lists["score"].shape[1])
                first = max(start, begin)
                if first < stop:
                    for name in _LISTS:
                        lists[name][own, first - begin : stop - begin] = old[name][
                            piece, first - start : stop - start
                        ]

    def placed(name: str) -> jax.Array:
        shape, place = getattr(empty, name).shape, getattr(search.shardings, name)
        rows = dict(zip(starts.tolist(), lists[name], strict=True))
        return jax.make_array_from_callback(shape, place, lambda i: rows[i[0].start or 0])

    place = search.shardings.broken
    broken = jax.make_array_from_callback((), place, lambda _: broken)
    return Neighbours(**{name: placed(name) for name in _LISTS}, broken=broken)


def _files(workspace: Workspace) -> Iterator[dict[str, np.ndarray]]:
    about = _about(workspace)
    for process in range(about["processes"]):
        name = f"{about['folder']}/{process}.npz"
        yield workspace.load_arrays(name, checked=about.get("checked", False))


def _about(workspace: Workspace) -> dict[str, Any]:
    return workspace.read_json(_ABOUT, {"folder": str, "blocks": int, "processes": int})
