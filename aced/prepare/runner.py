"""Beam's runners and their options."""

import argparse
import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import fn_runner

from aced import errors, nearest
from aced.config import ConfigError
from aced.prepare import progress
from aced.prepare.config import EMBEDDED, PrepareConfig

# Their job servers have options that Beam's own parsers do not accept.
_WITH_JOB_SERVERS = ("FlinkRunner", "SparkRunner", "PortableRunner")


def pipeline_on(runner: str, options: Sequence[str]) -> beam.Pipeline:
    """Returns an empty pipeline.

    Args:
        runner: Beam's name of a runner.
        options: Beam's flags.

    Raises:
        ConfigError: an option is unknown to both Beam and the command.
    """
    if runner not in _WITH_JOB_SERVERS and (unknown := _unknown(options)):
        names = [field.name for field in dataclasses.fields(PrepareConfig)]
        found = nearest.names(unknown[0].lstrip("-").partition("=")[0], names)
        raise ConfigError(
            f"{unknown[0]} is no flag of this command (see --help) and no option of Beam"
            f"{nearest.did_you_mean([f'--{name}' for name in found])}"
        )
    settings = PipelineOptions([*options, f"--runner={runner}"])
    # Beam's DirectRunner would fetch and start a server (Prism); this runner is its fallback.
    chosen = fn_runner.FnApiRunner() if runner == EMBEDDED else runner
    return beam.Pipeline(runner=chosen, options=settings)


def _unknown(options: Sequence[str]) -> list[str]:
    """The options that Beam's parsers do not accept; Beam would only log them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    waiting = [PipelineOptions]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if "_add_argparse_args" in vars(kind):
            with contextlib.suppress(argparse.ArgumentError):  # a class may be listed twice
                kind._add_argparse_args(parser)
    return parser.parse_known_args(list(options))[1]


def run(pipeline: beam.Pipeline, runner: str) -> None:
    """Runs `pipeline` to its end.

    Raises:
        RuntimeError: the runner ended in another state than done. Errors of workers are raised
            unchanged or wrapped in errors of the runner.
    """
    with contextlib.ExitStack() as around:
        if runner == EMBEDDED:
            around.enter_context(progress.shown())
        around.enter_context(_quiet(runner))
        result = pipeline.run()
        state = result.wait_until_finish()
    if state not in (None, beam.runners.runner.PipelineState.DONE):
        raise RuntimeError(f"{runner} ended in state {state}; see its log.")


@contextlib.contextmanager
def _quiet(runner: str) -> Iterator[None]:
    """Keeps Beam from logging the traces of errors that users can correct; they are raised anyway.

    The embedded runner's log of its setup is dropped, too.
    """
    all_of_beam, steps = (logging.getLogger(f"apache_beam{x}") for x in ("", ".runners.common"))
    level = all_of_beam.level

    def passes(record: logging.LogRecord) -> bool:
        return not record.exc_info or errors.message(record.exc_info[1], "") is None

    steps.addFilter(passes)
    if runner == EMBEDDED:
        all_of_beam.setLevel(logging.WARNING)
    try:
        yield
    finally:
        steps.removeFilter(passes)
        all_of_beam.setLevel(level)
