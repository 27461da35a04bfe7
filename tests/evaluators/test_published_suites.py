"""Suites of published data sets: what they have, and how a part of them is averaged."""

import csv
import pathlib

import numpy as np
import pytest

from aced.config import ConfigError
from aced.evaluators import benchmarks

TABLE = pathlib.Path(__file__).with_name("published_mobileclip.csv")


def published():
    """The numbers of each MobileCLIP by our names."""
    lines = [x for x in TABLE.read_text().splitlines() if not x.startswith("#")]
    rows = list(csv.DictReader(lines))
    return [{row["number"]: float(row[model]) for row in rows} for model in ("s0", "s1", "s2")]


@pytest.mark.parametrize(
    ("suite", "averages"),
    [("stableeval27_reconstructed", (63.64, 67.90, 69.83)), ("datacomp38", (58.1, 61.3, 63.7))],
)
def test_published_numbers_give_the_published_averages(suite, averages):
    digits = len(str(averages[0]).partition(".")[2])
    for numbers, average in zip(published(), averages, strict=True):
        found = benchmarks.average(suite, numbers)
        assert found.keys() == {f"suite/{suite}"}
        assert round(100 * found[f"suite/{suite}"], digits) == average


def test_the_reconstruction_is_not_called_the_authors_list():
    about = benchmarks.SUITES["stableeval27_reconstructed"].description
    assert "not the authors' list" in about
    assert "not public" in about


@pytest.mark.parametrize(
    ("suite", "size"),
    [
        ("stableeval27_reconstructed", 27),
        ("datacomp38", 38),
        ("datacomp38_top1", 38),
        ("elevater20", 20),
        ("elevater20_probe", 20),
        ("shifts5", 5),
        ("retrieval", 2),
    ],
)
def test_sizes(suite, size):
    assert len(benchmarks.numbers(suite)) == len(set(benchmarks.numbers(suite))) == size
    assert set(benchmarks.SUITES[suite].numbers) <= set(benchmarks.SETS)


def test_top1_of_the_38_is_a_number_of_each_classified_data_set():
    numbers = benchmarks.SUITES["datacomp38_top1"].numbers
    others = {name: number for name, number in numbers.items() if number != "top1"}
    assert others == {
        "flickr30k": "mean_r1",
        "mscoco": "mean_r1",
        "winogavil": "jaccard_10_12",
    }
    assert benchmarks.average("datacomp38_top1", published()[0]).keys() == {"suite/datacomp38_top1"}


def test_a_part_of_a_suite_is_not_called_the_suite():
    numbers = published()[0]
    there = benchmarks.numbers("datacomp38")[:21]
    found = benchmarks.average("datacomp38", {name: numbers[name] for name in there})
    mean = np.mean([numbers[name] for name in there])
    assert found == {"suite/datacomp38_partial_21_of_38": pytest.approx(mean)}
    assert len(benchmarks.missing("datacomp38", there)) == 17
    assert benchmarks.average("retrieval", {"cifar10/top1": 1.0}) == {}


def test_probes_have_names_of_their_own():
    assert "cifar10_probe/top1" in benchmarks.numbers("elevater20_probe")
    assert "cifar10/top1" in benchmarks.numbers("elevater20")


def test_unknown_suite():
    with pytest.raises(ConfigError, match="none of the suites: stableeval27_reconstructed, "):
        benchmarks.numbers("datacomp")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("wds_cifar10", "cifar10"),
        ("wds_vtab-caltech101_test", "caltech101"),
        ("wds_vtab-flowers_test", "flowers102"),
        ("wds_imagenet-a", "imagenet_a"),
        ("wds_imagenetv2_test", "imagenet_v2"),
        ("wds_wilds-fmow_test", "fmow"),
        ("wds_fairness-dollar_street_test", "dollar_street"),
        ("wds_dollar_street_test", "dollar_street"),
        ("wds_voc2007", "voc2007"),
        ("wds_voc2007_multilabel", "voc2007_multilabel"),
        ("wds_vtab-kitti_closest_vehicle_distance_test", "kitti_distance"),
        ("mscoco_2014_5k_test_image_text_retrieval", "mscoco"),
        ("imagenet_1k", "imagenet"),
        ("My-Own Set", "my_own_set"),
    ],
)
def test_data_sets_are_known_by_the_names_of_their_folders(folder, name):
    assert benchmarks.known_name(folder) == name


def test_every_other_name_is_plain():
    for name, about in benchmarks.SETS.items():
        assert all(benchmarks.plain(folder) == folder for folder in (name, *about.folders))
