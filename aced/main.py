"""Trains and evaluates any method: `python -m aced.main --config=configs/smoke.py`."""

from absl import flags, logging

from aced import command_line, recipes, run_flags
from aced.files import ownership


def main(argv: list[str]) -> None:
    """Flags -> config -> loop.run."""
    import jax  # here, so that help and errors in flags are fast

    from aced.report.command import write_pictures
    from aced.train import loop, summary
    from aced.train.config import parse

    del argv
    config, folder = flags.FLAGS.config, run_flags.workdir(starts=True)
    with run_flags.running(f"--workdir={folder}"):
        logging.info("workdir: %s", folder)
        loop.run(config, folder, force=flags.FLAGS.force)
        if jax.process_index() == 0:
            print(summary.table(folder))
            if parse(config).method.selects:
                print(f"What was chosen, in pictures: {write_pictures(folder)}")
            print(f"The run is in {folder}. Curves: python -m aced.report {folder}")


if __name__ == "__main__":
    run_flags.define()
    flags.DEFINE_boolean("force", False, ownership.FORCE)
    command_line.run(main, run_flags.parse, notes=recipes.summaries)
