"""acid_b16 on slices of three kinds of TPU, as their compiler sees it.

    python -m benchmarks.preflight

One JSON per case in benchmarks/results/preflight/ (what `aced.preflight --json` prints), and a
table of them, preflight.csv. A case that has its JSON is not compiled again; each takes two or
three minutes of one core. "moved" is the kind of the largest collective of pixels, "other" that of
the largest one that is neither of pixels, nor of parameters, nor of gradients; "MB" are of its
result on a device.
"""

import csv
import dataclasses
import functools
import json
import math
import pathlib
import subprocess
import sys

import jax

from aced.config import from_config
from aced.models.two_tower import TwoTowerConfig
from configs import acid_b16

FOLDER = pathlib.Path(__file__).parent / "results" / "preflight"
GLOBAL = ("--config.method.selection.strata=1",)  # the paper's draw, and an exchange
REFERENCE = "--config.method.reference.model"
G14 = (  # a reference of g/14's size, its parameters over 16 chips
    f"{REFERENCE}.image.size=g",
    f"{REFERENCE}.image.patch=14",
    f"{REFERENCE}.image.resolution=224",
    f"{REFERENCE}.text.size=L",
    "--config.mesh.fsdp=16",
)
CASES = {
    "v5e_strata": ("v5e:16x16",),
    "v5e_global": ("v5e:16x16", *GLOBAL),
    "v5e_g_fsdp16": ("v5e:16x16", *G14),
    "v6e_strata": ("v6e:16x16",),
    "v5p_strata": ("v5p:4x4x4",),
    "v6e_global": ("v6e:16x16", *GLOBAL),
    "v5p_global": ("v5p:4x4x4", *GLOBAL),
    "v5e_g_fsdp16_global": ("v5e:16x16", *G14, *GLOBAL),
}
COLUMNS = ("case", "topology", "strata", "HBM_GiB", "limit_GiB", "PFLOP_step", "compute_ms")
COLUMNS += ("memory_ms", "interconnect_ms", "examples_per_s_at_best", "moved", "moved_MB")
COLUMNS += ("other", "other_MB")


def report(name: str) -> dict | None:
    """The report of pre-flight for a case; None where it failed."""
    file = FOLDER / f"{name}.json"
    if not file.exists():
        topology, *settings = CASES[name]
        command = [sys.executable, "-m", "aced.preflight", "--config=configs/acid_b16.py"]
        command += [f"--topology={topology}", *settings, "--json"]
        print("+", *command, flush=True)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if not done.stdout:
            return None
        file.write_text(done.stdout)
    return json.loads(file.read_text())


def row(name: str, found: dict) -> list:
    """A line of the table."""
    gib = 2**30
    if not found["fits"]:
        return [name, found["topology"], found["strata"], f"{found['hbm']['used'] / gib:.2f}"]
    time = found["time"]
    listed = found["largest_collectives"]
    pixels = [c for c in listed if c["dtype"].startswith("u8")]
    others = [c for c in listed if not c["dtype"].startswith("u8") and not _is_parameters(c)]
    out = [name, found["topology"], found["strata"], f"{found['hbm']['used'] / gib:.2f}"]
    out += [f"{found['hbm']['limit'] / gib:.2f}", f"{found['flops']['compiled'] / 1e15:.2f}"]
    out += [f"{1e3 * time[key]:.1f}" for key in ("compute", "memory", "interconnect")]
    out.append(f"{found['examples_per_second']:.0f}")
    for group in (pixels, others):
        largest = max(group, key=lambda c: c["bytes"], default=None)
        out += [largest["kind"], f"{largest['bytes'] / 1e6:.2f}"] if largest else ["none", ""]
    return out


def _is_parameters(collective: dict) -> bool:
    """Whether its largest array has as many elements as a parameter, or as one layer of it."""
    return math.prod(collective["shape"]) in _parameter_sizes()


@functools.cache
def _parameter_sizes() -> set[int]:
    own = from_config(TwoTowerConfig, acid_b16.get_config().method.model)
    large = dataclasses.replace(
        own,
        image=dataclasses.replace(own.image, size="g", patch=14, resolution=224),
        text=dataclasses.replace(own.text, size="L"),
    )
    sizes = set()
    for model in (own, large):
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        for x in jax.tree.leaves(shapes):
            sizes |= {x.size, x.size // x.shape[0] if x.shape else 1}
    return sizes


def main():
    """Compiles what has no JSON yet, and writes the table."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    reports = {name: report(name) for name in CASES}
    with open(FOLDER.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
        lines = [row(name, found) for name, found in reports.items() if found]
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines])


if __name__ == "__main__":
    main()
