"""Evaluations of the data sets in folders, by their files."""

import json

import pytest

from aced.config import ConfigError
from aced.data import records
from aced.data.records import DatasetError
from aced.data.sources import open_source
from aced.evaluators import benchmarks, folders
from aced.evaluators.benchmarks import DataSet
from aced.evaluators.folders import Choices
from tests.data import many
from tests.evaluators import wds_tree

NONE = DataSet()


def parquet(path, count=6, names=("cat", "dog"), label="label", several=False, **more):
    """A file as on the hub: pictures, and numbers of classes with names in the metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = [{"bytes": many.jpeg(i), "path": None} for i in range(count)]
    columns = {"img": pictures} | more
    features = {"img": {"_type": "Image"}}
    if label:
        numbers = [i % 2 for i in range(count)]
        columns[label] = [[n] for n in numbers] if several else numbers
        feature = {"names": list(names), "_type": "ClassLabel"}
        features[label] = {"feature": feature, "_type": "List"} if several else feature
    table = pa.table(columns)
    about = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": about}), path)


def prepared(folder, label, split="train", names=None):
    folder.mkdir(parents=True, exist_ok=True)
    examples = [
        records.Example(many.jpeg(i), ("a cat",), str(i), i % 2 if label else None)
        for i in range(4)
    ]
    made = records.write_split(folder, split, examples, 4, 1)
    what = {"statistics": {}, "settings": {}, "class_names": names}
    records.write_description(folder, {split: made}, **what)


def first(evaluation):
    return open_source(evaluation.data)[0]


def test_sets_are_found_alone_in_a_folder_and_by_a_pattern(tmp_path):
    for name in ("wds_cifar10", "wds_vtab-dtd_test"):
        wds_tree.classes(tmp_path / name, 4)
    parquet(tmp_path / "food101" / "data" / "test-00000-of-00001.parquet")
    prepared(tmp_path / "mine" / "test", label=True)
    (tmp_path / "notes").mkdir()
    every = {
        "cifar10": f"{tmp_path}/wds_cifar10",
        "dtd": f"{tmp_path}/wds_vtab-dtd_test",
        "food101": f"{tmp_path}/food101",
        "mine": f"{tmp_path}/mine",
    }
    assert folders.find([str(tmp_path)]) == folders.find([f"{tmp_path}/*"]) == every
    assert folders.find([f"{tmp_path}/wds_cifar10/"]) == {"cifar10": every["cifar10"]}
    inner = folders.find([f"{tmp_path}/wds_cifar10/test"])
    assert inner == {"cifar10": f"{every['cifar10']}/test"}
    assert folders.find([every["mine"], every["dtd"]]).keys() == {"mine", "dtd"}
    with pytest.raises(ConfigError, match=r"notes has no data sets. A data set is a folder with"):
        folders.find([f"{tmp_path}/notes"])
    wds_tree.classes(tmp_path / "cifar10", 4)
    with pytest.raises(ConfigError, match="both hold a data set 'cifar10'"):
        folders.find([str(tmp_path)])


def test_classes_in_tars(tmp_path):
    folder = wds_tree.classes(tmp_path / "a", 5)
    made = folders.evaluation(str(folder), NONE, Choices(batch_size=8))
    assert (made.kind, made.classes_in, made.batch_size) == ("zeroshot", "label", 8)
    source = open_source(made.data)
    assert source.class_names == wds_tree.NAMES
    assert source.templates == tuple(t.replace("{c}", "{}") for t in wds_tree.TEMPLATES)
    assert "label" in source[0]
    inner = folders.evaluation(f"{folder}/test", NONE, Choices())
    assert inner.data == made.data


def test_several_classes_in_tars(tmp_path):
    for kind in ("multilabel", ""):
        folder = wds_tree.several_classes(tmp_path / f"a{kind}", 5, kind=kind)
        made = folders.evaluation(str(folder), NONE, Choices())
        assert (made.kind, made.classes_in) == ("zeroshot", "captions")
        assert set(first(made)["texts"]) <= set(wds_tree.NAMES)


def test_several_captions_in_tars(tmp_path):
    for kind in ("retrieval", ""):
        folder = wds_tree.captions(tmp_path / f"a{kind}", 5, kind=kind)
        made = folders.evaluation(str(folder), NONE, Choices())
        assert made.kind == "retrieval"
        assert first(made)["texts"] == ("red 0", "a drawing of 0", "number 0, red")


def test_groups_in_tars_are_those_of_known_data_sets(tmp_path):
    folder = str(wds_tree.groups(tmp_path / "a", 5))
    assert first(folders.evaluation(folder, benchmarks.SETS["fmow"], Choices()))["group"] in (
        0,
        1,
        2,
    )
    assert "group" not in first(folders.evaluation(folder, NONE, Choices()))


def test_a_missing_tar_is_noticed(tmp_path):
    folder = wds_tree.classes(tmp_path / "a", 6, tars=3)
    (folder / "test" / "1.tar").unlink()
    made = folders.evaluation(str(folder), NONE, Choices())
    with pytest.raises(DatasetError, match=r"holds 2 tars, but .*nshards.txt states 3; copy"):
        open_source(made.data)


def test_probes_train_on_the_split_train(tmp_path):
    folder = wds_tree.classes(tmp_path / "a", 5)
    with pytest.raises(ConfigError, match=r"has no train/\*.tar, on which a probe is trained"):
        folders.evaluation(str(folder), NONE, Choices(kind="linear_probe"))
    wds_tree.classes(folder, 7, split="train")
    made = folders.evaluation(str(folder), NONE, Choices(kind="linear_probe"))
    assert made.kind == "linear_probe"
    assert (len(open_source(made.data)), len(open_source(made.probe.data))) == (5, 7)
    inner = folders.evaluation(f"{folder}/test", NONE, Choices(kind="linear_probe"))
    assert (inner.data, inner.probe) == (made.data, made.probe)
    parquet(tmp_path / "b" / "train-0.parquet", 4)
    parquet(tmp_path / "b" / "test-0.parquet", 3)
    made = folders.evaluation(str(tmp_path / "b"), NONE, Choices(kind="linear_probe"))
    assert (len(open_source(made.data)), len(open_source(made.probe.data))) == (3, 4)
    only = wds_tree.captions(tmp_path / "c", 5)
    with pytest.raises(ConfigError, match="has no classes, which --kind=linear_probe needs"):
        folders.evaluation(str(only), NONE, Choices(kind="linear_probe"))


def test_probes_are_not_trained_on_their_evaluation_data(tmp_path):
    folder = wds_tree.classes(tmp_path / "a", 5)
    with pytest.raises(ConfigError, match=r"a has no train/\*.tar, on which a probe is trained"):
        folders.evaluation(f"{folder}/test", NONE, Choices(kind="linear_probe"))
    wds_tree.classes(folder, 7, split="train")
    with pytest.raises(ConfigError, match="a/train is what a probe is trained on; evaluate it on"):
        folders.evaluation(f"{folder}/train", NONE, Choices(kind="linear_probe"))


def test_retrieval_reads_captions_of_pictures_with_classes(tmp_path):
    both = [[("cls", b"1"), ("txt", f"picture {i}".encode())] for i in range(4)]
    wds_tree.write(tmp_path / "tars", both)
    parquet(tmp_path / "parquet" / "test-0.parquet", text=[f"picture {i}" for i in range(6)])
    prepared(tmp_path / "records" / "test", label=True)
    found = {"tars": "picture 0", "parquet": "picture 0", "records": "a cat"}
    for name, text in found.items():
        assert folders.evaluation(f"{tmp_path}/{name}", NONE, Choices()).kind == "zeroshot"
        made = folders.evaluation(f"{tmp_path}/{name}", NONE, Choices(kind="retrieval"))
        assert (made.kind, made.classes_in, first(made)["texts"]) == ("retrieval", "label", (text,))
    wds_tree.classes(tmp_path / "no_captions", 4)
    parquet(tmp_path / "no_captions_either" / "test-0.parquet")
    for name in ("no_captions", "no_captions_either"):
        with pytest.raises(ConfigError, match="has no captions, which --kind=retrieval needs"):
            folders.evaluation(f"{tmp_path}/{name}", NONE, Choices(kind="retrieval"))


def test_one_class_instead_of_several_is_refused(tmp_path):
    wds_tree.classes(tmp_path / "voc2007", 4)
    prepared(tmp_path / "records" / "test", label=True)
    for folder in ("voc2007", "records"):
        with pytest.raises(ConfigError, match="has one class per picture, where several are"):
            folders.evaluation(f"{tmp_path}/{folder}", DataSet(shows_several=True), Choices())
    found = folders.find([f"{tmp_path}/voc2007"])
    evaluations, missing = folders.chosen(found, ["elevater20"], Choices())
    assert not evaluations
    assert "has one class per picture, where several are" in missing["voc2007_multilabel"]


def test_classes_in_parquet_of_any_names(tmp_path):
    parquet(tmp_path / "a" / "test-0.parquet", label="fine_label", coarse_label=[0] * 6)
    made = folders.evaluation(str(tmp_path / "a"), NONE, Choices())
    source = open_source(made.data)
    assert (made.kind, source.class_names, source.split) == ("zeroshot", ("cat", "dog"), "test")
    assert [source[i]["label"] for i in range(3)] == [0, 1, 0]
    assert made.data.parquet.image == "img"
    with pytest.raises(ConfigError, match=r"--label=species: .*\['fine_label'\]"):
        folders.evaluation(str(tmp_path / "a"), NONE, Choices(label="species"))
    parquet(tmp_path / "several" / "validation-0.parquet", label="objects", several=True)
    made = folders.evaluation(str(tmp_path / "several"), NONE, Choices())
    assert (made.classes_in, first(made)["texts"]) == ("captions", ("cat",))
    parquet(tmp_path / "named" / "0.parquet", label="", cls=["b", "a"] * 3)
    made = folders.evaluation(str(tmp_path / "named"), NONE, Choices())
    assert (open_source(made.data).class_names, first(made)["label"]) == (("a", "b"), 1)


def test_captions_in_parquet(tmp_path):
    parquet(tmp_path / "a" / "test-0.parquet", label="", sentences=[["one", "two"]] * 6)
    made = folders.evaluation(str(tmp_path / "a"), NONE, Choices())
    assert (made.kind, first(made)["texts"]) == ("retrieval", ("one", "two"))
    parquet(tmp_path / "b" / "test-0.parquet", label="")
    with pytest.raises(ConfigError, match="no column of classes, and none of captions"):
        folders.evaluation(str(tmp_path / "b"), NONE, Choices())
    parquet(tmp_path / "c" / "odd-0.parquet")
    parquet(tmp_path / "c" / "train-0.parquet")
    with pytest.raises(ConfigError, match=r"none of the splits test, validation, val; .*train"):
        folders.evaluation(str(tmp_path / "c"), NONE, Choices())


def test_prepared_data_sets(tmp_path):
    prepared(tmp_path / "a", label=True, split="val", names=["cat", "dog"])
    made = folders.evaluation(str(tmp_path / "a"), NONE, Choices())
    assert (made.kind, first(made)["label"]) == ("zeroshot", 0)
    prepared(tmp_path / "b" / "test", label=False)
    assert folders.evaluation(str(tmp_path / "b"), NONE, Choices()).kind == "retrieval"
    several = folders.evaluation(str(tmp_path / "b"), DataSet(shows_several=True), Choices())
    assert several.classes_in == "captions"


def test_a_suite_has_only_its_own_data_sets_and_names_missing_ones(tmp_path):
    for name in ("wds_imagenet-a", "wds_imagenetv2_test", "wds_cifar10"):
        wds_tree.classes(tmp_path / name, 4)
    wds_tree.several_classes(tmp_path / "wds_objectnet", 4)
    found = folders.find([str(tmp_path)])
    evaluations, missing = folders.chosen(found, ["shifts5"], Choices())
    assert evaluations.keys() == {"imagenet_a", "imagenet_v2"}
    assert missing.keys() == {"imagenet_r", "imagenet_sketch", "objectnet"}
    assert missing["imagenet_r"] == "there is no folder of this name"
    assert "several classes per picture, where one is expected" in missing["objectnet"]
    evaluations, missing = folders.chosen(found, [], Choices())
    assert evaluations.keys() == {"imagenet_a", "imagenet_v2", "cifar10", "objectnet"}
    assert not missing


def test_folders_of_elevaters_toolkit():
    folders_of = {
        **{"caltech-101": "caltech101", "cifar-10": "cifar10", "cifar-100": "cifar100"},
        **{"fer-2013": "fer2013", "food-101": "food101", "oxford-flower-102": "flowers102"},
        **{"oxford-iiit-pets": "oxford_pets", "resisc45_clip": "resisc45"},
        **{"voc-2007-classification": "voc2007_multilabel", "eurosat_clip": "eurosat"},
        "fgvc-aircraft-2013b-variants102": "fgvc_aircraft",
    }
    assert {name: benchmarks.known_name(name) for name in folders_of} == folders_of


def test_a_damaged_data_set_of_a_suite_is_missing(tmp_path):
    for name in ("imagenet_a", "imagenet_r", "imagenet_v2", "imagenet_sketch"):
        wds_tree.classes(tmp_path / name, 6, tars=3)
    (tmp_path / "imagenet_a" / "test" / "1.tar").unlink()
    (tmp_path / "imagenet_r" / "test" / "1.tar").write_bytes(b"no tar" * 1000)
    (tmp_path / "imagenet_v2" / "dataset_type.txt").write_bytes(b"\xff")
    found = folders.find([str(tmp_path)])
    evaluations, missing = folders.chosen(found, ["shifts5"], Choices())
    assert evaluations.keys() == {"imagenet_sketch"}
    assert "holds 2 tars" in missing["imagenet_a"]
    assert "imagenet_r/test/1.tar" in missing["imagenet_r"]
    assert "dataset_type.txt" in missing["imagenet_v2"]


def test_elevaters_data_sets_have_their_own_settings(tmp_path):
    wds_tree.several_classes(tmp_path / "voc2007", 4)
    wds_tree.classes(tmp_path / "wds_kitti_closest_vehicle_distance", 4)
    evaluations, _ = folders.chosen(folders.find([str(tmp_path)]), ["elevater20"], Choices())
    assert evaluations["voc2007_multilabel"].classes_in == "captions"
    assert evaluations["kitti_distance_whole"].resize == "squash"
    wds_tree.classes(tmp_path / "wds_kitti_closest_vehicle_distance", 4, split="train")
    both = ["elevater20_probe", "elevater20"]
    evaluations, _ = folders.chosen(folders.find([str(tmp_path)]), both, Choices())
    assert evaluations["kitti_distance_whole_probe"].kind == "linear_probe"
    assert evaluations["kitti_distance_whole"].kind == "zeroshot"
