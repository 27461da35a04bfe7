"""Which lines of the log a user sees: all of ours, and what is serious of others."""

import logging as stdlib_logging
import os

from absl import logging


def quiet_libraries() -> None:
    """Leaves out what libraries say of every detail: a run's own lines would drown in it."""
    logging.get_absl_handler().addFilter(_is_ours_or_serious)


def _is_ours_or_serious(record: stdlib_logging.LogRecord) -> bool:
    ours = os.path.dirname(os.path.abspath(__file__))
    return record.levelno > stdlib_logging.INFO or record.pathname.startswith(ours)
