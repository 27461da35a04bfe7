"""Kills, full disks and second runs: then the same command again, to the same result."""

import pathlib
import random
import shutil
import subprocess
import threading
import time

from benchmarks.drills import processes
from benchmarks.drills.bench import JOBS, OUT, Bench, Job
from benchmarks.drills.verdicts import HELD, UNCLEAR, WRONG, Case, Verdict, error_of, verdict

_LONG = (  # those that keep what they have done for the next start
    "main/scenes",
    "main/mixture",
    "main/cached",
    "cache/prepared",
    "prepare/table",
    "prepare/tars",
    "prepare/parquet",
    "select_text",
)
_WRITING = (*_LONG, "cache/tars", "convert/run", "convert/model", "report")
_DISK = 64 << 20


def kills(count: int) -> list[Case]:
    """SIGKILL at random times, up to three times in a row."""
    return [Case("kill", _LONG[i % len(_LONG)], f"{1 + i % 3} times", i) for i in range(count)]


def full_disks(count: int) -> list[Case]:
    """A small disk, and one that another process fills at a random time."""
    whats = ("small", "filled")
    return [
        Case("full disk", _WRITING[i % len(_WRITING)], whats[i // len(_WRITING) % 2], i)
        for i in range(count)
    ]


def second_runs(count: int) -> list[Case]:
    """A second process in the same output, while the first works there or when it is done."""
    whats = ("at once", "in between", "afterwards")
    return [
        Case("second run", _LONG[i % len(_LONG)], whats[i // len(_LONG) % 3], i)
        for i in range(count)
    ]


def kill(case: Case, bench: Bench, folder: pathlib.Path) -> Verdict:
    """Held: the run that goes on ends as one that nothing disturbed."""
    job, rng = JOBS[case.command], random.Random(f"{case}")
    line = job.line(bench.inputs, folder / OUT)
    for number in range(int(case.what[0])):
        started = processes.start(line, folder / f"killed{number}.log")
        time.sleep(bench.seconds[job.name] * rng.uniform(0.05, 1.1))
        started.kill()
        done = started.wait()
        if done.code not in (0, -9):
            return error_of(done, ())
    return _again(job, line, bench, folder)


def full_disk(case: Case, bench: Bench, folder: pathlib.Path) -> Verdict:
    """Held: the result is right, or there was an error, and it is right once there is room."""
    job, rng, disk = JOBS[case.command], random.Random(f"{case}"), folder / "disk"
    disk.mkdir()
    pages = 1 + sum(-(-p.stat().st_size // 4096) for p in bench.made(job.name).rglob("*"))
    size = _DISK if case.what == "filled" else 4096 * rng.randrange(1, int(1.5 * pages) + 4)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
    try:
        line = job.line(bench.inputs, disk / OUT)
        if case.what == "filled":
            threading.Timer(bench.seconds[job.name] * rng.uniform(0, 0.9), _fill, [disk]).start()
        first = processes.call(line, folder / "full.log")
        if first.code == 0 and not first.is_crash:
            return _compared(first, job, bench, disk / OUT)
        names = (str(disk), "No space left on device")
        ended = error_of(first, names)
        (disk / "other").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", f"remount,size={_DISK}", disk], check=True)
        then = _again(job, line, bench, folder, disk / OUT)
        return ended if then.outcome == HELD else Verdict(then.outcome, f"again: {then.detail}")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def second_run(case: Case, bench: Bench, folder: pathlib.Path) -> Verdict:
    """Held: the first one's result is right, and the second is refused or finds it done."""
    job, rng = JOBS[case.command], random.Random(f"{case}")
    line = job.line(bench.inputs, folder / OUT)
    first = processes.start(line, folder / "first.log")
    seconds = bench.seconds[job.name]
    if case.what == "afterwards":
        first_done = first.wait()
    else:
        time.sleep(0 if case.what == "at once" else seconds * rng.uniform(0, 0.9))
    second = processes.call(line, folder / "second.log")
    if case.what != "afterwards":
        first_done = first.wait()
    done = [first_done, second]
    wrong = [one for one in done if one.is_crash]
    # Either of two that start at once may be the one that works.
    refused = [one for one in done if one.code != 0 and not one.is_crash]
    if wrong or len(refused) > 1:
        return error_of((wrong or refused)[0], ())
    for one in refused:
        if not ("process" in one.message and str(folder) in one.message):
            return Verdict(UNCLEAR, one.message or one.text[-2000:])
    right = _compared(min(done, key=lambda one: one.code), job, bench, folder / OUT)
    return error_of(refused[0], [str(folder)]) if refused and right.outcome == HELD else right


def _fill(disk: pathlib.Path) -> None:
    """Writes until nothing more can be written."""
    with (disk / "other").open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def _again(
    job: Job, line: list[str], bench: Bench, folder: pathlib.Path, out: pathlib.Path | None = None
) -> Verdict:
    done = processes.call(line, folder / "again.log")
    return _compared(done, job, bench, out or folder / OUT)


def _compared(done: processes.Done, job: Job, bench: Bench, out: pathlib.Path) -> Verdict:
    """The verdict on a command that is to end as one that nothing disturbed."""
    if done.code != 0 or done.is_crash:
        return error_of(done, ())
    try:
        found = bench.read(job, out, done)
    except (RuntimeError, OSError) as error:
        return Verdict(WRONG, f"the result cannot be read: {error}\n{done.text[-3000:]}")
    return verdict(done, found == bench.expected(job.name), (), "another result")


def has_disks() -> bool:
    """Whether file systems of a given size can be mounted here, which only root can do."""
    return (
        shutil.which("mount") is not None
        and not subprocess.run(
            ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/tmp"], capture_output=True
        ).returncode
    )
