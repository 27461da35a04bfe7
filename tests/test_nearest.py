import pytest

from aced import nearest
from aced.config import flatten, to_config
from aced.train.config import TrainConfig
from configs import smoke

PATHS = flatten(smoke.get_config().to_dict())


@pytest.mark.parametrize(
    ("path", "first"),
    [
        ("optimizer.lr", "optimizer.schedule.peak"),
        ("learning-rate", "optimizer.schedule.peak"),
        ("batch", "batch_size"),
        ("method.batch_size", "batch_size"),
        ("optimizer.wd", "optimizer.weight_decay"),
        ("epochs", "total_epochs"),
        ("warmup", "optimizer.schedule.warmup_steps"),
        ("optimizer.warmup_steps", "optimizer.schedule.warmup_steps"),
        ("batch_siez", "batch_size"),
        ("selection.gain", "method.selection.gain"),
        ("method.selction.gian", "method.selection.gain"),
        ("evals.retreival.every_percent", "evals.retrieval.every_percent"),
        ("before.reference.totl_steps", "before.reference.total_steps"),
    ],
)
def test_first_setting_that_may_be_meant(path, first):
    assert nearest.settings(path, PATHS)[0] == first


def test_nothing_resembles_it():
    assert nearest.settings("xyzzy", PATHS) == []
    assert nearest.did_you_mean([]) == "."


def test_settings_with_common_names_exist():
    known = flatten(to_config(TrainConfig()).to_dict())
    assert not nearest._CALLED.keys() - known.keys()


def test_sentence():
    assert nearest.did_you_mean(["a"]) == "; did you mean a?"
    assert nearest.did_you_mean(["a", "b", "c"]) == "; did you mean a, b or c?"


def test_arguments_by_spelling_and_by_common_names():
    known = ("steps", "batch", "lr", "resolution", "length")
    assert nearest.arguments("stepz", known) == ["steps"]
    assert nearest.arguments("learning_rate", known) == ["lr"]
    assert nearest.arguments("epochs", known) == []
    assert nearest.arguments("image_size", known) == ["resolution"]
