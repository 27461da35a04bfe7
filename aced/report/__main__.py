"""Writes a page that compares runs: `python -m aced.report runs/* --out=report.html`.

The page has costs and scores, settings that differ, curves over examples and over FLOPs, and images
of chosen and rejected examples. It is self-contained. The images are read from the data of the
runs; if these are unavailable, the page has the reason instead. Curves need matplotlib
(`pip install '.[plots]'`).
"""

from absl import flags
from etils import epath

from aced import command, command_line, flag_settings
from aced.config import expand
from aced.report.command import ReportConfig, report


def main(argv: list[str]) -> None:
    """Flags -> page."""
    with command.running(f"--out={flags.FLAGS.out}"):
        config = flag_settings.read(ReportConfig)
        text = report(argv[1:], config)
        epath.Path(expand(config.out)).write_text(text, encoding="utf-8")
    print(f"{config.out}: {len(text) / 1e6:.1f} MB")


if __name__ == "__main__":
    flag_settings.define(ReportConfig)
    command_line.run(main, takes="runs")
