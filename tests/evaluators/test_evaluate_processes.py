"""`python -m aced.evaluate` in two processes, and after SIGKILL in the middle of its data sets.

All are the command, as a user starts it. One that is left alone, in one process, has the numbers
that the others must come to.
"""

import contextlib
import json
import signal

import pytest

from aced.parallel import distributed
from tests import many_processes
from tests.evaluators import wds_tree
from tests.evaluators.test_evaluate_data import write_model

pytestmark = pytest.mark.slow
SETS = ("cifar10", "flickr30k", "fmow", "imagenet_a")


@pytest.fixture(scope="module", name="start")
def _start(tmp_path_factory):
    """Starts the command in several processes, with its results in a folder of this name."""
    place = tmp_path_factory.mktemp("place")
    write_model(place / "model")
    wds_tree.three_sets(place / "wds")
    wds_tree.classes(place / "wds" / "wds_cifar10", 30)

    def start(name, processes=1):
        command = ["-m", "aced.evaluate", f"--model={place}/model", f"--data={place}/wds"]
        command += [f"--out={place}/{name}"] + ["--distributed"] * (processes > 1)
        return many_processes.start(processes, 1, command, place / "logs")

    start.place = place
    return start


def evaluations(start, name):
    """What the results hold so far, without the seconds that each took."""
    with contextlib.suppress(FileNotFoundError):
        content = json.loads((start.place / name / "results.json").read_text())
        found = content["evaluations"]
        return {key: value | {"seconds": 0} for key, value in found.items()}
    return {}


@pytest.fixture(scope="module", name="undisturbed")
def _undisturbed(start):
    with start("undisturbed") as started:
        assert started.exit_codes() == [0], started.output(0)
    found = evaluations(start, "undisturbed")
    assert sorted(found) == sorted(SETS)
    return found


def wait_for_the_first(started, start, name):
    """Waits until some data sets are evaluated; returns their number."""
    started.wait_for(lambda: bool(evaluations(start, name)))
    return len(evaluations(start, name))


def test_one_process_killed_goes_on_with_the_missing_sets(start, undisturbed):
    with start("killed") as started:
        wait_for_the_first(started, start, "killed")
        started.kill()
        assert started.exit_codes() == [-signal.SIGKILL]
    done = evaluations(start, "killed")
    assert 0 < len(done) < len(SETS)
    with start("killed") as started:
        assert started.exit_codes() == [0], started.output(0)
    assert started.output(0).count("results.json already.") == len(done)
    assert evaluations(start, "killed") == undisturbed


def test_two_processes_one_of_them_killed(start, undisturbed):
    with start("two", 2) as started:
        wait_for_the_first(started, start, "two")
        started.processes[1].kill()
        codes = started.exit_codes(100)
    assert codes[0] in (distributed.LOST_PEER, *many_processes.LOST_THE_OTHER), started.output(0)
    done = evaluations(start, "two")
    assert 0 < len(done) < len(SETS)
    with start("two", 2) as started:
        assert started.exit_codes() == [0, 0], started.output(0) + started.output(1)
    assert evaluations(start, "two") == undisturbed
    tables = ["cifar10/top1  " in started.output(i) for i in range(2)]
    assert tables == [True, False]  # the first one alone prints it
    assert (start.place / "two" / "results.md").is_file()
