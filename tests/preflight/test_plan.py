import jax
import pytest
from etils import epath

from aced.checkpoints import record
from aced.config import ConfigError, to_config
from aced.parallel import mesh as meshes
from aced.preflight import plan
from aced.train.config import TrainConfig, parse
from configs import acid_b16, siglip_b16


def test_missing_reference_is_as_in_the_recipe(tmp_path):
    wanted = plan.read(acid_b16.get_config(), str(tmp_path))
    assert wanted.settings.method.reference.model.image.size == "B"
    assert wanted.assumed == [
        "method.reference.checkpoint = '/data/reference' holds no run; the model is "
        "method.reference.model"
    ]


def test_reference_of_an_earlier_run_has_its_model(tmp_path):
    config = acid_b16.get_config("tiny")
    config.before.reference.method.model.image.depth = 5
    wanted = plan.read(config, str(tmp_path))
    assert wanted.settings.method.reference.model.image.dims.depth == 5
    assert "before.reference" in wanted.assumed[0]


def test_existing_reference_is_read(tmp_path):
    run = siglip_b16.get_config("tiny")
    run.method.model.image.depth = 3
    record.write(epath.Path(tmp_path / "reference"), parse(run), "of its data")
    config = acid_b16.get_config("tiny")
    wanted = plan.read(config, str(tmp_path))
    assert wanted.settings.method.reference.model.image.dims.depth == 3
    assert wanted.assumed == []


def test_reference_of_unknown_architecture_is_refused(tmp_path):
    config = acid_b16.get_config()
    config.method.reference.model = None
    with pytest.raises(
        ConfigError, match=r"its architecture is unknown; .* method\.reference\.model"
    ):
        plan.read(config, str(tmp_path))


def test_smaller_batches_are_those_that_can_be_drawn(tmp_path):
    config = acid_b16.get_config("tiny")
    config.batch_size = 2048
    config.method.selection.strata = None
    config.method.selection.chunks = 2
    config.method.score_micro_batch = 160
    wanted = plan.read(config, str(tmp_path))
    mesh = meshes.make_mesh()  # 8 devices
    assert not wanted.exchanges(mesh, 2048)
    # B = 5 b is a multiple of 160 where b is one of 32. At least 128 picks of each stratum leave 8
    # strata, one a device, from b = 1024 on; below, pictures would move.
    assert wanted.smaller_batches(mesh) == list(range(1024, 2048, 32))
    assert wanted.at(1024).method.selection.strata == 8
    assert wanted.at(1024).batch_size == 1024
    assert wanted.program(mesh, 1024).candidates == 5120


def test_smaller_batches_without_selection(tmp_path):
    config = siglip_b16.get_config("tiny")
    config.batch_size = 40
    wanted = plan.read(config, str(tmp_path))
    assert wanted.smaller_batches(meshes.make_mesh()) == [8, 16, 24, 32]
    assert wanted.smaller_batches(meshes.make_mesh(jax.devices()[:1])) == list(range(1, 40))


def test_epochs_count_the_data_set_or_an_assumed_one(tmp_path):
    config = to_config(TrainConfig())
    config.method = siglip_b16.get_config("tiny").method
    config.batch_size = 100
    config.total_steps = None
    config.total_epochs = 3.0
    config.data.shapes.size = 1000
    mesh = meshes.make_mesh(jax.devices()[:1])
    wanted = plan.read(config, str(tmp_path))
    assert plan.first_program(wanted, mesh).total_steps == 30
    assert wanted.assumed == []

    config.data.source = "array_record"
    config.data.array_record.path = str(tmp_path / "none")
    wanted = plan.read(config, str(tmp_path))
    assert plan.first_program(wanted, mesh).total_steps == 300_000
    assert wanted.assumed == ["an epoch has 10,000,000 examples; the data set is missing"]
