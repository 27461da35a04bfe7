"""`python -m aced.evaluate --data=...`: data sets and suites without a config."""

import dataclasses
import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest

from aced import evaluators
from aced.config import ConfigError
from aced.data.tokenizers import TokenizerConfig, get_tokenizer
from aced.evaluate import EvaluateConfig, command, comparison, results, run
from aced.evaluators import folders
from aced.evaluators.benchmarks import DataSet
from aced.files import own_files
from aced.models import model_folder
from aced.models.saved import Model, expected_shapes, nested
from aced.models.text import TextConfig
from aced.models.two_tower import TwoTowerConfig
from aced.models.vit import ImageConfig
from tests.commands import call
from tests.evaluators import test_associations, wds_tree


def write_model(folder, seed=0):
    """A random model whose pictures and texts differ much."""
    tokens = TokenizerConfig(kind="shapes", length=8)
    sizes = {"size": "mu", "width": 16, "depth": 1, "mlp": 16, "heads": 2}
    text = TextConfig(**sizes, length=8, vocab_size=get_tokenizer(tokens).vocab_size)
    config = TwoTowerConfig(
        image=ImageConfig(**sizes, patch=8, resolution=16), text=text, tokenizer=tokens
    )
    rng = np.random.default_rng(seed)
    params = {
        name: np.asarray(rng.standard_normal(shape), np.float32)
        for name, shape in expected_shapes(config).items()
    }
    folder.mkdir()
    model_folder.write(Model(config, nested(params), b"", "random"), folder)
    return folder


@pytest.fixture(scope="module", name="place")
def _place(tmp_path_factory):
    """A model, and a folder of three data sets."""
    place = tmp_path_factory.mktemp("place")
    write_model(place / "model")
    wds_tree.three_sets(place / "wds")
    return place


@pytest.fixture(name="evaluate")
def _evaluate(caplog):
    """Evaluates on one device; returns the numbers and the log."""

    def evaluate(place, out="out", **settings):
        settings = {"data": (f"{place}/wds",), **settings}
        wanted = EvaluateConfig(model=f"{place}/model", out=f"{place}/{out}", **settings)
        caplog.clear()
        with caplog.at_level("INFO", logger="absl"):
            numbers = run(None, wanted, "", devices=jax.devices()[:1])
        return numbers, caplog.text

    return evaluate


def content(place, out="out"):
    return own_files.loads(pathlib.Path(place, out, results.FILE).read_bytes())


def test_a_folder_of_data_sets(evaluate, place, monkeypatch):
    numbers, log = evaluate(place)
    assert {name.partition("/")[0] for name in numbers} == {"imagenet_a", "flickr30k", "fmow"}
    assert (numbers["imagenet_a/examples"], numbers["flickr30k/captions"]) == (20, 24)
    assert 0 <= numbers["fmow/worst_group_top1"] <= numbers["fmow/top1"] < 1
    assert "Set 1 of 3: " in log
    assert "Set 3 of 3: " in log
    assert "; ETA 0:0" in log
    kept = content(place)
    assert kept["evaluations"]["imagenet_a"]["numbers"]["top1"] == numbers["imagenet_a/top1"]
    monkeypatch.setattr(evaluators, "build", None)  # nothing is run again
    again, log = evaluate(place, batch_size=64)
    assert again == numbers
    assert log.count("out/results.json already.") == 3


def test_a_part_of_a_suite_is_averaged_under_its_own_name(evaluate, place):
    numbers, log = evaluate(place, suite=("shifts5", "retrieval"), out="part")
    assert numbers["suite/shifts5_partial_1_of_5"] == numbers["imagenet_a/top1"]
    assert numbers["suite/retrieval_partial_1_of_2"] == numbers["flickr30k/mean_r1"]
    assert "suite/shifts5" not in numbers
    assert not any(name.startswith("fmow/") for name in numbers)
    assert "objectnet is missing and left out: there is no folder of this name" in log
    assert log.index("objectnet is missing") < log.index("Set 1 of 2")
    assert "suite/shifts5_partial_1_of_5 is not the average of the suite: 4 of its numbers" in log
    assert content(place, "part")["averages"].keys() == {
        "suite/shifts5_partial_1_of_5",
        "suite/retrieval_partial_1_of_2",
    }


class _KilledError(Exception):
    pass


def test_a_killed_evaluation_goes_on_with_the_missing_sets(evaluate, place, monkeypatch):
    whole, _ = evaluate(place)
    build, started = evaluators.build, []

    def dying(config, model, mesh):
        made = build(config, model, mesh)

        def evaluation(params):
            started.append(config.kind)
            if len(started) == 2:
                raise _KilledError
            return made(params)

        return evaluation

    monkeypatch.setattr(evaluators, "build", dying)
    with pytest.raises(_KilledError):
        evaluate(place, out="killed")
    assert len(content(place, "killed")["evaluations"]) == 1
    again, log = evaluate(place, out="killed")
    assert again == whole
    assert len(started) == 4
    assert "Set 1 of 3" not in log
    assert "Set 2 of 3: " in log


def test_what_has_changed_is_evaluated_again(evaluate, place, tmp_path):
    shutil.copytree(place, tmp_path / "copy", ignore=shutil.ignore_patterns("out"))
    place = tmp_path / "copy"
    data = (f"{place}/wds/wds_imagenet-a",)
    before, _ = evaluate(place, data=data)
    assert "Set 1 of 1" in evaluate(place, data=data, classes="occurring")[1]
    evaluate(place, data=data)
    for name, lines in (("classnames", "abcdefg"), ("zeroshot_classification_templates", ["{c}"])):
        assert "Set 1 of 1" not in evaluate(place, data=data)[1]
        (place / "wds" / "wds_imagenet-a" / f"{name}.txt").write_text("\n".join(lines))
        assert "Set 1 of 1" in evaluate(place, data=data)[1]
    shutil.rmtree(place / "model")
    write_model(place / "model", seed=1)
    after, log = evaluate(place, data=data)
    assert "holds numbers of other weights; they are kept in" in log
    assert after != before
    assert len(list((place / "out").glob("results-*.json"))) == 1


def test_a_workdir_needs_no_config(evaluate, place):
    data = f"{place}/wds/wds_flickr30k"
    done = call("evaluate", f"--workdir={place}/model", f"--data={data}", f"--out={place}/workdir")
    assert done.returncode == 0, done.stderr
    numbers, _ = evaluate(place, data=(data,), out="workdir")
    assert (
        content(place, "workdir")["evaluations"]["flickr30k"]["numbers"]["mean_r1"]
        == (numbers["flickr30k/mean_r1"])
    )


def test_damaged_results_are_named(evaluate, place):
    data = (f"{place}/wds/wds_flickr30k",)
    evaluate(place, data=data, out="damaged")
    file = pathlib.Path(place, "damaged", "results.json")
    file.write_text(file.read_text().replace("24.0", "25.0"))
    with pytest.raises(ConfigError, match=r"results.json is not .*remove it to evaluate again"):
        evaluate(place, data=data, out="damaged")


def test_prompts_of_a_file(evaluate, place, tmp_path):
    words = {"imagenet-a": {"class_names": list(wds_tree.NAMES), "templates": ["a {}"]}}
    (tmp_path / "prompts.json").write_text(json.dumps(words))
    _, log = evaluate(place, prompts=f"{tmp_path}/prompts.json", out="prompts")
    assert "prompts.json: class_names, templates. It has 7 class names of its own" in log
    assert "prompts.json: nothing." in log


def test_names_of_a_config_count_as_a_data_set_s_own(place, tmp_path, monkeypatch):
    """Those of a package are of another number, so that they replace neither."""
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "__init__.py").touch()
    (tmp_path / "open_clip" / "zero_shot_metadata.py").write_text(
        "IMAGENET_CLASSNAMES = ('a', 'b')\nOPENAI_IMAGENET_TEMPLATES = (lambda c: f'a {c}.',)\n"
    )
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    made = folders.evaluation(f"{place}/wds/wds_imagenet-a", DataSet(), folders.Choices())
    for count in (7, 3):
        own = dataclasses.replace(made, class_names=tuple("uvwxyzo"[:count]))
        worded = command._worded("imagenet_a", own, "open_clip:imagenet")
        assert (worded.class_names, worded.templates) == (own.class_names, ("a {}.",))


def test_intervals(evaluate, place):
    data = (f"{place}/wds/wds_imagenet-a",)
    numbers, _ = evaluate(place, data=data, bootstrap=50, out="intervals")
    low, high = (numbers[f"imagenet_a/top1_{end}"] for end in ("low", "high"))
    assert low <= numbers["imagenet_a/top1"] <= high
    assert low < high


def test_a_package_s_names_are_for_data_sets_with_as_many(evaluate, place, tmp_path, monkeypatch):
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "open_clip", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    for names, given in ((wds_tree.NAMES, "class_names, templates"), ("ab", "templates")):
        (tmp_path / "open_clip" / "zero_shot_metadata.py").write_text(
            f"IMAGENET_CLASSNAMES = {tuple(names)}\n"
            "OPENAI_IMAGENET_TEMPLATES = (lambda c: f'a {c}.',)\n"
        )
        data = (f"{place}/wds/wds_imagenet-a",)
        _, log = evaluate(place, data=data, prompts="open_clip:imagenet", out="packaged")
        assert f"imagenet_a takes from open_clip:imagenet: {given}. It has 7" in log


def test_labels_numbered_in_a_longer_list(evaluate, place, tmp_path):
    """The classes 2 and 5 of seven, and the same pictures as a data set of these two."""
    labels = np.random.default_rng(4).integers(0, 2, 30)
    pictures = {"short": [0, 1], "long": [2, 5]}
    for name, numbers in pictures.items():
        members = [[("cls", str(numbers[label]).encode())] for label in labels]
        names = wds_tree.NAMES if name == "long" else [wds_tree.NAMES[i] for i in (2, 5)]
        wds_tree.write(tmp_path / "sets" / name, members, names=names)
    data = {"data": (str(tmp_path / "sets"),)}
    words = {"long": {"class_names": ["", "", wds_tree.NAMES[2], "", "", wds_tree.NAMES[5], ""]}}
    (tmp_path / "names.json").write_text(json.dumps(words))

    def numbers_of(name, numbers):
        return {k.rpartition("/")[2]: v for k, v in numbers.items() if k.startswith(f"{name}/")}

    every, log = evaluate(place, **data, out="named")
    assert "pictures of 2 classes, and all 7 named classes are candidates" in log
    short = numbers_of("short", every)
    assert numbers_of("long", every) != short
    for subset in ({"classes": "occurring"}, {"prompts": f"{tmp_path}/names.json"}):
        found, log = evaluate(place, **data, **subset, out=next(iter(subset)))
        assert numbers_of("long", found) == short
        assert "are candidates" not in log


def test_pictures_of_classes_without_a_name_are_left_out(evaluate, place, tmp_path):
    words = {"imagenet_a": {"class_names": ["", *wds_tree.NAMES[1:]]}}
    (tmp_path / "names.json").write_text(json.dumps(words))
    data = (f"{place}/wds/wds_imagenet-a",)
    numbers, log = evaluate(place, data=data, prompts=f"{tmp_path}/names.json", out="nameless")
    labels = np.random.default_rng(1).integers(0, len(wds_tree.NAMES), 20)
    assert numbers["imagenet_a/examples"] == np.sum(labels > 0) < 20
    assert "they have no label, or one without a name" in log


def test_winogavil(evaluate, place, tmp_path):
    test_associations.write(tmp_path / "winogavil")
    data = (str(tmp_path),)
    numbers, _ = evaluate(place, data=data, suite=("datacomp38",), out="winogavil")
    assert numbers["winogavil/cues"] == 4
    assert numbers["suite/datacomp38_partial_1_of_38"] == numbers["winogavil/jaccard_10_12"]


@pytest.mark.slow
def test_the_command_writes_a_table_and_a_plot_beside_baselines(place):
    flags = (f"--model={place}/model", f"--data={place}/wds/*", "--json")
    first = call("evaluate", *flags, f"--out={place}/first/evaluation")
    numbers = json.loads(first.stdout)
    baseline = f"--baselines={place}/first/evaluation/results.json"
    second = call("evaluate", *flags, baseline)
    assert json.loads(second.stdout) == numbers
    table = (place / "model" / "evaluation" / "results.md").read_text()
    assert table.startswith("|  | model | first |\n| --- | ---: | ---: |\n")
    shown = f"{100 * numbers['fmow/top1']:.2f}"
    assert f"| fmow/top1 | {shown} | {shown} |" in table
    assert (place / "model" / "evaluation" / "results.svg").read_text().startswith("<?xml")


def test_table_and_plot():
    models = {
        "ours": {"a/top1": 0.5, "a/top5": 0.9, "b/mean_r1": 0.25, "suite/s": 0.375},
        "other|s": {"a/top1": 0.625, "c/top1": 1.0},
    }
    names = comparison.main_numbers(models["ours"], ("a/top5", "c/top1"))
    assert names == ["suite/s", "a/top5", "b/mean_r1"]
    names = comparison.main_numbers(models["ours"])
    assert comparison.table(models, names).splitlines() == [
        "|  | ours | other\\|s |",
        "| --- | ---: | ---: |",
        "| suite/s | 37.50 | - |",
        "| a/top1 | 50.00 | 62.50 |",
        "| b/mean_r1 | 25.00 | - |",
    ]
    assert comparison.plot(models, names) == comparison.plot(models, names)


def test_numbers_of_answers_and_captions():
    numbers = {
        **{"answers/accuracy": 0.5, "answers/soft_accuracy": 0.6, "words/exact": 0.25},
        **{"captions/cider": 1.25, "captions/exact": 0.0},
    }
    names = comparison.main_numbers(numbers)
    assert names == ["answers/soft_accuracy", "words/exact", "captions/cider"]
    assert "| captions/cider | 1.250 |" in comparison.table({"ours": numbers}, names)
    # CIDEr, which is no share, has no place on an axis in per cent.
    without = [name for name in names if name != "captions/cider"]
    assert comparison.plot({"ours": numbers}, names) == comparison.plot({"ours": numbers}, without)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "There is nothing to evaluate: give data sets"),
        (("--which=first",), "flag --which=first: value should be one of <last|best>"),
        (("--suite=shifts5",), "--suite needs the folder of its data sets"),
        (("--data=/nowhere",), "--data=/nowhere has no data sets"),
        (("--data={}/wds", "--suite=datacomp"), "none of the suites: stableeval27_reconstructed"),
        (("--data={}/wds", "--prompts=open_clip"), "there are open_clip:imagenet"),
        (("--data={}/wds", "--prompts=none.json"), "there is no file none.json"),
        (
            ("--data={}/wds/wds_flickr30k", "--kind=zeroshot"),
            "has no classes, which --kind=zeroshot needs",
        ),
        (("--data={}/wds", "--baselines=none.json"), "there is no file none.json"),
    ],
)
def test_what_cannot_be_evaluated(place, flags, message):
    flags = [flag.format(place) for flag in flags]
    done = call("evaluate", f"--model={place}/model", f"--out={place}/none", *flags)
    assert done.returncode == 1
    assert message in done.stderr


def test_without_a_model():
    done = call("evaluate", "--data=/data")
    assert done.returncode == 1
    assert "There is no model: give --workdir=RUN or --model=FOLDER" in done.stderr
