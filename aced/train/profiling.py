"""A trace of some steps, to be looked at with XProf: what host and devices did, and when."""

import dataclasses

import jax
from absl import logging
from etils import epath

from aced.bounds import NonNegativeInt, PositiveInt
from aced.config import Checked

FOLDER = "profile"  # in the workdir


@dataclasses.dataclass(frozen=True)
class ProfileConfig(Checked):
    """Which steps are traced. Steps are counted from where the process starts or goes on."""

    steps: NonNegativeInt = 0  # steps that are traced, one after the other; 0: none
    skip: PositiveInt = 10  # steps before them; the first one compiles, which would fill the trace


class Profiler:
    """Traces the steps that a `ProfileConfig` asks for; leaving the block ends an open trace.

    Process 0 traces; the others run the same program.
    """

    def __init__(self, config: ProfileConfig, folder: epath.Path, start: int, total_steps: int):
        """Nothing is traced yet.

        Args:
            config: which steps.
            folder: the workdir, local or gs://.
            start: steps that are done.
            total_steps: length of the run.
        """
        self._folder = folder / FOLDER
        self._first = start + config.skip + 1
        self._last = min(start + config.skip + config.steps, total_steps)
        self._wanted = config.steps
        self._is_open = False

    def is_due(self, step: int) -> bool:
        """Whether the trace begins or ends after `step`, which has to be finished before."""
        return self._first <= self._last and step in (self._first - 1, self._last)

    def switch(self) -> None:
        """Begins or ends the trace, whichever is due."""
        if jax.process_index() != 0:
            return
        if self._is_open:
            self._close()
            return
        try:
            jax.profiler.start_trace(str(self._folder))
            self._is_open = True
        except Exception as error:  # of the profiler or the disk; the run is worth more
            logging.error("No step is traced in %s: %s", self._folder, error)

    def _close(self) -> None:
        self._is_open = False
        try:
            jax.profiler.stop_trace()
        except Exception as error:
            logging.error("The trace in %s could not be written: %s", self._folder, error)
            return
        logging.info(
            "Steps from %d on are traced in %s. To look at them: pip install xprof, then "
            "xprof --logdir=%s",
            self._first,
            self._folder,
            self._folder,
        )

    def __enter__(self) -> "Profiler":
        if self._wanted and self._first > self._last:
            logging.warning(
                "No step is traced: step %d would be the first, and the run ends with step %d. "
                "Lower config.profile.skip.",
                self._first,
                self._last,
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_open:  # the run stops within the trace
            self._close()
