"""Errors that a user can correct, with messages that name the place, the reason and the remedy.

Errors of the operating system arrive as an OSError, or quoted in the errors of ArrayRecord, Orbax,
safetensors and Beam.
"""

import errno
import os
from collections.abc import Iterator


class UserError(Exception):
    """An error that a user can correct; the message has the problem, the place and the remedy."""


_ROOM = "Make room there or choose another place, and start the same command again"
_RIGHTS = "Give this user the right to use it, or choose another place"
_NEXT = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "Let files grow larger there (ulimit -f) or choose another place, and start the "
    "same command again",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: "Mount it so that it can be written to, or choose another place",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.ENOTDIR: "A file is where a folder should be: move it away, or correct the path",
    errno.EEXIST: "Something else is there: move it away, or choose another place",
    errno.EISDIR: "A folder is where a file should be: move it away, or correct the path",
    errno.ENOTEMPTY: "Something else is there: move it away, or choose another place",
    errno.ENOENT: "Correct the path",
    errno.ELOOP: "Its symbolic links lead in a circle: correct them, or the path",
    errno.EIO: "The disk or the network behind it may be failing: look at the system's log (dmesg)",
    errno.ESTALE: "Mount the network file system again, and start the same command again",
    errno.EMFILE: "Allow this process more open files: ulimit -n 65536",
    errno.ENFILE: "Close other programs, or let the system have more open files: fs.file-max",
}
# Messages of a missing file are not searched for: libraries quote those of their own files.
_PHRASES = {os.strerror(number): number for number in _NEXT if number != errno.ENOENT}


def message(error: BaseException, place: str) -> str | None:
    """Returns the message of an error that a user can correct; None for other errors.

    `place` is the command's input or output, such as "--out=data/photos", for errors that name no
    file.
    """
    if isinstance(error, UserError):
        number = _quoted(error) if isinstance(error, OSError) else None
        return str(error) if number is None else f"{error}. {_NEXT[number]}."
    for cause in _causes(error):
        if (number := _number(cause)) is not None:
            return f"{_described(cause, number, place)}. {_NEXT[number]}."
    if isinstance(error, OSError):
        return f"{place}: {error}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error with its causes, and the members of a group with theirs."""
    seen: set[int] = set()  # an error may be its own cause
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        if isinstance(error, BaseExceptionGroup):
            for member in error.exceptions:
                yield from _causes(member)
        error = error.__cause__


def _number(error: BaseException) -> int | None:
    """The errno of an error, or the one quoted in its text; None: no known one."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _NEXT else None
    return _quoted(error)


def _quoted(error: BaseException) -> int | None:
    """The errno that an input or output library quotes at the end of its message.

    Errors of other kinds, and those of XLA, are left alone: their text may quote a system's message
    about a file that is not the user's.
    """
    library = type(error).__module__.partition(".")[0]
    is_quoting = isinstance(error, RuntimeError | ValueError | OSError) or library == "safetensors"
    if not is_quoting or library in ("jax", "jaxlib"):
        return None
    text = str(error).strip().rpartition("\n")[2]
    return next((number for phrase, number in _PHRASES.items() if phrase in text), None)


def _described(error: BaseException, number: int, place: str) -> str:
    """A description of the error that names the file."""
    reason = os.strerror(number)
    if isinstance(error, OSError) and error.errno is not None:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        return f"{' to '.join(names) or place} cannot be used: {reason}"
    quoting = [line.strip() for line in str(error).splitlines() if reason in line]
    return f"{place}: {quoting[-1].rstrip('.')}"
