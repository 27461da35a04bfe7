import pytest
from etils import epath

from aced import record
from aced.config import ConfigError
from aced.train import parse
from configs import smoke


def settings(**changes):
    config = smoke.get_config("tiny,method=iid")
    config.update_from_flattened_dict(changes)
    return parse(config)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"total_steps": 9, "log_steps": 7, "picks_steps": 0},
        {"checkpoint.every_steps": 3, "data.num_threads": 1, "method.model.remat": "full"},
        {"evals.retrieval.batch_size": 8, "method.score_micro_batch": 16},
    ],
)
def test_what_may_change(changes, tmp_path):
    folder = epath.Path(tmp_path)
    record.check(folder, settings(), "data")  # no run there yet
    record.write(folder, settings(), "data")
    record.check(folder, settings(**changes), "data")


@pytest.mark.parametrize(
    ("changes", "fingerprint", "message"),
    [
        ({"seed": 5}, "data", "seed: 0 then, 5 now"),
        ({"batch_size": 8}, "data", "batch_size: 16 then, 8 now"),
        ({"method.selection.gain": 3.0}, "data", r"selection\.gain: 10\.0 then, 3\.0 now"),
        ({"optimizer.schedule.peak": 0.5}, "data", r"schedule\.peak: 0\.001 then, 0\.5 now"),
        ({}, "other data", "data_fingerprint: 'data' then, 'other data' now"),
    ],
)
def test_what_makes_another_run(changes, fingerprint, message, tmp_path):
    folder = epath.Path(tmp_path)
    record.write(folder, settings(), "data")
    with pytest.raises(ConfigError, match=message):
        record.check(folder, settings(**changes), fingerprint)
