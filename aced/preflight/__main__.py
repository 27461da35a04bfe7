"""Estimates memory and cost of a run before hardware is rented.

    python -m aced.preflight --config=configs/acid_b16.py --topology=v5e:16x16

compiles the run's step for a TPU slice that is not attached, without the data or the reference's
checkpoint. For GPUs (--topology=gpu:h200x8) nothing is compiled; a roofline gives a lower bound.
Exit code 1: the step does not fit into memory.
"""

import os

from aced.preflight import COMPILER_ENVIRONMENT

if __name__ == "__main__":
    os.environ.update(COMPILER_ENVIRONMENT)  # before jax is imported

import dataclasses
import json
import sys

import jax
from absl import flags

from aced import command, command_line, flag_settings, run_flags
from aced.bounds import NonEmpty, PositiveInt
from aced.cost import hardware
from aced.flag_settings import FlagSettings, setting
from aced.preflight import plan, table
from aced.preflight.command import report


@dataclasses.dataclass(frozen=True)
class PreflightConfig(FlagSettings):
    """What to plan for, and how the figures are printed."""

    topology: NonEmpty = setting(
        "",
        "What to plan for: a TPU slice by its shape in chips (v5e:16x16, v6e:16x16, v5p:4x4x4), or "
        "GPUs by their number (gpu:h200x8), the latter by roofline alone.",
    )
    num_slices: PositiveInt = setting(1, "TPU slices of that shape.")
    json: bool = setting(False, "Print the figures as JSON.")


def main(argv: list[str]) -> None:
    """Flags -> config -> report."""
    del argv
    folder = run_flags.workdir()
    with command.running(f"--workdir={folder}"):
        config = flag_settings.read(PreflightConfig)
        topology = hardware.topology(config.topology, config.num_slices)
        if not topology.chip.tpu:
            jax.config.update("jax_num_cpu_devices", topology.chips)  # for shardings of shapes
        run = plan.read(flags.FLAGS.config, folder)
        figures = report(run, topology, config.num_slices)
    print(json.dumps(figures, indent=2) if config.json else table.table(figures))
    sys.exit(0 if figures["fits"] else 1)


if __name__ == "__main__":
    run_flags.define()
    flag_settings.define(PreflightConfig)
    command_line.run(main, run_flags.parse)
