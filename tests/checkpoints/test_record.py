import json

import pytest
from etils import epath

from aced.checkpoints import record
from aced.config import ConfigError
from aced.files import own_files
from aced.train.config import parse
from configs import dime_b32, smoke


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
        {"evals.retrieval.batch_size": 8, "method.score_micro_batch": 16, "profile.steps": 5},
        {"data.array_record.path": "/elsewhere", "data.tfds.data_dir": "/elsewhere"},
    ],
)
def test_settings_that_may_change(changes, tmp_path):
    folder = epath.Path(tmp_path)
    record.check(folder, settings(), "data")  # no run there yet
    record.write(folder, settings(), "data")
    record.check(folder, settings(**changes), "data")


def test_the_second_stream_may_be_read_by_fewer_threads(tmp_path):
    """Settings of how data are read may change for DIME-FM's sentences, too."""
    config = dime_b32.get_config("tiny")
    folder, data = epath.Path(tmp_path), config.method.sentences.data
    record.write(folder, parse(config), "data")
    data.num_threads += 1
    record.check(folder, parse(config), "data")
    data.shuffle = False
    with pytest.raises(ConfigError, match=r"method\.sentences\.data\.shuffle"):
        record.check(folder, parse(config), "data")


def test_models_in_the_workdir_are_recorded_as_such(tmp_path):
    """A run that was moved, or another one with these settings, then finds its own models."""
    config = smoke.get_config("tiny,online")
    reference = config.method.reference
    reference.checkpoint, reference.cache = f"{tmp_path}/reference", f"{tmp_path}0/cache"
    folder = epath.Path(tmp_path)
    record.write(folder, parse(config), "data")
    found = record.read(folder).settings["method"]["reference"]
    assert found["checkpoint"] == "{workdir}/reference"
    assert found["cache"] == f"{tmp_path}0/cache"  # another folder
    record.check(folder, parse(config), "data")


def test_new_setting_must_have_its_default(tmp_path, caplog):
    """A run can then be resumed with newer code."""
    folder = epath.Path(tmp_path)
    record.write(folder, settings(), "data")
    written = own_files.loads((folder / record.FILE).read_bytes())
    del written["method"]["selection"]["draw"], written["data"]["shuffle"]
    (folder / record.FILE).write_text(json.dumps(written))
    record.check(folder, settings(), "data")
    assert "method.selection.draw: None then, 'sample' now" in caplog.text
    with pytest.raises(ConfigError, match=r"shuffle: None then, False now"):
        record.check(folder, settings(**{"data.shuffle": False}), "data")
    del written["batch_size"]  # not its default
    (folder / record.FILE).write_text(json.dumps(written))
    with pytest.raises(ConfigError, match=r"settings:\n  batch_size: None then, 16 now\nSet"):
        record.check(folder, settings(), "data")


def test_frozen_models_must_stay_the_same(tmp_path):
    folder = epath.Path(tmp_path)
    record.write(folder, settings(), "data")
    models = {"reference's weights": "1"}
    record.check(folder, settings(), "data", models)  # the run began before models were recorded
    record.write(folder, settings(), "data", models)
    record.check(folder, settings(), "data", models)
    with pytest.raises(ConfigError, match=r"reference's weights: '1' then, '2'"):
        record.check(folder, settings(), "data", {"reference's weights": "2"})
    with pytest.raises(ConfigError, match=r"reference's weights: '1' then, None"):
        record.check(folder, settings(), "data")


@pytest.mark.parametrize(
    ("changes", "fingerprint", "message"),
    [
        ({"seed": 5}, "data", "seed: 0 then, 5 now"),
        ({"batch_size": 8}, "data", "batch_size: 16 then, 8 now"),
        ({"method.selection.gain": 3.0}, "data", r"selection\.gain: 100\.0 then, 3\.0 now"),
        ({"optimizer.schedule.peak": 0.5}, "data", r"schedule\.peak: 0\.001 then, 0\.5 now"),
        ({}, "other data", "data_fingerprint: 'data' then, 'other data' now"),
    ],
)
def test_settings_that_may_not_change(changes, fingerprint, message, tmp_path):
    folder = epath.Path(tmp_path)
    record.write(folder, settings(), "data")
    with pytest.raises(ConfigError, match=message):
        record.check(folder, settings(**changes), fingerprint)
