"""Log lines for people."""

import io
import logging
import sys
import time

import pytest

from aced import terminal


class Terminal(io.StringIO):
    def isatty(self):
        return True


def formatted(level, stream, error=None):
    record = logging.LogRecord("absl", level, "a.py", 1, "disk %d", (3,), error)
    record.created = time.mktime((2026, 11, 29, 14, 5, 9, 0, 0, -1))
    return terminal.Formatter(logging.StreamHandler(stream)).format(record)


def test_lines_have_the_time_and_the_level_unless_it_is_info():
    assert formatted(logging.INFO, io.StringIO()) == "11-29 14:05:09  disk 3"
    assert formatted(logging.WARNING, io.StringIO()) == "11-29 14:05:09  warning: disk 3"
    assert formatted(logging.ERROR, io.StringIO()) == "11-29 14:05:09  error: disk 3"
    assert formatted(logging.DEBUG, io.StringIO()) == "11-29 14:05:09  debug: disk 3"


def test_stack_traces_follow_their_line():
    try:
        raise OSError("full")
    except OSError:
        text = formatted(logging.ERROR, io.StringIO(), sys.exc_info())
    first, *_, last = text.splitlines()
    assert first == "11-29 14:05:09  error: disk 3"
    assert last == "OSError: full"


def test_levels_have_colours_on_a_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert (
        formatted(logging.WARNING, Terminal()) == "11-29 14:05:09  \033[33mwarning: \033[0mdisk 3"
    )
    assert formatted(logging.ERROR, Terminal()) == "11-29 14:05:09  \033[31merror: \033[0mdisk 3"
    assert formatted(logging.INFO, Terminal()) == "11-29 14:05:09  disk 3"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_no_colours_where_they_are_not_wanted(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert formatted(logging.ERROR, Terminal()) == "11-29 14:05:09  error: disk 3"
