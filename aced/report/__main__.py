"""Writes a page that compares runs: `python -m aced.report runs/* --out=report.html`.

The page has costs and scores, settings that differ, curves over examples and over FLOPs, and images
of chosen and rejected examples. It is self-contained. The images are read from the data of the
runs; if these are unavailable, the page has the reason instead. Curves need matplotlib
(`pip install '.[plots]'`).
"""

import time

from absl import flags
from etils import epath

from aced import command, command_line, flag_settings
from aced.config import expand
from aced.report.command import ReportConfig, report


def main(argv: list[str]) -> None:
    """Flags -> page, once or while the runs go on."""
    with command.running(f"--out={flags.FLAGS.out}"):
        config = flag_settings.read(ReportConfig)
        size, is_finished = write(argv[1:], config)
        if config.watch and not is_finished:
            print(
                f"{config.out} is written every {config.watch} s until all runs are finished.",
                flush=True,
            )
        while config.watch and not is_finished:
            time.sleep(config.watch)
            size, is_finished = write(argv[1:], config)
        print(f"{config.out}: {size / 1e6:.1f} MB")


def write(folders: list[str], config: ReportConfig) -> tuple[int, bool]:
    """Writes the page, whole at any time. Returns its length, and whether all runs are finished."""
    text, is_finished = report(folders, config)
    out = epath.Path(expand(config.out))
    part = out.with_name(f"{out.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(out)
    return len(text), is_finished


if __name__ == "__main__":
    flag_settings.define(ReportConfig)
    command_line.run(main, takes="runs")
