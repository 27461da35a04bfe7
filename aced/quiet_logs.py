"""Which lines of the log a user sees: all of ours, and what is serious of others."""

import logging as stdlib_logging
import os

from absl import logging


def quiet_libraries() -> None:
    """Leaves out what libraries say of every detail: a run's own lines would drown in it."""
    logging.get_absl_handler().addFilter(_shown)


def _shown(record: stdlib_logging.LogRecord) -> bool:
    """Whether a line is ours or serious. Those of libraries lose their stack traces.

    Orbax logs one for each write that fails on a full disk, which is no mistake in the code.
    """
    if record.pathname.startswith(os.path.dirname(os.path.abspath(__file__))):
        return True
    record.exc_info = record.exc_text = None
    return record.levelno > stdlib_logging.INFO
