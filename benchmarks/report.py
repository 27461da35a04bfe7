"""What a report of many long runs costs: `python -m benchmarks.report --log_steps 50 10 1`.

Writes the files of runs that were not trained: metrics with a line every `--log_steps` steps, an
evaluation every 1,000 steps and picks of some steps; runs of five seeds each. Then the page is made
by `python -m aced.report`, in a process of its own. On CPU; the committed wall times are from a
machine that was busy with other work. With a line a step the files of 50 runs take 5 GB.

Columns: `metrics_mb`, the size of all metrics.jsonl; `read_seconds`, the wall time of reading them;
`seconds` and `cpu_seconds`, wall and CPU time of the whole process; `page_mb`.
"""

import argparse
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
from etils import epath

from aced.checkpoints import record
from aced.data import order as orders
from aced.data.sources import open_source
from aced.metrics import history, jsonl
from aced.train import summary
from aced.train.config import parse
from benchmarks import table
from configs import smoke

_EVALUATION_STEPS = 1000
_SEEDS = 5  # runs of the same settings


def write_run(folder: pathlib.Path, number: int, steps: int, log_steps: int) -> None:
    """Writes the files of a run; `number` sets its learning rate and its seed."""
    config = smoke.get_config(f"alone,seed={number}")
    config.before = {}
    config.before_caches = {}
    config.total_steps = steps
    config.optimizer.schedule.peak = 1e-3 / (1 + number // _SEEDS)
    settings = parse(config)
    source = open_source(settings.data)
    record.write(epath.Path(folder), settings, source.fingerprint)
    rng = np.random.default_rng(number)
    lines = []
    for step in range(log_steps, steps + 1, log_steps):
        progress = step / steps
        lines.append(_line(step, progress, rng.random(24).tolist()))
        if step % _EVALUATION_STEPS == 0:
            lines[-1] |= {"retrieval/mean_r1": progress, "classes/top1": progress / 2}
    (folder / history.FILE).write_bytes(jsonl.dumps(lines))
    size = settings.method.super_batch_size(settings.batch_size)
    order = orders.of(source, seed=settings.seed, shuffle=True, rows=size)
    picks = [
        {"step": step, "ids": [order[(step - 1) * size + i] for i in range(settings.batch_size)]}
        for step in range(steps // 10, steps + 1, steps // 10)
    ]
    (folder / history.PICKS_FILE).write_bytes(jsonl.dumps(picks))


def _line(step: int, progress: float, noise: list[float]) -> jsonl.Line:
    """A line with as many numbers as one of a run that selects and distils."""
    loss = 6 - 4 * progress + noise[0]
    line = {"step": step, "examples_trained": 64 * step, "examples_scored": 320 * step}
    line |= {"flops": 4e9 * step, "wall/seconds": 0.1 * step, "loss": loss}
    line |= {"loss/contrastive": loss / 2, "loss/distillation": loss / 2}
    names = ("noisy_share", "perplexity", "variety", "near_copies", "easy_overlap")
    line |= {f"selection/{name}": noise[i] for i, name in enumerate(names, 1)}
    return line | {f"number{i}": value for i, value in enumerate(noise[6:])}


def measure(folder: pathlib.Path) -> dict[str, float]:
    """Makes the page of the runs in `folder`."""
    runs = sorted(path for path in folder.iterdir() if path.is_dir())
    start = time.perf_counter()
    for run in runs:
        history.read_some(run, 2000, summary.SCORES)
    read = time.perf_counter() - start
    command = [sys.executable, "-m", "aced.report", *map(str, runs), f"--out={folder}/page.html"]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    megabytes = sum((run / history.FILE).stat().st_size for run in runs) / 1e6
    return {
        "metrics_mb": round(megabytes, 1),
        "read_seconds": round(read, 2),
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu, 2),
        "page_mb": round((folder / "page.html").stat().st_size / 1e6, 2),
    }


def main() -> None:
    """Flags -> a row of the table."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--log_steps", type=int, nargs="+", default=[50, 10])
    parser.add_argument("--out", type=pathlib.Path, default=table.RESULTS / "report.csv")
    arguments = parser.parse_args()
    rows = []
    for log_steps in arguments.log_steps:
        with tempfile.TemporaryDirectory() as name:
            for number in range(arguments.runs):
                folder = pathlib.Path(name, f"run_seed{number}")
                write_run(folder, number, arguments.steps, log_steps)
            settings = {"runs": arguments.runs, "steps": arguments.steps, "log_steps": log_steps}
            rows.append(settings | measure(pathlib.Path(name)))
        print(rows[-1])
    table.write(arguments.out, rows)


if __name__ == "__main__":
    main()
