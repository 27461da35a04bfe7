import logging
import pathlib
import sys

from aced import command


def record(path, level):
    try:
        raise OSError(28, "No space left on device")
    except OSError as error:
        return logging.LogRecord("absl", level, path, 1, "a: %s", (error,), sys.exc_info())


def test_errors_of_libraries_are_shown_without_their_stack_traces():
    theirs = record("/site-packages/orbax/checkpoint/futures.py", logging.ERROR)
    assert command._shown(theirs)
    assert logging.Formatter().format(theirs) == "a: [Errno 28] No space left on device"
    assert not command._shown(record("/site-packages/orbax/checkpoint/futures.py", logging.INFO))


def test_our_lines_are_shown_as_they_are():
    ours = record(str(pathlib.Path(command.__file__).parent / "train.py"), logging.INFO)
    assert command._shown(ours)
    assert "Traceback" in logging.Formatter().format(ours)


class Failing:
    def __init__(self, message):
        self.message = message

    def __del__(self):
        raise RuntimeError(self.message)


def test_closed_event_loops_are_not_shown(capsys, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", command._show_unraisable)
    Failing("Event loop is closed")
    assert capsys.readouterr().err == ""
    Failing("another")
    assert capsys.readouterr().err.endswith("RuntimeError: another\n")
