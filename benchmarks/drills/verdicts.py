"""How a case ended, decided by values: an exit code alone proves nothing."""

import dataclasses
from collections.abc import Iterable

from benchmarks.drills.processes import HANGS, Done

HELD = "held"  # the result is that of an undisturbed run, or what was left out is counted
CLEAR = "clear_error"  # it ended with an error that names what is wrong
UNCLEAR = "unclear_error"  # with one that does not
WRONG = "wrong_silently"  # with a wrong result and without an error, or not at all
TRACE = "stack_trace"  # with an error that shows where in the code it happened
OUTCOMES = (HELD, CLEAR, UNCLEAR, WRONG, TRACE)


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing that is tried."""

    kind: str = ""
    command: str = ""  # a name of `bench.JOBS`
    what: str = ""  # is done to it
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of a case."""

    outcome: str
    detail: str = ""


def error_of(done: Done, names: Iterable[str]) -> Verdict:
    """The verdict on a command that did not end well; a clear error has one of `names` in it."""
    if done.code == HANGS:
        return Verdict(WRONG, f"it hangs:\n{done.text[-2000:]}")
    if done.is_crash:
        return Verdict(TRACE, f"exit {done.code}:\n{done.text[-6000:]}")
    message = done.message or "\n".join(done.text.splitlines()[-8:])
    is_clear = any(name in message for name in names)
    return Verdict(CLEAR if is_clear else UNCLEAR, f"exit {done.code}: {message}")


def verdict(done: Done, is_right: bool, names: Iterable[str], difference: str = "") -> Verdict:
    """The verdict on a command whose result, if it ended well, is right or not."""
    if done.code != 0 or done.is_crash:
        return error_of(done, names)
    if is_right:
        return Verdict(HELD)
    return Verdict(WRONG, f"{difference}\n{done.text[-3000:]}")
