"""Writes what is shown of a run as TensorBoard event files."""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging

from aced.metrics.shown import Line, Outcome, RunCard, numbers, pictures


@contextlib.contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Makes `import package` fail within the block, unless it is already imported."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None
    try:
        yield
    finally:
        del sys.modules[package]


# tensorboardX does not need torch, but imports it if installed, which takes seconds.
with _hidden("torch"):
    from tensorboardX import record_writer, summary
    from tensorboardX.proto import event_pb2

_LONGEST = 200  # characters of a setting in the table of hyper-parameters


def open_events(card: RunCard) -> "Events | None":
    """The event files of a run; None, with a warning, if a package for its folder is missing."""
    if str(card.folder).startswith("gs://") and not record_writer.GCS_ENABLED:
        logging.warning(
            "No TensorBoard files: tensorboardX needs the package google-cloud-storage to write "
            "to %s. All numbers are in metrics.jsonl.",
            card.folder,
        )
        return None
    return Events(card)


class Events:
    """TensorBoard's event files, written synchronously.

    Scalars, pictures, the hyper-parameters (HParams), and at the end a table of the last values
    (Text). HParams shows the scalars of the same folder as metrics.

    `SummaryWriter` is not used: its thread dies on a full disk, and then its full queue blocks the
    run.
    """

    def __init__(self, card: RunCard):
        self._folder = str(card.folder / "tensorboard")
        self._first_step = card.first_step
        self._settings = {name: _setting(value) for name, value in card.settings.items()}
        self._last: dict[str, int | float] = {}  # the last value of every metric
        for line in card.earlier:
            self._last |= numbers(line)
        self._file: record_writer.RecordWriter | None = None

    def _open(self) -> record_writer.RecordWriter:
        record_writer.directory_check(self._folder)
        # TensorBoard sorts files by name; the nanoseconds make names of restarts unique.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}"
        file = record_writer.RecordWriter(os.path.join(self._folder, name))
        version = event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2")
        # TensorBoard then hides the values of earlier files from this step on.
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        events = [version, event_pb2.Event(step=self._first_step, session_log=restart)]
        if self._settings:
            # Without an experiment, TensorBoard makes its columns of all runs, and not of one.
            _, hyper_parameters, _ = summary.hparams(self._settings, {})
            events.append(_event(self._first_step, hyper_parameters.value))
        for event in events:
            file.write(event.SerializeToString())
        return file

    def write(self, lines: Sequence[Line]) -> None:
        """Writes and flushes `lines`.

        Raises:
            OSError: they could not be written.
        """
        self._write([_event(line["step"], _values(line)) for line in lines])
        self._first_step = max(self._first_step, *(line["step"] + 1 for line in lines))
        for line in lines:
            self._last |= numbers(line)

    def _write(self, events: Sequence[event_pb2.Event]) -> None:
        file = self._file or self._open()
        self._file = None  # after a failed write the rest of the file would be unreadable
        try:
            for event in events:
                file.write(event.SerializeToString())
            file.flush()
        except OSError:
            # If left open, Python would warn about unwritten data on deletion.
            with contextlib.suppress(OSError):
                file.close()
            raise
        self._file = file

    def close(self, outcome: Outcome) -> None:
        """Writes the table of a finished run, and closes the file.

        Raises:
            OSError: the table could not be written.
        """
        if self._file is None:
            return
        if outcome == "finished":
            last = [summary.text("results", _table(self._last))]
            if self._settings:
                _, _, end = summary.hparams({}, {})
                last.append(end)
            step = max(self._first_step - 1, 0)
            self._write([_event(step, values.value) for values in last])
        self._file.close()
        self._file = None


def _event(step: int, values: Sequence[summary.Summary.Value]) -> event_pb2.Event:
    return event_pb2.Event(
        step=step, wall_time=time.time(), summary=summary.Summary(value=list(values))
    )


def _values(line: Line) -> list[summary.Summary.Value]:
    """A line as TensorBoard's scalars and images."""
    values = [
        value
        for name, number in numbers(line).items()
        for value in summary.scalar(name, number).value
    ]
    for name, picture in pictures(line).items():
        image = summary.Summary.Image(
            height=picture.height,
            width=picture.width,
            colorspace=3,
            encoded_image_string=picture.jpeg,
        )
        values.append(summary.Summary.Value(tag=name, image=image))
    return values


def _setting(value: Any) -> Any:
    """A setting as HParams has them: a number, a boolean or a text."""
    return value if isinstance(value, bool | int | float) else str(value)[:_LONGEST]


def _table(values: dict[str, int | float]) -> str:
    """The last values as a table in Markdown."""
    rows = [f"| {name} | {value:,.6g} |" for name, value in values.items()]
    return "\n".join(["| metric | last value |", "| --- | ---: |", *rows])
