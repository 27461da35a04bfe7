"""SIGTERM and Ctrl-C in one process; in several, see test_distributed.py."""

import os
import signal
import threading

import pytest

from aced.parallel.preemption import Preemption


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_signal_is_noticed_and_handler_restored(number, code):
    before = signal.getsignal(number)
    with Preemption() as preemption:
        assert not preemption.reached(1)
        os.kill(os.getpid(), number)
        assert preemption.reached(2)
        assert preemption.reached(3)
        assert preemption.exit_code == code
        assert signal.getsignal(number) == before  # a second one ends the process
    assert signal.getsignal(number) == before
    with Preemption() as another:
        assert not another.reached(1)


def test_no_preemption_outside_the_main_thread():
    found = []

    def work():
        with Preemption() as preemption:
            found.append(preemption.reached(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
