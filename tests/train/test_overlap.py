"""Pictures of evaluations that are trained on are counted and named, in any data set."""

import json
import logging

import jax
import numpy as np
import pytest
from PIL import Image

from aced.config import ConfigError, to_config
from aced.data import records
from aced.data.sources import ArrayRecordConfig, DataConfig, MemberConfig
from aced.data.sources.tars import WebDatasetConfig
from aced.evaluators import EvalConfig
from aced.evaluators.config import ProbeConfig
from aced.prepare.command import PrepareConfig, prepare
from aced.train import loop, overlap
from aced.train.config import TrainConfig, parse
from configs import small


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """40 pictures of two vendors, and one that both have a line about."""
    folder = tmp_path_factory.mktemp("pairs")
    lines = []
    for i in range(41):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 9, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(
            {"image": f"{i}.png", "caption": f"no. {i}", "vendor": ("google", "web")[i % 2]}
        )
    lines.append({"image": "40.png", "caption": "another", "vendor": "web"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def prepared(pairs, out, **settings):
    config = PrepareConfig(
        images=str(pairs),
        captions=str(pairs / "captions.jsonl"),
        out=str(pairs / out),
        threads=2,
        **settings,
    )
    prepare(config)
    return str(pairs / out)


@pytest.fixture(scope="module")
def whole(pairs):
    """One command: everything, what is clean of it, and one split for validation."""
    return prepared(pairs, "whole", val=8, clean_column="vendor=google")


@pytest.fixture(scope="module")
def other(pairs):
    """The same pairs with another hold-out."""
    return prepared(pairs, "other", val=8, seed=1)


def keys(path, split):
    source = records.open_dataset(path, split)
    return [source[i]["key"] for i in range(len(source))]


def data(path, split="train", **settings):
    return DataConfig("array_record", array_record=ArrayRecordConfig(path, split), **settings)


def run_of(path, evaluated, split="val", **settings):
    evals = {"retrieval": EvalConfig(data=data(evaluated, split))}
    return TrainConfig(
        total_steps=1, batch_size=2, data=data(path), **({"evals": evals} | settings)
    )


def check(settings, caplog):
    """What is logged at the start of a run: levels and messages."""
    caplog.clear()
    with caplog.at_level(logging.INFO), overlap.checked(settings):
        pass
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_prepare_keeps_val_out_of_all_and_clean(whole, caplog):
    some = {split: keys(whole, split) for split in ("train", "clean", "val")}
    assert (len(some["train"]), len(some["val"])) == (33, 8)
    assert sorted(some["train"] + some["val"]) == sorted(f"{i}.png" for i in range(41))
    evens = {f"{i}.png" for i in range(0, 40, 2)}  # 40.png has a line of another vendor
    assert some["clean"] == [key for key in some["train"] if key in evens]
    statistics = records.read_description(whole)["statistics"]
    assert (statistics["images"], statistics["captions"]) == (41, 42)
    assert statistics["splits"]["clean"]["images"] == len(some["clean"])
    assert statistics["histograms"]["longer_side"] == {"8 to 15": 41}

    config = small.get_config(f"data={whole},method=aced")
    reference = config.before.reference
    assert reference.data.array_record.to_dict() == {"path": whole, "split": "clean"}
    assert reference.evals.retrieval.data.array_record.split == "val"
    assert check(parse(config), caplog) == []


@pytest.mark.slow
def test_data_from_one_prepare_command_give_no_warning(whole, other, tmp_path, caplog):
    config = small.get_config(f"data={whole},method=aced")
    config.overlap = "refuse"
    config.batch_size = 8
    config.before.reference.batch_size = 8
    config.method.selection.chunks = 1
    config.method.selection.filter_ratio = 0.5
    for of in (config, config.before.reference):
        of.total_steps = 1
        for tower in (of.method.model.image, of.method.model.text):
            tower.depth = 1
            tower.width = 32
            tower.mlp = 32
            tower.heads = 1
    devices = jax.devices()[:1]
    loop.run(config, str(tmp_path / "run"), devices)
    assert "pictures of config" not in caplog.text
    config.before.reference.data.array_record = {"path": other, "split": "train"}
    with pytest.raises(ConfigError, match=r"trained on in config\.before\.reference\.data"):
        loop.run(config, str(tmp_path / "other"), devices)
    assert not (tmp_path / "other").exists()


def test_separate_hold_outs_report_the_exact_overlap(whole, other, caplog):
    common = [key for key in keys(other, "val") if key in set(keys(whole, "train"))]
    assert 4 <= len(common) <= 8
    ((level, message),) = check(run_of(whole, other), caplog)
    assert level == "WARNING"
    assert f"{len(common)} of 8 pictures of config.evals.retrieval ({other}, split val)" in message
    assert f"trained on in config.data ({whole}, split train): {', '.join(common[:3])}" in message
    with pytest.raises(ConfigError, match=f"overlap = 'refuse', and {len(common)} of 8 pictures"):
        check(run_of(whole, other, overlap="refuse"), caplog)
    assert check(run_of(whole, other, overlap="allow"), caplog) == []
    assert check(run_of(whole, whole, overlap="refuse"), caplog) == []


def test_only_evaluated_examples_count_as_overlap(whole, other, caplog):
    first = sum(key in set(keys(whole, "train")) for key in keys(other, "val")[:5])
    evals = {"first": EvalConfig(data=data(other, "val"), max_examples=5)}
    ((_, message),) = check(run_of(whole, other, evals=evals), caplog)
    assert f"{first} of 5 pictures of config.evals.first " in message


def test_data_of_earlier_runs_are_compared_with_later_evaluations(whole, other, caplog):
    # The learner's own evaluation is disjoint from its data, but not from the reference's. What the
    # reference is evaluated on by itself may be trained on later.
    reference = run_of(other, other)
    settings = run_of(whole, whole, before={"reference": to_config(reference)})
    ((_, message),) = check(settings, caplog)
    common = len(set(keys(whole, "val")) & set(keys(other, "train")))
    assert f"{common} of 8 pictures of config.evals.retrieval ({whole}, split val)" in message
    assert f"trained on in config.before.reference.data ({other}, split train)" in message


def test_probe_data_and_mixture_members_are_compared(whole, other, caplog):
    probe = EvalConfig(
        kind="linear_probe", data=data(whole, "clean"), probe=ProbeConfig(data=data(whole))
    )
    member = MemberConfig("array_record", array_record=ArrayRecordConfig(other, "val"))
    mixture = DataConfig("mixture", mixture={"shapes": MemberConfig(), "web": member})
    settings = TrainConfig(total_steps=1, data=mixture, evals={"probe": probe})
    messages = [message for _, message in check(settings, caplog)]
    count = len(keys(whole, "clean"))
    common = len(set(keys(whole, "clean")) & set(keys(other, "val")))
    assert len(messages) == 2
    assert f"{common} of {count} pictures of config.evals.probe" in messages[0]
    assert "trained on in config.data.mixture.web" in messages[0]
    assert f"{count} of {count} pictures of config.evals.probe" in messages[1]
    assert "trained on in config.evals.probe.probe.data" in messages[1]


def test_data_without_hashes_are_listed_in_one_line(whole, tmp_path, caplog):
    older = tmp_path / "older"
    older.mkdir()
    example = records.Example(b"picture", ("a text",), "a.png")
    split = records.write_split(older, "train", [example], 1, 1)
    del split[0]["hashes_sha256"]
    records.write_description(older, {"train": split}, statistics={}, settings={})
    tars = DataConfig("webdataset", webdataset=WebDatasetConfig("x.tar"))
    evals = {"tars": EvalConfig(data=tars), "own": EvalConfig(data=data(whole, "val"))}
    ((level, message),) = check(run_of(str(older), whole, evals=evals), caplog)
    assert level == "INFO"
    assert f"data ({older}, prepared before there were hashes), evals.tars (webdataset)." in message


def test_builtin_scenes_are_not_listed(caplog):
    settings = TrainConfig(total_steps=1, evals={"retrieval": EvalConfig()})
    assert check(settings, caplog) == []


def test_examples_without_images_do_not_overlap(tmp_path, caplog):
    sentences = [records.Example(b"", (f"text {i}",), f"{i}") for i in range(3)]
    splits = {
        name: records.write_split(tmp_path, name, sentences, 3, 1) for name in ("train", "val")
    }
    records.write_description(tmp_path, splits, statistics={}, settings={})
    assert check(run_of(str(tmp_path), str(tmp_path)), caplog) == []


def test_damaged_hash_file_is_named(pairs, whole, caplog):
    file = pairs / "whole" / "val.hashes"
    data = file.read_bytes()
    for damaged in (data[:-1], data + b"x", bytes([data[0] ^ 1]) + data[1:], None):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        with pytest.raises(records.DatasetError, match=r"val\.hashes cannot be read .* prepare"):
            check(run_of(whole, whole), caplog)
    file.write_bytes(data)


def test_clean_value_without_examples_is_refused(pairs):
    with pytest.raises(ValueError, match="'bing' in column 'vendor' of all its lines in"):
        prepared(pairs, "none", clean_column="vendor=bing")
    with pytest.raises(ConfigError, match="must be COLUMN=VALUE"):
        prepared(pairs, "none", clean_column="vendor")


def test_only_clean_examples_can_be_held_out(pairs):
    path = prepared(pairs, "clean_val", val=5, val_clean=True, clean_column="vendor=google")
    held_out, clean = keys(path, "val"), keys(path, "clean")
    assert sorted(held_out + clean) == sorted(f"{i}.png" for i in range(0, 40, 2))
