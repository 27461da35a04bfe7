"""A page that compares runs: `python -m aced.report runs/* --out=report.html`.

What each cost and got, which settings differ, curves at equal examples and at equal FLOPs, and
pictures of what was chosen and what was left. The page holds all it shows and loads nothing, so it
can be sent. The pictures are read again from the data of the runs; where these are out of reach,
the page says so. Curves need matplotlib (`pip install '.[plots]'`).
"""

from absl import app, flags
from etils import epath

from aced import command, flag_settings
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
    app.run(main)
