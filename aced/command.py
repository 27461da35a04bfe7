"""How commands end when something is wrong, or Ctrl-C is pressed."""

import contextlib
import sys
from collections.abc import Iterator

from absl import logging

from aced import errors


@contextlib.contextmanager
def running(place: str) -> Iterator[None]:
    """Ends the command with one message and code 1 after an error that a user can set right.

    And with `preemption.INTERRUPTED` after Ctrl-C. Other errors show where in the code they
    happened; with --verbosity=1 all do.

    Args:
        place: what the command writes to or reads, for errors that name no file.
    """
    try:
        yield
    except KeyboardInterrupt:
        from aced.parallel.preemption import INTERRUPTED  # with JAX, which takes seconds

        logging.warning("Interrupted; the same command goes on from what is saved, if anything is.")
        sys.exit(INTERRUPTED)
    except Exception as error:
        if (message := errors.message(error, place)) is None:
            raise
        logging.debug("Where it happened:", exc_info=True)
        sys.exit(f"\nerror: {message}")


@contextlib.contextmanager
def running_together(place: str, wanted: bool | None) -> Iterator[None]:
    """`running`, of a command that may be one of several processes.

    Args:
        place: as for `running`.
        wanted: the flag --distributed; see `distributed.begin`.
    """
    from aced.parallel import distributed
    from aced.quiet_logs import quiet_libraries

    quiet_libraries()
    with distributed.ending_together(), running(place):
        distributed.begin(wanted)
        yield
