"""Evaluation alone: the numbers that training logged, and those of other models."""

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from flax.core import meta

from aced import evaluate
from aced.config import ConfigError
from aced.convert.command import ConvertConfig, convert
from aced.data import records
from aced.evaluate import EvaluateConfig
from aced.inference import read
from aced.metrics import history
from aced.models import int8_weights, model_folder
from aced.train import loop
from configs import smoke
from tests.data import many
from tests.test_main import aced

CLASSES = ("red", "blue", "star")


def config(**changes):
    out = smoke.get_config("tiny,method=iid")
    out.update_from_flattened_dict(changes)
    return out


@pytest.fixture(scope="module", name="runs")
def _runs(tmp_path_factory):
    """Two runs; one is evaluated by its moving average."""
    folder = tmp_path_factory.mktemp("runs")
    for name, decay in (("plain", 0.0), ("averaged", 0.5)):
        loop.run(config(ema_decay=decay), str(folder / name), devices=jax.devices()[:1])
    return folder


def logged(workdir):
    last = history.last_values(workdir)
    return {name: x for name, x in last.items() if name.startswith(("retrieval/", "classes/"))}


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("name", ["plain", "averaged"])
def test_numbers_are_those_that_training_logged(runs, name, devices, tmp_path):
    some = jax.devices()[:devices]
    wanted = EvaluateConfig(out=str(tmp_path))
    found = evaluate.run(config(), wanted, str(runs / name), devices=some)
    assert found == pytest.approx(logged(runs / name), abs=1e-6)
    assert len(found) > 4


@pytest.mark.slow
def test_other_parameters_give_other_numbers(runs):
    some, workdir = jax.devices()[:1], str(runs / "averaged")
    found = evaluate.run(config(), EvaluateConfig(parameters="params"), workdir, devices=some)
    assert found != pytest.approx(logged(runs / "averaged"), abs=1e-6)


@pytest.mark.slow
def test_a_converted_model_is_evaluated_as_its_run(runs, tmp_path):
    source, out = str(runs / "plain"), str(tmp_path / "model")
    convert(ConvertConfig(source=source, out=out, to="aced"))
    wanted = EvaluateConfig(model=out)
    found = evaluate.run(config(), wanted, str(tmp_path / "none"), devices=jax.devices()[:1])
    assert found == pytest.approx(logged(runs / "plain"), abs=1e-6)


@pytest.mark.slow
def test_weights_in_8_bits_give_the_numbers_of_the_rounded_weights(runs, tmp_path):
    model = read(str(runs / "plain"))
    params = jax.jit(int8_weights.quantized)(model.params)
    stored = jax.tree.map(np.asarray, meta.unbox(params))
    (tmp_path / "rounded").mkdir()
    model_folder.write(dataclasses.replace(model, params=stored), tmp_path / "rounded")
    some, workdir = jax.devices()[:1], str(runs / "plain")
    numbers = [
        evaluate.run(config(), wanted, workdir, devices=some)
        for wanted in (
            EvaluateConfig(precision="int8_weights"),
            EvaluateConfig(model=str(tmp_path / "rounded")),
            EvaluateConfig(precision="float32"),
        )
    ]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-6)
    assert numbers[2] == pytest.approx(logged(runs / "plain"), abs=1e-6)


def labelled(folder, labels):
    """Evaluations of the same pictures, of 3 classes, in records and in tars with only labels."""
    pictures = [many.jpeg(10 * i, side=24) for i in range(len(labels))]
    examples = [
        records.Example(picture, ("a",), str(i), label)
        for i, (picture, label) in enumerate(zip(pictures, labels, strict=True))
        if label is not None
    ]
    (folder / "records").mkdir()
    split = records.write_split(folder / "records", "train", examples, len(examples), 1)
    what = {"statistics": {}, "settings": {}, "class_names": list(CLASSES)}
    records.write_description(folder / "records", {"train": split}, **what)
    members = []
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        shown = io.BytesIO()
        np.save(shown, np.arange(3) == (label or 0))
        members += [(f"{i}.cls", b"broken" if label is None else str(label).encode())]
        members += [(f"{i}.npy", shown.getvalue()), (f"{i}.webp", picture)]
    (folder / "tars").mkdir()
    (folder / "tars" / "0.tar").write_bytes(many.tar_bytes(members))
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    tars = {"source": "webdataset", "webdataset": {"path": f"{folder}/tars", "label": ".cls"}}
    several = {"path": f"{folder}/tars", "captions": (".npy",)}
    return {
        "records": {"source": "array_record", "array_record": {"path": f"{folder}/records"}},
        "tars": tars,
        "several": {"source": "webdataset", "webdataset": several},
    }


@pytest.mark.slow
def test_label_only_tars_are_classified_as_prepared_records_are(runs, tmp_path, caplog):
    several = {"classes_in": "captions", "max_examples": 10}
    evals = {
        name: {"kind": "zeroshot", "data": data} | (several if name == "several" else {})
        for name, data in labelled(tmp_path, [i % 3 for i in range(20)] + [None]).items()
    }
    some, workdir = jax.devices()[:1], str(runs / "plain")
    found = evaluate.run(config(evals=evals), EvaluateConfig(), workdir, devices=some)
    for number in ("top1", "top5", "mean_per_class"):
        assert found[f"tars/{number}"] == found[f"records/{number}"]
    assert found["tars/examples"] == found["records/examples"] == 20
    assert found["several/examples"] == 10
    assert 0 <= found["several/map"] <= 1
    assert "An evaluation leaves out record 20 of" in caplog.text
    assert "its KEY.cls is not the number of a class: 'broken'" in caplog.text


@pytest.mark.slow
def test_classes_beyond_the_names_are_named(runs, tmp_path):
    data = labelled(tmp_path, [0, 7, 1, 3, 7])["tars"]
    evals = {"tars": {"kind": "zeroshot", "data": data}}
    with pytest.raises(ConfigError, match=r"tars has classes 3, 7, but only 3 class names"):
        evaluate.run(
            config(evals=evals), EvaluateConfig(), str(runs / "plain"), devices=jax.devices()[:1]
        )


@pytest.mark.slow
def test_models_and_data_that_cannot_be_evaluated_are_refused(runs, tmp_path):
    with pytest.raises(ConfigError, match="There is nothing to evaluate"):
        evaluate.run(config(evals={}), EvaluateConfig(), str(runs / "plain"))
    with pytest.raises(ConfigError, match=r"nowhere does not exist; .*--workdir"):
        evaluate.run(config(), EvaluateConfig(), str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="holds no run"):
        evaluate.run(config(), EvaluateConfig(), str(tmp_path))


@pytest.mark.slow
def test_the_command(runs):
    flags = [
        "--config=configs/smoke.py:tiny,method=iid",
        "--config.evals.retrieval.max_examples=16",
    ]
    done = aced(*flags, f"--workdir={runs / 'plain'}", "--json", command="evaluate")
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == set(logged(runs / "plain"))
