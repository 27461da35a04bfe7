"""The settings that may change when a run is resumed, compared with a list of their paths."""

import dataclasses
import re
import typing

import pytest

from aced.checkpoints import record
from aced.config import optional, types_of
from aced.methods import METHODS
from aced.train.config import TrainConfig

# The rule of the versions without metadata of fields: runs begun then are resumed as before.
EARLIER = re.compile(
    r"total_\w+|overlap|log_steps|picks_steps|watchdog_minutes|max_skipped_in_a_row"
    r"|(evals|suites|checkpoint|before|before_caches|init|mesh)\..*"
    r"|(method\.sentences\.)?data\.(num_threads|prefetch|max_skipped_in_a_row"
    r"|filters\.max_in_a_row|(.*\.)?cache_folder)"
    r"|(.*\.)?data\.(.*\.)?(array_record|webdataset|parquet)\.path|(.*\.)?tfds\.data_dir"
    r"|method\.((score|train)_micro_batch|form)"
    r"|method\.(?!encoder\.checkpoint).*"
    r"(model\.(scan|remat|attention)|tokenizer\.path|checkpoint|cache)"
)
LATER = re.compile(
    r"(.*\.)?data\.(.*\.)?candidates\.path|(profile|early_stop|metrics)\..*"
    r"|method\.selection\.concepts"
)  # settings that older runs do not have


def paths(hint, path):
    """The paths of all settings in a tree of types; members of a mapping are called NAME."""
    while typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    hint = optional(hint) or hint
    if typing.get_origin(hint) is dict:
        yield from paths(typing.get_args(hint)[1], f"{path}.NAME")
    elif dataclasses.is_dataclass(hint):
        for name, inner in types_of(hint).items():
            if path or name != "method":
                yield from paths(inner, f"{path}.{name}" if path else name)
    else:
        yield path


@pytest.mark.parametrize("method", METHODS)
def test_the_settings_that_may_change_are_those_of_earlier_versions(method):
    cls = METHODS[method][0]
    keys = [*paths(TrainConfig, ""), *paths(cls, "method")]
    assert {"data.mixture.NAME.parquet.path", "evals.NAME.probe.seed", "method.model.scan"} < {
        *keys
    }
    expected = {key for key in keys if EARLIER.fullmatch(key) or LATER.fullmatch(key)}
    assert {key for key in keys if record.may_change(TrainConfig, cls, key)} == expected
