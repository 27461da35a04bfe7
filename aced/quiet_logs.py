"""Which lines of the log a user sees: all of ours, and what is serious of others."""

import logging as stdlib_logging
import os
import sys

from absl import logging


def quiet_libraries() -> None:
    """Leaves out the details that libraries log, among which a run's own lines would drown."""
    logging.get_absl_handler().addFilter(_shown)
    sys.unraisablehook = _show_unraisable


def _shown(record: stdlib_logging.LogRecord) -> bool:
    """Whether a line is ours or serious. Those of libraries lose their stack traces.

    Orbax logs one for each write that fails on a full disk, which is no mistake in the code.
    """
    if record.pathname.startswith(os.path.dirname(os.path.abspath(__file__))):
        return True
    record.exc_info = record.exc_text = None
    return record.levelno > stdlib_logging.INFO


def _show_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Prints an exception that was raised where nothing can catch it, but for one of TensorStore's.

    It ends the writes of a save after Orbax has given the save up, as on a full disk, and then
    finds Orbax's event loop closed. The failure of the save itself is raised.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
