"""What is shown of a run, and the interface of the sinks that show it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from etils import epath

from aced.metrics.history import NOT_FINITE

Outcome = Literal["finished", "stopped", "failed"]  # stopped: by a signal; the run may go on


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture, as a value in a line."""

    jpeg: bytes
    width: int
    height: int


# "step", and by the name of a metric a number, the name of one that is not finite, or a picture.
Line = dict[str, int | float | str | Picture]


@dataclasses.dataclass(frozen=True)
class RunCard:
    """The facts about a run that a sink shows."""

    folder: epath.Path  # the workdir
    project: str
    name: str
    settings: Mapping[str, Any]  # by their dotted paths
    first_step: int  # of the first line that the process may write
    earlier: Sequence[Line]  # lines of metrics.jsonl that stay, before `first_step`


@runtime_checkable
class Sink(Protocol):
    """A place that shows a run."""

    def write(self, lines: Sequence[Line]) -> None:
        """Shows `lines`, in the order of their steps except for pictures.

        Raises:
            Exception: any; the lines are kept and written again.
        """

    def close(self, outcome: Outcome) -> None:
        """Ends the work of this process on the run."""


class Service(Protocol):
    """A service that has runs by ids, built of a `RunCard`.

    It is called from one thread, where it may block, and raise any error.
    """

    def open(self, run_id: str | None) -> str:
        """Begins a run, or goes on with the run `run_id`. Returns its id."""

    def write(self, lines: Sequence[Line]) -> int:
        """Shows `lines`. Returns the last step that the service has even if the process is killed.

        Raises:
            Exception: any; the lines are written again.
        """

    def close(self, outcome: Outcome) -> None:
        """As for `Sink`; returns when all lines have arrived, or raises."""


def number(value: int | float | str) -> int | float:
    """The number that stands in a line."""
    return NOT_FINITE[value] if isinstance(value, str) else value


def numbers(line: Line) -> dict[str, int | float]:
    """The numbers of a line by name, without its step."""
    return {
        name: number(value)
        for name, value in line.items()
        if name != "step" and not isinstance(value, Picture)
    }


def pictures(line: Line) -> dict[str, Picture]:
    """The pictures of a line by name."""
    return {name: value for name, value in line.items() if isinstance(value, Picture)}
