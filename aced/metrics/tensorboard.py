"""Writes metrics as TensorBoard event files."""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator

from aced.metrics.history import NOT_FINITE


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


def can_write_to(folder: str) -> bool:
    """Whether the packages needed to write to `folder` are installed."""
    return not folder.startswith("gs://") or record_writer.GCS_ENABLED


class Events:
    """TensorBoard's event files, written synchronously.

    `SummaryWriter` is not used: its thread dies on a full disk, and then its full queue blocks the
    run.
    """

    def __init__(self, folder: str, first_step: int):
        self._folder = folder
        self._first_step = first_step
        self._file: record_writer.RecordWriter | None = None

    def _open(self) -> record_writer.RecordWriter:
        record_writer.directory_check(self._folder)
        # TensorBoard sorts files by name; the nanoseconds make names of restarts unique.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}"
        file = record_writer.RecordWriter(os.path.join(self._folder, name))
        version = event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2")
        # TensorBoard then hides the values of earlier files from this step on.
        restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        for event in (version, event_pb2.Event(step=self._first_step, session_log=restart)):
            file.write(event.SerializeToString())
        return file

    def write(self, lines: list[dict]) -> None:
        """Writes and flushes lines of metrics."""
        file = self._file or self._open()
        self._file = None  # after a failed write the rest of the file would be unreadable
        try:
            for line in lines:
                file.write(_event(line).SerializeToString())
            file.flush()
        except OSError:
            # If left open, Python would warn about unwritten data on deletion.
            with contextlib.suppress(OSError):
                file.close()
            raise
        self._file = file
        self._first_step = lines[-1]["step"] + 1

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _event(line: dict) -> event_pb2.Event:
    """A line of metrics as TensorBoard scalars."""
    values = [
        value
        for name, number in line.items()
        if name != "step"
        for value in summary.scalar(name, NOT_FINITE.get(number, number)).value
    ]
    return event_pb2.Event(
        step=line["step"], wall_time=time.time(), summary=summary.Summary(value=values)
    )
