"""Lines for people to read: their time stamps, and colours where a terminal has them."""

import logging
import os
import time
from io import TextIOBase

_STAMP = "%m-%d %H:%M:%S"
_COLOURS = {"bold": 1, "red": 31, "green": 32, "yellow": 33}
_LEVELS = {
    logging.DEBUG: ("debug: ", "bold"),
    logging.WARNING: ("warning: ", "yellow"),
    logging.ERROR: ("error: ", "red"),
    logging.CRITICAL: ("error: ", "red"),
}


def has_colours(stream: TextIOBase) -> bool:
    """Whether `stream` is a terminal with colours, and NO_COLOR (no-color.org) is not set."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and stream.isatty()


def painted(text: str, colour: str, stream: TextIOBase) -> str:
    """Returns `text` in "bold", "red", "green" or "yellow", if `stream` has colours."""
    if not has_colours(stream):
        return text
    return f"\033[{_COLOURS[colour]}m{text}\033[0m"


def stamped(line: str, seconds: float | None = None) -> str:
    """Returns `line` behind the local time `seconds` since the epoch; None: now."""
    return f"{time.strftime(_STAMP, time.localtime(seconds))}  {line}"


class Formatter(logging.Formatter):
    """Formats log lines: the time, the level unless it is info, and the message."""

    def __init__(self, handler: logging.StreamHandler):
        """Formats for the stream of `handler`."""
        super().__init__()
        self._handler = handler

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, followed by the stack trace if the record has one."""
        level, colour = _LEVELS.get(record.levelno, ("", "bold"))
        label = painted(level, colour, self._handler.stream) if level else ""
        return stamped(f"{label}{super().format(record)}", record.created)
