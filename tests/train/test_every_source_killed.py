"""Every source through the command, in two processes; one process is killed."""

import numpy as np
import pytest

from aced.checkpoints import checkpointer
from aced.metrics import history
from aced.parallel import distributed
from tests import every_source_run, many_processes

SOURCES = ("array_record", "parquet", "tfds", "webdataset")  # numbered by name


@pytest.mark.slow
def test_two_processes_resume_on_every_source_after_a_kill(tmp_path):
    data, workdir = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    every_source_run.write(data)

    def start(processes, folder):
        command = ["-m", "aced.main", f"--config=tests/every_source_run.py:data={data}"]
        command += [f"--workdir={folder}", *["--distributed"] * (processes > 1)]
        return many_processes.start(processes, 2 // processes, command, tmp_path / "logs")

    with start(1, tmp_path / "whole") as started:
        assert started.exit_codes() == [0], started.output(0)
    expected = history.read_picks(tmp_path / "whole")

    # Neither lost nor repeated: of each source, every example once an epoch.
    ids = np.concatenate([expected[step] for step in sorted(expected)])
    assert len(expected) == every_source_run.STEPS
    count = every_source_run.COUNT
    for number in range(len(SOURCES)):
        own = ids[ids // count == number] - number * count
        assert len(own) == len(ids) // len(SOURCES) == 3 * count
        for epoch in own.reshape(3, count):
            assert sorted(epoch) == list(range(count))

    with start(2, workdir) as started:
        saved = workdir / checkpointer.FOLDER
        started.wait_for(lambda: saved.exists() and any(p.name.isdigit() for p in saved.iterdir()))
        started.processes[1].kill()
        codes = started.exit_codes(100)
    assert codes[0] in (distributed.LOST_PEER, *many_processes.LOST_THE_OTHER), started.output(0)
    assert len(history.read_picks(workdir)) < every_source_run.STEPS
    with start(2, workdir) as started:
        assert started.exit_codes() == [0, 0], started.output(0)
        assert "resumes after step" in started.output(0)
    assert history.read_picks(workdir) == expected
    last = history.last_values(workdir)
    assert last["wall/records_skipped"] == 0
    assert [last[f"sources/{name}/share"] for name in SOURCES] == [0.25] * 4
