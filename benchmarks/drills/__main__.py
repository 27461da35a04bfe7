"""Tries kills, full disks, damage, hostile files and second runs, and prints what came of them.

    python -m benchmarks.drills --work=data/drills --out=benchmarks/results/drills.csv

Some 1,000 cases, about an hour on two cores. Held is a result equal to that of an undisturbed run,
value by value, or one from which something is left out and said to be. A killed command goes on
with the cases that are missing from WORK/cases.csv, or went wrong. What these printed is in
WORK/wrong. Full disks need root, for file systems of a given size; without it they are left out.
`--kinds`, `--commands`, `--cases` (of each kind) and `--seed` try others.
"""

import argparse  # the commands define absl's flags in forks of this process
import collections
import dataclasses
import multiprocessing
import os
import pathlib
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiles quickly rather than well.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_prefer_vector_width=128"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

from benchmarks import table  # after the settings, which JAX reads
from benchmarks.drills import damage, hostile, interrupted, processes
from benchmarks.drills.bench import Bench
from benchmarks.drills.verdicts import CLEAR, HELD, OUTCOMES, TRACE, Case, Verdict

NUMBERS = (*OUTCOMES, "seconds")
COLUMNS = ("kind", "command", "tried", *OUTCOMES)
# By kind: its cases, how many there are by default, and how one is tried.
KINDS: dict[str, tuple[Callable[[int], list[Case]], int, Callable[..., Verdict]]] = {
    "kill": (interrupted.kills, 64, interrupted.kill),
    "full disk": (interrupted.full_disks, 72, interrupted.full_disk),
    "second run": (interrupted.second_runs, 32, interrupted.second_run),
    "damaged checkpoint": (damage.of_checkpoints, 300, damage.damage),
    "damaged file": (damage.of_files, 300, damage.damage),
    "hostile file": (hostile.cases, 320, hostile.hostile),
}


def main() -> None:
    """Tries what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True, help="folder for inputs, cases and failures")
    parser.add_argument("--out", required=True, help="CSV to write")
    parser.add_argument("--kinds", default=",".join(KINDS), help="separated by commas")
    parser.add_argument("--commands", default="", help="separated by commas; empty: all")
    parser.add_argument("--cases", type=int, default=0, help="of each kind; 0: as many as it has")
    parser.add_argument("--seed", type=int, default=0, help="another one tries other cases")
    parser.add_argument("--workers", type=int, default=2, help="cases at a time")
    options = parser.parse_args()
    work = pathlib.Path(options.work).absolute()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(work / "jax"))
    kinds = options.kinds.split(",")
    if "full disk" in kinds and not interrupted.has_disks():
        print("No file system can be mounted here: full disks are left out.")
        kinds.remove("full disk")
    processes.preload()
    bench = Bench(work / "bench")
    cases = [
        case
        for kind in kinds
        for case in _cases(kind, options.commands.split(","), options.cases, options.seed)
    ]
    bench.make(case.command for case in cases)
    runs = table.Runs(work / "cases.csv", Case, NUMBERS)
    last = dict(table.read_runs(work / "cases.csv", Case)) if (work / "cases.csv").exists() else {}
    right = {case for case, row in last.items() if row[HELD] == "1" or row[CLEAR] == "1"}
    missing = [case for case in cases if case not in right]
    with multiprocessing.get_context("fork").Pool(options.workers) as pool:
        arguments = [(case, bench, work) for case in missing]
        for number, (case, verdict, seconds) in enumerate(pool.imap_unordered(_try, arguments), 1):
            row = {name: int(name == verdict.outcome) for name in OUTCOMES}
            runs.add(case, [row | {"seconds": round(seconds, 1)}])
            print(f"{number}/{len(missing)} {case}: {verdict.outcome}, {seconds:.0f} s", flush=True)
    rows = summary(table.read_runs(work / "cases.csv", Case), set(cases))
    table.write(options.out, rows, COLUMNS)
    print(text(rows))


def _cases(kind: str, commands: Sequence[str], count: int, seed: int) -> list[Case]:
    make, default, _ = KINDS[kind]
    cases = [
        dataclasses.replace(case, seed=case.seed + 1_000_000 * seed)
        for case in make(max(count, default))
        if commands == [""] or case.command.partition("/")[0] in commands
    ]
    return cases[: count or default]


def _try(arguments: tuple[Case, Bench, pathlib.Path]) -> tuple[Case, Verdict, float]:
    """A case, in a folder of its own, which is removed; what went wrong is kept in words."""
    case, bench, work = arguments
    since = time.monotonic()
    # Not a TemporaryDirectory, which forks would remove at their end.
    folder = pathlib.Path(tempfile.mkdtemp(dir=work, prefix="case-"))
    try:
        verdict = KINDS[case.kind][2](case, bench, folder)
    except Exception:  # of the drill itself
        verdict = Verdict(TRACE, f"the drill: {traceback.format_exc()}")
    shutil.rmtree(folder, ignore_errors=True)
    said = work / ("clear" if verdict.outcome == CLEAR else "wrong")
    if verdict.outcome != HELD:
        said.mkdir(exist_ok=True)
        words = f"{case.kind}-{case.command}-{case.what}-{case.seed}".replace("/", "_")
        file = said / f"{words.replace(' ', '_')[:120]}.txt"
        file.write_text(f"{case}\n{verdict.outcome}\n{verdict.detail}\n", errors="replace")
    return case, verdict, time.monotonic() - since


def summary(
    tried: Sequence[tuple[Case, Mapping[str, str]]], wanted: set[Case]
) -> list[dict[str, str | int]]:
    """Counts by kind and command."""
    counts: dict[tuple[str, str], collections.Counter] = {}
    for case, row in tried:
        if case in wanted:
            key = case.kind, case.command.partition("/")[0]
            counter = counts.setdefault(key, collections.Counter())
            counter.update({name: int(row[name]) for name in OUTCOMES})
    return [
        {"kind": kind, "command": command, "tried": counter.total(), **counter}
        for (kind, command), counter in sorted(
            counts.items(), key=lambda item: (list(KINDS).index(item[0][0]), item[0][1])
        )
    ]


def text(rows: Sequence[Mapping[str, str | int]]) -> str:
    """The table in words, with a last line of sums."""
    sums = {name: sum(int(row[name]) for row in rows) for name in COLUMNS[2:]}
    every = [dict(zip(COLUMNS, COLUMNS, strict=True)), *rows, {"kind": "all", "command": ""} | sums]
    widths = {name: max(len(str(row[name])) for row in every) for name in COLUMNS}
    return "\n".join("  ".join(f"{row[n]!s:{widths[n]}}" for n in COLUMNS) for row in every)


if __name__ == "__main__":
    main()
