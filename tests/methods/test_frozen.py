"""Frozen models: where they are, and how their architecture is found out."""

import dataclasses
import json

import by_hand
import pytest

from aced.config import ConfigError, to_config
from aced.methods.contrastive_settings import ContrastiveConfig, DistillationConfig
from aced.methods.frozen import FrozenConfig
from aced.selection import SelectionConfig

MODEL = by_hand.model(resolution=16, patch=8, kind="clip_bpe", embed_dim=24)


def write_run(folder, model=MODEL):
    """A config.json as the training loop writes it."""
    folder.mkdir()
    config = to_config(ContrastiveConfig(model=model))
    method = json.loads(config.to_json_best_effort())
    text = json.dumps({"method": method, "data_fingerprint": "0", "model_fingerprints": {}})
    (folder / "config.json").write_text(text)


def test_the_model_is_read_from_the_run(tmp_path):
    write_run(tmp_path / "run")
    found = FrozenConfig(checkpoint=str(tmp_path / "run"), which="best").resolve("elsewhere")
    assert found == FrozenConfig(checkpoint=str(tmp_path / "run"), which="best", model=MODEL)


def test_workdir_placeholder_is_the_current_runs_workdir(tmp_path):
    write_run(tmp_path / "reference")
    found = FrozenConfig(checkpoint="{workdir}/reference").resolve(str(tmp_path))
    assert found.checkpoint == str(tmp_path / "reference")
    assert found.model == MODEL


def test_computation_settings_may_differ_from_training(tmp_path):
    write_run(tmp_path / "run")
    computed = {"dtype": "bfloat16", "remat": "full"}
    given = dataclasses.replace(MODEL, init_scale=3.0, **computed)
    found = FrozenConfig(checkpoint="{workdir}/run", model=given).resolve(str(tmp_path))
    assert found.model == dataclasses.replace(MODEL, **computed)


def test_trained_model_overrides_the_assumed_one_with_a_warning(tmp_path, caplog):
    write_run(tmp_path / "run")
    image = dataclasses.replace(MODEL.image, mean=(0.0, 0.0, 0.0))  # the same shapes
    given = dataclasses.replace(MODEL, image=image)
    found = FrozenConfig(checkpoint=str(tmp_path / "run"), model=given).resolve("")
    assert found.model == MODEL
    assert "image.mean: here (0.0, 0.0, 0.0), there (0.5," in caplog.text


def test_nothing_to_resolve():
    assert FrozenConfig().resolve("workdir") == FrozenConfig()


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(ConfigError, match=r"none does not exist; it must be a run"):
        FrozenConfig(checkpoint="{workdir}/none").resolve(str(tmp_path))
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match=r"none holds no run \(no config.json\) and no model"):
        FrozenConfig(checkpoint="{workdir}/none").resolve(str(tmp_path))


def test_a_config_that_names_no_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model": {"width": 8}}')
    with pytest.raises(ConfigError, match=r"config.json"):
        FrozenConfig(checkpoint=str(tmp_path)).resolve("")


def test_a_config_of_another_version(tmp_path):
    write_run(tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    written = json.loads(file.read_text())
    written["method"]["model"]["image"]["registers"] = 4
    file.write_text(json.dumps(written))
    with pytest.raises(ConfigError, match=r"config.json:method.model.image.registers"):
        FrozenConfig(checkpoint=str(tmp_path / "run")).resolve("")


def test_reference_and_teachers_are_resolved(tmp_path):
    write_run(tmp_path / "reference")
    other = by_hand.model(length=6)
    write_run(tmp_path / "large", other)
    settings = ContrastiveConfig(
        reference=FrozenConfig(checkpoint="{workdir}/reference"),
        teachers={
            "large": FrozenConfig(checkpoint="{workdir}/large"),
            "idle": FrozenConfig(checkpoint="{workdir}/missing"),
        },
        selection=SelectionConfig(),
        distillation=DistillationConfig(weight=1.0, teachers=("large",)),
    ).resolve(str(tmp_path))
    assert settings.reference.model == MODEL
    assert settings.teachers["large"].model == other
