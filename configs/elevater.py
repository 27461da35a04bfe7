"""The evaluations of DIME-FM's paper: ELEVATER's 20 data sets, and ImageNet with its shifts.

Not a recipe: it evaluates a run, or a folder written by aced.convert:

    python -m aced.evaluate --config=configs/elevater.py:root=/data/elevater --workdir=runs/mine
    python -m aced.evaluate --config=configs/elevater.py:root=/data/elevater,kind=linear_probe \\
        --model=models/siglip

To evaluate during training, add it to a config: `elevater.add(config, root="/data/elevater")`.

Each data set is a folder of `root`, by the names below. From aced.prepare, with --label_column:
NAME/test, and for linear probes NAME/train. With `source=parquet`, as from the hub:
NAME/test*.parquet and NAME/train*.parquet, with columns `image` and `label`. Pictures of VOC2007
show several classes, given as their captions (in parquet the column `classes`): {"image": "1.jpg",
"caption": ["dog", "person"]}.

From the authors' README and code: the data sets, their numbers of test pictures and their metrics
(arXiv 2303.18232; ELEVATER: 2204.08790); ImageNet is in no average; KITTI's pictures are not
cropped. The paper's prompts and class names are not known to us. Set them with `prompts=FILE`, a
JSON object {NAME: {"class_names": [...], "templates": ["a photo of a {}."]}}. The default, class
names from the data set (prepared sets have them) and one template, costs accuracy.
Arguments: `root`, `source`, `kind` (zeroshot or linear_probe), `prompts`, `shifts` (instead of the
20), `only=dtd+food101` (some of them, without an average).
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from aced.config import ConfigError, parse_arg, to_config
from aced.evaluators import EvalConfig
from aced.train.config import TrainConfig

ELEVATER = {  # the metric of each data set, and its number of test images
    "caltech101": "mean_per_class",  # 6,084
    "cifar10": "top1",  # 10,000
    "cifar100": "top1",  # 10,000
    "country211": "top1",  # 21,100
    "dtd": "top1",  # 1,880
    "eurosat": "top1",  # 5,000
    "fer2013": "top1",  # 3,589
    "fgvc_aircraft": "mean_per_class",  # 3,333
    "food101": "top1",  # 25,250
    "gtsrb": "top1",  # 12,630
    "hateful_memes": "roc_auc",  # 500
    "kitti_distance": "top1",  # 711
    "mnist": "top1",  # 10,000
    "flowers102": "mean_per_class",  # 6,149
    "oxford_pets": "mean_per_class",  # 3,669
    "patch_camelyon": "top1",  # 32,768
    "rendered_sst2": "top1",  # 1,821
    "resisc45": "top1",  # 25,200
    "stanford_cars": "top1",  # 8,041
    "voc2007": "map_11point_elevater",  # 4,952
}
SHIFTS = ("imagenet_v2", "imagenet_a", "imagenet_r", "imagenet_sketch", "objectnet")
SOURCES = ("array_record", "parquet")
KINDS = ("zeroshot", "linear_probe")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    arg = parse_arg(
        arg,
        root="/data/elevater",
        source="array_record",
        kind="zeroshot",
        prompts="",
        shifts=False,
        only="",
    )
    config = to_config(TrainConfig(total_steps=1))
    prompts = json.loads(pathlib.Path(arg.prompts).read_text()) if arg.prompts else {}
    only = arg.only.split("+") if arg.only else ()
    settings = {"root": arg.root, "source": arg.source, "kind": arg.kind}
    add(config, **settings, prompts=prompts, shifts=arg.shifts, only=only)
    return config


def add(
    config: ml_collections.ConfigDict,
    root: str,
    source: str = "array_record",
    kind: str = "zeroshot",
    prompts: Mapping[str, Mapping[str, Sequence[str]]] = {},
    shifts: bool = False,
    only: Sequence[str] = (),
    **how_often: Any,
) -> None:
    """Adds the evaluations to `config`, and their average to its suites.

    Args:
        config: of `TrainConfig`.
        root: the folder with a folder for each data set.
        source: "array_record" or "parquet".
        kind: "zeroshot" or "linear_probe".
        prompts: by data set, `class_names` and `templates`.
        shifts: ImageNet and its five shifts, instead of the 20.
        only: some of the data sets.
        **how_often: such as every_percent=25.0; nothing: at the end.

    Raises:
        ConfigError: an argument is none of these.
    """
    metrics = dict.fromkeys(("imagenet", *SHIFTS), "top1") if shifts else ELEVATER
    for name, value, known in (
        ("source", [source], SOURCES),
        ("kind", [kind], KINDS),
        ("only", only, metrics),
        ("prompts", prompts, (*ELEVATER, "imagenet", *SHIFTS)),
        ("prompts", {key for of in prompts.values() for key in of}, ("class_names", "templates")),
    ):
        if wrong := [item for item in value if item not in known]:
            raise ConfigError(f"{name}: {wrong[0]!r} is none; known: {', '.join(known)}.")
    for name in only or metrics:
        evaluation = to_config(EvalConfig(kind=kind, **how_often))
        evaluation.update({k: tuple(texts) for k, texts in prompts.get(name, {}).items()})
        if name == "voc2007":
            evaluation.classes_in = "captions"
        if name == "kitti_distance":
            evaluation.resize = "squash"
        read(evaluation.data, f"{root}/{name}/test", source, evaluation.classes_in)
        if kind == "linear_probe":
            read(evaluation.probe.data, f"{root}/{name}/train", source, evaluation.classes_in)
        config.evals[f"{kind}_{name}"] = evaluation
    if not only:
        averaged = [name for name in metrics if name != "imagenet"]
        suite = "shifts" if shifts else "elevater"
        config.suites[f"{suite}_{kind}"] = tuple(
            f"{kind}_{name}/{metrics[name]}" for name in averaged
        )


def read(data: ml_collections.ConfigDict, path: str, source: str, classes_in: str) -> None:
    """Sets `data` to `path`, a folder or a prefix of file names."""
    has_captions = classes_in == "captions"
    data.source = source
    data.array_record.path = path
    data.parquet.path = f"{path}*.parquet"
    data.parquet.captions = ("classes",) if has_captions else ()
    data.parquet.label = "" if has_captions else "label"
