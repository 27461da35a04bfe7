"""Beam's runners and their options."""

import argparse
import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from typing import NoReturn

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.runner import PipelineRunner

from aced import errors, nearest
from aced.config import ConfigError
from aced.prepare import progress
from aced.prepare.config import DASK, EMBEDDED, PrepareConfig

# Their job servers have options that Beam's own parsers do not accept.
_WITH_JOB_SERVERS = ("FlinkRunner", "SparkRunner", "PortableRunner")


def pipeline_on(runner: str, options: Sequence[str], out: str) -> beam.Pipeline:
    """Returns an empty pipeline.

    Args:
        runner: Beam's name of a runner.
        options: Beam's flags.
        out: the data set to make.

    Raises:
        ConfigError: an option is unknown to both Beam and the command, has a wrong value or belongs
            to another runner, or a package is missing.
    """
    chosen = _chosen(runner, out)
    of_dask = [option for option in options if option.startswith("--dask_")]
    if of_dask and runner != DASK:
        raise ConfigError(f"{of_dask[0]} needs --runner={DASK}; add it, or leave the flag out.")
    if runner not in _WITH_JOB_SERVERS and (unknown := unknown_options(options)):
        names = [field.name for field in dataclasses.fields(PrepareConfig)]
        found = nearest.names(unknown[0].lstrip("-").partition("=")[0], names)
        raise ConfigError(
            f"{unknown[0]} is no flag of this command (see --help) and no option of Beam"
            f"{nearest.did_you_mean([f'--{name}' for name in found])}"
        )
    settings = PipelineOptions([*options, f"--runner={runner}"])
    return beam.Pipeline(runner=chosen, options=settings)


def _chosen(runner: str, out: str) -> PipelineRunner | str:
    """The runner, or its name where it is Beam's."""
    if runner == EMBEDDED:  # Beam's would fetch and start a server (Prism); this is its fallback
        return fn_runner.FnApiRunner()
    if runner != DASK:
        return runner
    try:
        from aced.prepare.dask_runner import DaskRunner  # its package is optional
    except ImportError as error:
        raise ConfigError(f"--runner={DASK} needs `pip install '.[dask]'`: {error}.") from error
    return DaskRunner(out)


class _Parser(argparse.ArgumentParser):
    """Raises errors, where argparse would print all options of Beam and end the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; correct this flag of Beam.")


def unknown_options(options: Sequence[str]) -> list[str]:
    """The options that Beam's parsers do not accept; Beam would only log them."""
    parser = _Parser(add_help=False, allow_abbrev=False)
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

    Where this process shows the progress, lines about the setup of Beam and Dask are dropped, too.
    """
    steps = logging.getLogger("apache_beam.runners.common")
    libraries = [logging.getLogger(name) for name in ("apache_beam", "distributed")]
    levels = [logger.level for logger in libraries]

    def passes(record: logging.LogRecord) -> bool:
        return not record.exc_info or errors.message(record.exc_info[1], "") is None

    steps.addFilter(passes)
    for logger in libraries if runner in (EMBEDDED, DASK) else ():
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        steps.removeFilter(passes)
        for logger, level in zip(libraries, levels, strict=True):
            logger.setLevel(level)
