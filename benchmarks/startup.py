"""What a start costs: of the command's help, and of a run of two steps, `configs/smoke.py:tiny`.

    python -m benchmarks.startup --label=after
    python -m benchmarks.startup --label=before --checkout=../aced_before

On CPU, in processes of their own, with nothing else running. The table keeps the rows of other
labels, so that two checkouts of this repository can be compared in it. The cases:

`help`        `python -m aced.main --help`
`wrong flag`  a flag's name is misspelt
`wrong value` a setting's name is misspelt, which takes the config and so all imports to find out
`run`         the reference and the learner of the config, in a new workdir and without programs
              that were compiled before
`resumed`     that run again, from its first step: the checkpoint of its second and last is removed
`cached`      as `run`, in another workdir, with the compiled programs that `run` has kept

Columns, medians of the repeats: `wall_s` and `cpu_s` of the whole process, all threads; `first_s`,
the wall time to the first line about a step, the evaluations of that step included.
"""

import argparse
import csv
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from benchmarks import table

CONFIG = "--config=configs/smoke.py:tiny"
COLUMNS = ("label", "case", "repeats", "first_s", "wall_s", "cpu_s")
_STEP = re.compile(r"(^|\s)\w+ \d+/\d+\s")

Times = dict[str, float]


def measure(
    checkout: pathlib.Path,
    arguments: Sequence[str],
    cache: pathlib.Path,
    fails: bool | None = False,
) -> Times:
    """Starts `aced.main` once.

    Args:
        checkout: of the repository, whose code runs.
        arguments: of the command.
        cache: folder of the user's caches.
        fails: whether it is meant to; None: either way.
    """
    command = [sys.executable, "-m", "aced.main", *arguments]
    start, first, lines = time.perf_counter(), {}, []
    with subprocess.Popen(
        command,
        cwd=checkout,
        env=_environment(checkout, cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stderr:
            lines.append(line)
            if not first and _STEP.search(line):
                first["first_s"] = time.perf_counter() - start
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if fails is not None and (process.returncode != 0) != fails:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(lines)}")
    return {**first, "wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime}


def _environment(checkout: pathlib.Path, cache: pathlib.Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    return kept | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(checkout),
        "XDG_CACHE_HOME": str(cache),
    }


def once(checkout: pathlib.Path, folder: pathlib.Path) -> dict[str, Times]:
    """Every case once, by name, in an empty folder."""
    cache, run, other = folder / "cache", folder / "run", folder / "other"
    training = [CONFIG, "--config.checkpoint.every_steps=1"]
    times = {
        "help": measure(checkout, ["--help"], cache, fails=None),  # older checkouts end with 1
        "wrong flag": measure(checkout, ["--confg=configs/smoke.py:tiny"], cache, fails=True),
        "wrong value": measure(checkout, [CONFIG, "--config.batch_siez=8"], cache, fails=True),
        "run": measure(checkout, [*training, f"--workdir={run}"], cache),
    }
    shutil.rmtree(run / "checkpoints" / "2")
    return times | {
        "resumed": measure(checkout, [*training, f"--workdir={run}"], cache),
        "cached": measure(checkout, [*training, f"--workdir={other}"], cache),
    }


def rows_of_others(path: pathlib.Path, label: str) -> list[dict[str, str]]:
    """The rows that the table has of other labels."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["label"] != label]


def main() -> None:
    """Measures every case in turn, as often as asked for, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default="benchmarks/results/startup.csv")
    parser.add_argument("--label", default="now", help="What the rows are called.")
    parser.add_argument("--checkout", type=pathlib.Path, default=".", help="Whose code to measure.")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    checkout, found = options.checkout.resolve(), []
    with tempfile.TemporaryDirectory() as name:
        for i in range(options.repeats):
            found.append(once(checkout, pathlib.Path(name) / str(i)))
            print(*(f"{case}: {times}" for case, times in found[-1].items()), sep="\n", flush=True)
    rows = rows_of_others(options.out, options.label)
    for case in found[0]:
        row = {"label": options.label, "case": case, "repeats": options.repeats}
        for key in found[0][case]:
            row[key] = f"{statistics.median(times[case][key] for times in found):.2f}"
        rows.append(row)
    table.write(options.out, rows, COLUMNS)


if __name__ == "__main__":
    main()
