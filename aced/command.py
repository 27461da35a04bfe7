"""Commands: error messages, exit codes, and filtered logs."""

import contextlib
import logging as stdlib_logging
import os
import sys
from collections.abc import Iterator

from absl import logging

from aced import errors, terminal


@contextlib.contextmanager
def running(place: str) -> Iterator[None]:
    """Ends the command with a message and code 1 after an error that a user can correct.

    Ctrl-C gives the code `preemption.INTERRUPTED`. Other errors have a stack trace; with
    --verbosity=1 all do.

    Args:
        place: the command's input or output, for errors that name no file.
    """
    try:
        yield
    except KeyboardInterrupt:
        from aced.parallel.preemption import INTERRUPTED  # imports JAX, which takes seconds

        logging.warning(
            "Interrupted; the same command resumes from what was saved, if anything was."
        )
        sys.exit(INTERRUPTED)
    except Exception as error:
        if (message := errors.message(error, place)) is None:
            raise
        logging.debug("Where it happened:", exc_info=True)
        sys.exit(f"\nerror: {message}")


@contextlib.contextmanager
def running_together(place: str, wanted: bool | None) -> Iterator[None]:
    """`running` for a command that may be one of several processes.

    Args:
        place: as for `running`.
        wanted: the flag --distributed; see `distributed.begin`.
    """
    from aced.parallel import compiled, distributed

    quiet_libraries()
    with distributed.ending_together(), running(place):
        distributed.begin(wanted)
        compiled.keep_programs()
        yield


def quiet_libraries() -> None:
    """Hides the info lines of libraries, which would drown those of a run, and formats the rest."""
    handler = logging.get_absl_handler()
    handler.addFilter(_shown)
    handler.setFormatter(terminal.Formatter(handler.python_handler))
    sys.unraisablehook = _show_unraisable


def _shown(record: stdlib_logging.LogRecord) -> bool:
    """Whether a line is ours, or a warning or error of a library.

    Lines of libraries lose their stack traces: Orbax logs one for each failed write to a full disk.
    """
    if record.pathname.startswith(os.path.dirname(os.path.abspath(__file__))):
        return True
    record.exc_info = record.exc_text = None
    return record.levelno > stdlib_logging.INFO


def _show_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Prints an exception that nothing can catch, except one of TensorStore's.

    When a save fails, as on a full disk, Orbax closes its event loop, and writes of TensorStore
    that end later raise this exception. The failure of the save itself is raised.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
