"""Pictures of what a run chooses, shown during training by the services of `metrics.to`.

They are read and drawn on a thread of their own, from the step alone: neither the input nor its
order nor a random state is touched, and no step waits for them.
"""

import threading
from collections.abc import Callable, Sequence

import jax
from absl import logging

from aced.data.records import Source
from aced.metrics.shown import Picture
from aced.optim import durations
from aced.train import chosen, sheet
from aced.train.config import TrainConfig

NAME = "picks"  # of the pictures, as that of a metric
_LAST_SECONDS = 10.0  # that the end of a run waits for the last picture


class Gallery:
    """Draws a contact sheet every `metrics.pictures_`, on process 0, if the method selects."""

    def __init__(
        self,
        settings: TrainConfig,
        source: Source,
        total_steps: int,
        show: Callable[[int, str, Picture], None],
    ):
        """Nothing is drawn yet.

        Args:
            settings: of the run.
            source: of the training data, read from two threads.
            total_steps: length of the run.
            show: takes the step, the name and the picture, on a thread.
        """
        self._settings, self._source, self._take = settings, source, show
        self._every = 0
        if settings.method.selects and jax.process_index() == 0:
            self._every = durations.steps(
                settings.metrics, "pictures", total_steps=total_steps, default=0
            )
        self._thread: threading.Thread | None = None

    def is_due(self, step: int) -> bool:
        """Whether a sheet is wanted of `step`, and the last one is drawn."""
        is_busy = self._thread is not None and self._thread.is_alive()
        return self._every > 0 and step % self._every == 0 and not is_busy

    def show(self, step: int, picks: Sequence[int]) -> None:
        """Begins to draw a sheet.

        Args:
            step: completed steps.
            picks: ids of the examples trained on in this step.
        """
        self._thread = threading.Thread(target=self._show, args=(step, picks), daemon=True)
        self._thread.start()

    def _show(self, step: int, picks: Sequence[int]) -> None:
        try:
            batch = chosen.of_step(self._source, self._settings, step, picks, sheet.EXAMPLES)
            self._take(step, NAME, sheet.draw(batch, self._settings.data.max_pixels))
        except Exception as error:  # of the source or a picture; the run is worth more
            logging.warning("No picture of what step %d chose: %s", step, error)

    def __enter__(self) -> "Gallery":
        return self

    def __exit__(self, *error: object) -> None:
        if self._thread is not None:
            self._thread.join(_LAST_SECONDS)
