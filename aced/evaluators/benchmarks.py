"""Data sets and suites that papers report, as two tables.

A data set is a line of `SETS`: its name here, the other names of its folder, and what its
evaluation needs. A suite is an entry of `SUITES`: the number of each of its data sets. Tasks and
metrics of DataComp are those of tasklist.yml in mlfoundations/datacomp. FairFace and UTKFace have
no main metric there and are in no average.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from aced.config import ConfigError
from aced.evaluators import suites

Kind = Literal["zeroshot", "linear_probe", "retrieval"]
PROBE = "_probe"  # ends the names of linear probes


class DataSet(NamedTuple):
    """What is known of a data set."""

    folders: tuple[str, ...] = ()  # names of its folder besides its own; see `plain`
    group: str = ""  # where tars have the number of a picture's group, see WebDatasetConfig.group
    resize: Literal["model", "squash", "crop"] = "model"
    shows_several: bool = False  # whether pictures show several classes


class Suite(NamedTuple):
    """The number of each data set, and where the list is from."""

    description: str
    numbers: Mapping[str, str]
    kind: Kind = "zeroshot"  # of the data sets that have classes


SETS = {
    "caltech101": DataSet(("caltech_101",)),
    "camelyon17": DataSet(),
    "cifar10": DataSet(("cifar_10",)),
    "cifar100": DataSet(("cifar_100",)),
    "clevr_count_all": DataSet(),
    "clevr_closest_object_distance": DataSet(),
    "country211": DataSet(),
    "dollar_street": DataSet(group=".npy:0"),  # quarter of the household's income
    "dtd": DataSet(),
    "eurosat": DataSet(("eurosat_clip",)),
    "fer2013": DataSet(("fer_2013",)),
    "fgvc_aircraft": DataSet(("fgvc_aircraft_2013b_variants102",)),
    "flickr30k": DataSet(("flickr_1k_test_image_text_retrieval",)),
    "flowers102": DataSet(("flowers", "oxford_flower_102")),
    "fmow": DataSet(group=".npy:0"),  # region
    "food101": DataSet(("food_101",)),
    "geode": DataSet(group=".npy:0"),  # region
    "gtsrb": DataSet(),
    "hateful_memes": DataSet(),
    "imagenet": DataSet(("imagenet1k", "imagenet_1k")),
    "imagenet_a": DataSet(),
    "imagenet_o": DataSet(),
    "imagenet_r": DataSet(),
    "imagenet_sketch": DataSet(),
    "imagenet_v2": DataSet(("imagenetv2",)),
    "iwildcam": DataSet(),
    "kitti_distance": DataSet(("kitti_closest_vehicle_distance",)),
    # ELEVATER does not crop these pictures.
    "kitti_distance_whole": DataSet(
        ("kitti_distance", "kitti_closest_vehicle_distance"), resize="squash"
    ),
    "mnist": DataSet(),
    "mscoco": DataSet(("coco", "mscoco_captions", "mscoco_2014_5k_test_image_text_retrieval")),
    "objectnet": DataSet(),
    "oxford_pets": DataSet(("pets", "oxford_iiit_pets")),
    "patch_camelyon": DataSet(("pcam",)),
    "rendered_sst2": DataSet(("renderedsst2",)),
    "resisc45": DataSet(("resisc45_clip",)),
    "stanford_cars": DataSet(("cars",)),
    "stl10": DataSet(),
    "sun397": DataSet(),
    "svhn": DataSet(),
    "voc2007": DataSet(),  # CLIP_benchmark's: an object each, cut out of the pictures
    "voc2007_multilabel": DataSet(("voc2007", "voc_2007_classification"), shows_several=True),
    "winogavil": DataSet(),
}


def _of(number: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), number)


_RETRIEVAL = _of("mean_r1", "flickr30k mscoco")
_SHIFTS = _of("top1", "imagenet_v2 imagenet_a imagenet_r imagenet_sketch objectnet")
_DATACOMP = {
    **_of("mean_per_class", "caltech101"),
    **_of("top1", "cifar10 cifar100 clevr_count_all clevr_closest_object_distance country211 dtd"),
    **_of("top1", "eurosat"),
    **_of("mean_per_class", "fgvc_aircraft"),
    **_of("top1", "food101 gtsrb imagenet imagenet_sketch imagenet_v2 imagenet_a imagenet_o"),
    **_of("top1", "imagenet_r kitti_distance mnist objectnet"),
    **_of("mean_per_class", "flowers102 oxford_pets"),
    **_of("top1", "voc2007 patch_camelyon rendered_sst2 resisc45 stanford_cars stl10 sun397 svhn"),
    **_RETRIEVAL,
    **_of("jaccard_10_12", "winogavil"),
    **_of("f1_macro", "iwildcam"),
    **_of("top1", "camelyon17"),
    **_of("worst_group_top1", "fmow"),
    **_of("worst_group_top5", "dollar_street"),
    **_of("worst_group_top1", "geode"),
}
_ELEVATER = {
    **_of("mean_per_class", "caltech101 fgvc_aircraft flowers102 oxford_pets"),
    **_of("top1", "cifar10 cifar100 country211 dtd eurosat fer2013 food101 gtsrb"),
    **_of("roc_auc", "hateful_memes"),
    **_of("top1", "kitti_distance_whole mnist patch_camelyon rendered_sst2 resisc45 stanford_cars"),
    **_of("map_11point_elevater", "voc2007_multilabel"),
}

SUITES = {
    "stableeval27_reconstructed": Suite(
        "Our reconstruction of the 27 evaluations of StableEval (arXiv 2411.18674), whose list is "
        "not public: fitted to the published averages of MobileCLIP-S0, -S1 and -S2, which it "
        "reproduces. It is not the authors' list.",
        {
            **_of("top1", "fgvc_aircraft flowers102 oxford_pets stanford_cars food101 caltech101"),
            **_of("top1", "cifar10 cifar100 voc2007 stl10 eurosat resisc45 sun397 dollar_street"),
            **_of("top1", "geode patch_camelyon fmow dtd iwildcam imagenet"),
            **_SHIFTS,
            **_RETRIEVAL,
        },
    ),
    "datacomp38": Suite(
        "The 38 evaluations of DataComp (arXiv 2304.14108), each by its main metric.", _DATACOMP
    ),
    "datacomp38_top1": Suite(
        "The same 38, by plain top-1 accuracy instead of other metrics of classification.",
        {
            name: number if number in ("mean_r1", "jaccard_10_12") else "top1"
            for name, number in _DATACOMP.items()
        },
    ),
    "elevater20": Suite(
        "ELEVATER's 20 data sets (arXiv 2204.08790), each by its own metric, zero-shot.", _ELEVATER
    ),
    "elevater20_probe": Suite(
        "ELEVATER's 20 data sets (arXiv 2204.08790), each by its own metric, with linear probes.",
        _ELEVATER,
        kind="linear_probe",
    ),
    "shifts5": Suite("ImageNet's five shifts, as in DIME-FM (arXiv 2303.18232).", _SHIFTS),
    "retrieval": Suite("Flickr30k and COCO: the mean R@1 of both directions.", _RETRIEVAL),
}

_PLACES = re.compile(r"^(wds_)?((vtab|wilds|fairness|retrieval|misc)_)?|_test$")


def plain(folder: str) -> str:
    """The name of a data set in that of its folder, such as "imagenet_a" of "wds_imagenet-a_test".

    Removes what CLIP_benchmark and DataComp put before and behind it.
    """
    return _PLACES.sub("", re.sub(r"[^a-z0-9]+", "_", folder.lower()).strip("_"))


def known_name(folder: str) -> str:
    """The name in `SETS` of the data set in a folder, or else the plain name of the folder."""
    name = plain(folder)
    if name in SETS:
        return name
    return next((known for known, about in SETS.items() if name in about.folders), name)


def folders_of(name: str) -> tuple[str, ...]:
    """The plain names that the folder of a data set may have, the most fitting first."""
    return (name, *SETS.get(name, DataSet()).folders)


def evaluation_name(name: str, kind: Kind) -> str:
    """The name of the evaluation of a data set."""
    return name + PROBE if kind == "linear_probe" else name


def numbers(suite: str) -> tuple[str, ...]:
    """The full names of the numbers of a suite, such as "cifar10/top1".

    Raises:
        ConfigError: there is no such suite.
    """
    if suite not in SUITES:
        raise ConfigError(f"--suite={suite!r} is none of the suites: {', '.join(SUITES)}.")
    of, kind = SUITES[suite].numbers, SUITES[suite].kind
    return tuple(f"{evaluation_name(name, kind)}/{number}" for name, number in of.items())


def average(suite: str, found: Mapping[str, float]) -> dict[str, float]:
    """The mean of a suite's numbers, as "suite/NAME", or under another name if some are missing.

    Args:
        suite: its name.
        found: numbers by their full names.

    Returns:
        One entry: "suite/datacomp38", or "suite/datacomp38_partial_21_of_38" if some are missing;
        none if all are.
    """
    wanted = numbers(suite)
    there = [name for name in wanted if name in found]
    if not there:
        return {}
    part = "" if len(there) == len(wanted) else f"_partial_{len(there)}_of_{len(wanted)}"
    mean = float(np.mean([found[name] for name in there]))
    return {f"{suites.PREFIX}/{suite}{part}": mean}


def missing(suite: str, found: Sequence[str] | Mapping[str, float]) -> list[str]:
    """The suite's numbers that are not among `found`."""
    return [name for name in numbers(suite) if name not in found]
