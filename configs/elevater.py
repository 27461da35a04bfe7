"""The evaluations of DIME-FM's paper: ELEVATER's 20 data sets, and ImageNet with its shifts.

Not a recipe: it evaluates a run, or a folder written by aced.convert. `python -m aced.evaluate
--suite=elevater20` does the same for folders in other layouts, and if data sets are missing.

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
(arXiv 2303.18232; ELEVATER: 2204.08790): caltech101 6,084, cifar10 10,000, cifar100 10,000,
country211 21,100, dtd 1,880, eurosat 5,000, fer2013 3,589, fgvc_aircraft 3,333, food101 25,250,
gtsrb 12,630, hateful_memes 500, kitti_distance 711, mnist 10,000, flowers102 6,149, oxford_pets
3,669, patch_camelyon 32,768, rendered_sst2 1,821, resisc45 25,200, stanford_cars 8,041, voc2007
4,952. ImageNet is in no average; KITTI's pictures are not cropped. The paper's prompts and class
names are not known to us. Set them with `prompts=FILE`, a JSON object {NAME: {"class_names": [...],
"templates": ["a photo of a {}."]}}. The default, class names from the data set (prepared sets have
them) and one template, costs accuracy.
Arguments: `root`, `source`, `kind` (zeroshot or linear_probe), `prompts`, `shifts` (instead of the
20), `only=dtd+food101` (some of them, without an average).
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from aced.config import ConfigError, parse_arg, to_config
from aced.evaluators import EvalConfig, benchmarks
from aced.train.config import TrainConfig

# The metric of each data set, by the names of their folders here.
ELEVATER = {
    name.removesuffix("_whole").removesuffix("_multilabel"): metric
    for name, metric in benchmarks.SUITES["elevater20"].numbers.items()
}
SHIFTS = tuple(benchmarks.SUITES["shifts5"].numbers)
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
