"""What checksums and locks cost, as shares of the save, the start or the step that they belong to.

    python -m benchmarks.integrity

On CPU, in seconds of all threads of this process, the least of the repeats, so that other work on
the machine counts little. The cases:

`checkpoint, written`   checksums of the files of a checkpoint of 134 MB; in the background
`checkpoint, compared`  those of its files, before it is loaded
`tar index`             of 10^6 examples in 100 tars
`cache`                 the description of 100 shards with 1,000 missing examples
`run`                   config.json of the smallest recipe
`lock, taken`           a folder's lock taken and released
`lock, kept`            a sign of life

Columns: `megabytes` that are looked at; `check_s`, what is added; `of`, what it is a part of, which
takes `whole_s`; `share`. A `start` is `resumed` of startup.csv, the smallest there is. Between two
signs of life are 30 s, however many steps those are; between two checkpoints are 1,000 steps, here
of 0.1 s. A `save` and a `restore` are Orbax's of the same arrays, checksums included: from a
disk's cache in memory, so that no disk makes these shares look smaller.
"""

import argparse
import json
import pathlib
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from aced.checkpoints import checksums, record
from aced.checkpoints.checkpointer import CheckpointConfig, Checkpointer
from aced.data.sources import tar_index
from aced.data.sources.tar_scan import ENTRY
from aced.files import own_files, ownership
from aced.train.config import parse
from benchmarks import table
from configs import smoke

PARAMETERS = 33_500_000  # float32
EXAMPLES, TARS = 1_000_000, 100
INTERVAL = 1000 * 0.1  # seconds between two checkpoints
COLUMNS = ("case", "megabytes", "check_s", "of", "whole_s", "share")


def least(work: Callable[[], object], repeats: int) -> float:
    """CPU seconds of all threads that a call of `work` takes, the least of `repeats`."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def checkpoints(folder: pathlib.Path, repeats: int, start: float) -> list[dict]:
    """The rows of a checkpoint that is saved, and of one that is restored by a start."""
    sizes = [PARAMETERS // 40] * 40
    state = {f"layer{i}": jax.random.normal(jax.random.key(i), (n,)) for i, n in enumerate(sizes)}
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    config = CheckpointConfig(every_steps=1, keep_last=1)
    steps = iter(range(1, 10**6))
    with Checkpointer(folder, config) as checkpointer:

        def save() -> None:
            checkpointer.save(next(steps), jax.tree.map(jnp.copy, state))
            checkpointer.wait()

        saved = least(save, repeats)
        path = epath.Path(folder) / "checkpoints" / str(checkpointer.steps()[-1])
        about = json.loads((path / checksums.FILE).read_text())

        def write() -> None:
            (path / checksums.FILE).unlink()
            checksums.write(path, about["custom_metadata"])

        written = least(write, repeats)
        assert checksums.damage(path) is None
        compared = least(lambda: checksums.damage(path), repeats)
        restored = least(lambda: checkpointer.restore_or(shapes), repeats)
    megabytes = sum(size for size, _ in about["files"].values()) / 1e6
    return [
        row("checkpoint, written", megabytes, written, "save", saved),
        row("checkpoint, written", megabytes, written, "interval", INTERVAL),
        row("checkpoint, compared", megabytes, compared, "restore", restored),
        row("checkpoint, compared", megabytes, compared, "start", start),
    ]


def index(repeats: int) -> tuple[float, float]:
    """Megabytes of an index, and the seconds that its checksum adds to mapping it."""
    names = [f"{i:09d}".encode() for i in range(EXAMPLES)]
    rows = np.zeros(EXAMPLES, ENTRY)
    rows["key"], rows["key_size"] = np.arange(EXAMPLES) * 9, 9
    listed = [[f"{i:05d}.tar", 10**9, "0"] for i in range(TARS)]
    data = memoryview(tar_index._pack(listed, rows, b"".join(names), "digest"))
    return len(data) / 1e6, least(lambda: tar_index._parse(data, listed), repeats)


def described(content: dict, repeats: int) -> tuple[float, float]:
    """Megabytes of a JSON file, and the seconds that its checksum adds to reading it."""
    data = own_files.dumps(content)
    plain = least(lambda: own_files.parse(data), repeats)
    return len(data) / 1e6, max(least(lambda: own_files.loads(data), repeats) - plain, 0.0)


def cache() -> dict:
    """Content of the size that a cache's description has."""
    shards = [{"bytes": 10**9, "sha256": "0" * 64, "captions": 10**5} for _ in range(100)]
    return {"shards": shards, "missing": {str(i): "the picture is broken" for i in range(1000)}}


def locks(folder: pathlib.Path, repeats: int) -> tuple[float, float]:
    """Seconds to take and release a folder's lock, and those of one sign of life."""
    path = str(folder / "locked" / ownership.FILE)

    def take() -> None:
        with ownership.owned(path):
            pass

    me = ownership.Owner.this()
    file = ownership._OnDisk(str(folder / "kept" / ownership.FILE))
    file.take(me)
    kept = least(lambda: (file.read(), file.write(me)), repeats)
    file.release(me)
    return least(take, repeats), kept


def row(case: str, megabytes: float, check: float, of: str, whole: float) -> dict:
    """A row of the table."""
    shown = f"{megabytes:.3g}" if megabytes else ""
    return {
        "case": case,
        "megabytes": shown,
        "check_s": f"{check:.2g}",
        "of": of,
        "whole_s": f"{whole:.3g}",
        "share": f"{check / whole:.2%}",
    }


def main() -> None:
    """Measures every case, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default="benchmarks/results/integrity.csv")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    started = {r["case"]: float(r["cpu_s"]) for r in table.read("startup.csv")}["resumed"]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rows = checkpoints(folder / "run", options.repeats, started)
        settings = parse(smoke.get_config("tiny"))
        config = record._content(settings, "data", None)
        for case, found in (
            ("tar index", index(options.repeats)),
            ("cache", described(cache(), options.repeats)),
            ("run", described(config, options.repeats)),
        ):
            rows.append(row(case, *found, "start", started))
        taken, kept = locks(folder, options.repeats)
        rows.append(row("lock, taken", 0, taken, "start", started))
        rows.append(row("lock, kept", 0, kept, "interval", ownership._BEAT_SECONDS))
    for found in rows:
        print(*found.values(), sep="\t")
    table.write(options.out, rows, COLUMNS)


if __name__ == "__main__":
    main()
