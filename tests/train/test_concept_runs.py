"""Runs that select by the concepts of captions."""

import jax
import pytest
from etils import epath

from aced.checkpoints import record
from aced.config import ConfigError
from aced.data.concepts import ConceptList
from aced.data.sources import open_source
from aced.metrics import history
from aced.parallel import mesh as meshes
from aced.train import loop
from aced.train.config import parse
from aced.train.setup import set_up
from configs import smoke


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cabs_dm", "cabs_fm"])
def test_a_run_picks_captions_with_concepts_on_any_devices(name, tmp_path):
    config = smoke.get_config(f"tiny,method={name}")
    config.method.selection.strata = 2
    config.data.shapes.vague = 0.5
    workdirs = [tmp_path / str(devices) for devices in (1, 2)]
    for devices, workdir in enumerate(workdirs, 1):
        last = loop.run(config, str(workdir), devices=jax.devices()[:devices])
        assert 0 < last["selection/concepts"] <= 1
    config.method.score_ahead = 1  # the scores do not depend on the model
    workdirs.append(tmp_path / "ahead")
    loop.run(config, str(workdirs[-1]), devices=jax.devices()[:1])
    one, two, ahead = (history.read_picks(workdir) for workdir in workdirs)
    assert one == two == ahead
    # Vague captions name nothing, so they are only picked where there is nothing else.
    source, listed = open_source(parse(config).data), ConceptList(smoke.CONCEPTS)
    picked = [int(i) for ids in one.values() for i in ids]
    assert all((listed(source[i]["texts"][0]) >= 0).any() for i in picked)
    assert last["selection/concepts_each"] > 3


def test_a_run_does_not_resume_with_other_concepts(tmp_path):
    config = smoke.get_config("tiny,method=cabs_dm")
    config.method.score_ahead, name = 1, "candidates/list of concepts"
    folder, source = epath.Path(tmp_path), open_source(parse(config).data)
    digest = ConceptList(smoke.CONCEPTS).digest
    record.write(folder, parse(config), source.fingerprint, {name: digest})
    others = tmp_path / "others.txt"
    others.write_text("red\nblue\n")
    config.method.selection.concepts = str(others)
    mesh = meshes.make_mesh(jax.devices()[:1])
    with jax.set_mesh(mesh), pytest.raises(ConfigError, match=f"{name}: '{digest}' then"):
        set_up(parse(config), mesh, folder, source)
