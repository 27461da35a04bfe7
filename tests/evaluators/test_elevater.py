"""The suites of DIME-FM's paper, on small data sets in their places."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from aced import evaluate
from aced.config import ConfigError
from aced.data import records
from aced.data.shapes import scenes
from aced.evaluate import EvaluateConfig
from aced.train import loop
from aced.train.config import parse
from configs import elevater, smoke
from tests.data import many

SOME = "voc2007+kitti_distance+hateful_memes"
NAMES = list(scenes.COLOURS)[:2]


def rows(several):
    """A picture, its captions and its label, of 30; they show the classes by `several`."""
    for i in range(30):
        captions = tuple(name for bit, name in enumerate(NAMES) if (1 + i % 3) >> bit & 1)
        yield many.jpeg(i, side=24), captions if several else (), i % 2


def write(root, source):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in SOME.split("+"):
        several = name == "voc2007"
        for part in ("test", "train"):
            folder = root / name / (part if source == "array_record" else "")
            folder.mkdir(parents=True, exist_ok=True)
            if source == "array_record":
                examples = [
                    records.Example(image, captions or ("a",), str(i), None if several else label)
                    for i, (image, captions, label) in enumerate(rows(several))
                ]
                split = records.write_split(folder, "train", examples, len(examples), 1)
                what = {"statistics": {}, "settings": {}, "class_names": None if several else NAMES}
                records.write_description(folder, {"train": split}, **what)
                continue
            images, captions, labels = zip(*rows(several), strict=True)
            other = {"classes": captions} if several else {"label": labels}
            pq.write_table(pa.table({"image": images} | other), folder / f"{part}-0.parquet")


@pytest.fixture(scope="module", name="workdir")
def _workdir(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("run"))
    loop.run(smoke.get_config("tiny,method=iid"), folder, devices=jax.devices()[:1])
    return folder


@pytest.mark.parametrize("source", elevater.SOURCES)
@pytest.mark.parametrize("kind", elevater.KINDS)
def test_each_data_set_has_its_own_metric(workdir, tmp_path, source, kind):
    write(tmp_path, source)
    prompts = {name: {"class_names": NAMES, "templates": ["a {}"]} for name in SOME.split("+")}
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    arg = f"root={tmp_path},source={source},kind={kind},only={SOME},prompts={tmp_path}/prompts.json"
    config = elevater.get_config(arg)
    found = evaluate.run(config, EvaluateConfig(), workdir, devices=jax.devices()[:1])
    for name in SOME.split("+"):
        assert found[f"{kind}_{name}/examples"] == 30
        assert 0 <= found[f"{kind}_{name}/{elevater.ELEVATER[name]}"] <= 1
        assert (f"{kind}_{name}/trained_on" in found) == (kind == "linear_probe")
    assert not [name for name in found if name.startswith("suite/")]  # some are no suite


def test_a_suite_has_all_and_leaves_out_imagenet_itself(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(elevater, "ELEVATER", {n: elevater.ELEVATER[n] for n in SOME.split("+")})
    write(tmp_path, "parquet")
    config = smoke.get_config("tiny,method=iid")
    prompts = {name: {"class_names": NAMES} for name in SOME.split("+")}
    elevater.add(config, str(tmp_path), source="parquet", prompts=prompts)
    found = evaluate.run(config, EvaluateConfig(), workdir, devices=jax.devices()[:1])
    own = [found[f"zeroshot_{name}/{number}"] for name, number in elevater.ELEVATER.items()]
    assert found["suite/elevater_zeroshot"] == pytest.approx(np.mean(own))
    assert "retrieval/mean_r1" in found
    settings = parse(elevater.get_config("shifts"))
    assert len(settings.evals) == 6
    assert len(settings.suites["shifts_zeroshot"]) == 5


def test_all_twenty():
    settings = parse(elevater.get_config("kind=linear_probe"))
    assert len(settings.evals) == len(settings.suites["elevater_linear_probe"]) == 20
    assert settings.evals["linear_probe_kitti_distance"].resize == "squash"
    assert {e.resize for e in settings.evals.values()} == {"squash", "model"}
    probe = settings.evals["linear_probe_dtd"].probe.data.array_record.path
    assert probe == "/data/elevater/dtd/train"


@pytest.mark.parametrize("arg", ["kind=knn", "source=tars", "only=dtd+imagenet", "root"])
def test_unknown_arguments_are_refused(arg):
    with pytest.raises(ConfigError, match=arg.partition("=")[0]):
        elevater.get_config(arg)


@pytest.mark.parametrize("prompts", [{"dtdd": {}}, {"dtd": {"names": []}}])
def test_prompts_of_unknown_data_sets_are_refused(prompts, tmp_path):
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    with pytest.raises(ConfigError, match=r"prompts: .(dtdd|names). is none; known: "):
        elevater.get_config(f"prompts={tmp_path}/prompts.json")


@pytest.mark.slow
def test_evaluation_may_set_its_own_resize(workdir, tmp_path):
    """Wide pictures, whose class is what stands at their sides: a crop does not see it."""
    (tmp_path / "images").mkdir()
    examples = []
    for i in range(16):
        pixels = np.full((24, 96, 3), 128, np.uint8)
        pixels[:, :24], pixels[:, 72:] = 250 * (i % 2), 250 * (i % 2)
        path = tmp_path / "images" / f"{i}.png"
        Image.fromarray(pixels).save(path)
        examples.append(records.Example(path.read_bytes(), ("a",), str(i), i % 2))
    split = records.write_split(tmp_path, "train", examples, 16, 1)
    what = {"statistics": {}, "settings": {}, "class_names": NAMES}
    records.write_description(tmp_path, {"train": split}, **what)
    found = {}
    for resize in ("crop", "squash", "model"):
        config = smoke.get_config("tiny,method=iid")
        config.evals = {"probe": {"kind": "linear_probe", "resize": resize}}
        data = {"source": "array_record", "array_record": {"path": str(tmp_path)}}
        config.evals.probe.data = data
        config.evals.probe.probe = {"data": data, "start": "zeros"}
        some = jax.devices()[:1]
        found[resize] = evaluate.run(config, EvaluateConfig(), workdir, devices=some)
    assert found["squash"]["probe/top1"] == 1.0
    assert found["crop"]["probe/top1"] <= 0.5  # all pictures are alike
    assert found["model"] == found["squash"]  # as it was trained
