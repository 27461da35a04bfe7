"""SIGTERM in one process; in several, see test_distributed.py."""

import os
import signal
import threading

from aced.preemption import Preemption


def test_sigterm_is_noticed_and_the_handler_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached(2)
        assert preemption.reached(3)
        assert signal.getsignal(signal.SIGTERM) == before  # a second one ends the process
    assert signal.getsignal(signal.SIGTERM) == before
    with Preemption() as another:
        assert not another.reached(1)


def test_outside_the_main_thread_it_never_comes():
    found = []

    def work():
        with Preemption() as preemption:
            found.append(preemption.reached(1))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]
