"""A signal that comes at a place of the test's choice."""

import os

from aced.parallel.preemption import Preemption


def signal_at(monkeypatch, number: int, wanted: int) -> None:
    """Has the signal come when the program asks at `wanted`, a step or a block, whether to stop."""
    reached = Preemption.reached

    def asked(self, place):
        if place == wanted:
            os.kill(os.getpid(), number)
        return reached(self, place)

    monkeypatch.setattr(Preemption, "reached", asked)
