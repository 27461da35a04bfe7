"""The model card of an export: README.md with the metadata that the Hugging Face hub reads."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from etils import epath

from aced import methods
from aced.checkpoints import checkpointer, record
from aced.config import flatten
from aced.evaluators import suites
from aced.metrics import history
from aced.models.saved import Model, flat
from aced.train.summary import COLUMNS

FILE = "README.md"
# The library that loads an export, as the hub names it.
LIBRARIES = {
    "huggingface": "transformers",
    "open_clip": "open_clip",
    "stablehlo": "jax",
    "onnx": "onnx",
}
_COSTS = ("examples_trained", "examples_scored", "flops")
# Settings of a run that the card lists, if the run has them.
_SETTINGS = (
    "batch_size",
    "method.loss",
    "method.selection.filter_ratio",
    "method.distillation.weight",
    "optimizer.name",
    "optimizer.schedule.peak",
    "optimizer.weight_decay",
    "seed",
)
_USAGE = {
    "huggingface": """
from PIL import Image
from transformers import AutoModel, AutoProcessor
model, processor = (x.from_pretrained({name!r}) for x in (AutoModel, AutoProcessor))
inputs = processor(images=Image.open("picture.jpg"), text=["a cat", "a dog"],
                   padding="max_length", truncation=True, return_tensors="pt")
print(model(**inputs).logits_per_image.{activation})""",
    "open_clip": """
import open_clip
model, pictures = open_clip.create_model_from_pretrained({name!r})
tokenizer = open_clip.get_tokenizer({name!r})""",
    "stablehlo": """
import pathlib
from jax import export
towers = {{name: export.deserialize((pathlib.Path({name!r}) / f"{{name}}.stablehlo").read_bytes())
          for name in ("image", "text")}}
zimg = towers["image"].call(pixels)  # uint8 [b h w 3], resized as export.json has it
ztxt = towers["text"].call(ids)  # int32 [b l]""",
    "onnx": """
import onnxruntime
towers = {{name: onnxruntime.InferenceSession(f"{name}/{{name}}.onnx")
          for name in ("image", "text")}}
(zimg,) = towers["image"].run(None, {{"image": pixels}})  # uint8 [b h w 3], resized
(ztxt,) = towers["text"].run(None, {{"text": ids}})  # int32 [b l]""",
}


@dataclasses.dataclass(frozen=True)
class Training:
    """The part of the card about the run that trained the model."""

    title: str  # of the method
    step: int  # of the checkpoint
    averaged: bool  # whether the weights are the moving average
    settings: dict[str, Any]  # by path
    data: str  # name of the data set
    costs: dict[str, int | float]
    evaluations: dict[str, int | float]


def training(workdir: str, which: Any, parameters: str) -> Training:
    """Returns the record of the run in `workdir`, up to one of its checkpoints.

    Args:
        workdir: folder of the run.
        which: "last" or "best" checkpoint.
        parameters: "params" or "ema".

    Raises:
        CheckpointError, ConfigError: the run has no such checkpoint, or no readable config.json.
    """
    settings = record.read(epath.Path(workdir)).settings
    step = checkpointer.chosen_step(workdir, which)
    values: dict[str, int | float] = {}
    if (epath.Path(workdir) / history.FILE).exists():
        for line in history.read(workdir):
            values |= line if line["step"] <= step else {}
    measured = (*settings.get("evals", {}), suites.PREFIX)
    return Training(
        title=methods.parse(settings["method"]).title,
        step=step,
        averaged=parameters == "ema",
        settings=flatten(settings),
        data=_data(settings["data"]),
        costs={name: values[name] for name in _COSTS if name in values},
        evaluations={
            name: value for name, value in values.items() if name.partition("/")[0] in measured
        },
    )


def _data(data: Mapping[str, Any]) -> str:
    """The name of a data set, without the folders it is in."""
    if members := data.get("mixture"):
        return ", ".join(f"{name} ({_data(member)})" for name, member in sorted(members.items()))
    kind = data["source"]
    own = data[kind]
    name = own.get("name") or own.get("path") or own.get("builder_dir") or ""
    name = pathlib.PurePath(name).name
    return f"{name}, read as {kind}" if name else kind


def text(
    model: Model,
    to: str,
    *,
    name: str,
    license: str = "",
    base_model: str = "",
    run: Training | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Returns the content of README.md.

    Args:
        model: the exported model.
        to: the format, a key of `LIBRARIES`.
        name: of the model.
        license: identifier of the license of the weights; empty: the card has none.
        base_model: owner/name of the model of the hub that was converted, if it is one.
        run: record of the run that trained the model, if it is known.
        notes: differences between the export and the model.
    """
    config = model.config
    kind = "siglip" if config.init_bias is not None else "clip"
    metadata = {
        "license": license,
        "library_name": LIBRARIES[to],
        "pipeline_tag": "zero-shot-image-classification",
        "base_model": base_model,
        "tags": ["aced", kind, "image-text", "zero-shot-image-classification"],
    }
    head = yaml.safe_dump({k: v for k, v in metadata.items() if v}, sort_keys=False)
    counts = {
        part: sum(x.size for x in flat(model.params[part]).values()) for part in ("image", "text")
    }
    rows = {
        "Images": f"{config.image.resolution} pixels a side, {config.resize.mode}, "
        f"{config.resize.interpolation}; {counts['image']:,} parameters",
        "Texts": f"{config.tokenizer.length} ids ({config.tokenizer.kind}); "
        f"{counts['text']:,} parameters",
        "Embeddings": f"{config.width} channels, of length 1",
        "Trained with": "the sigmoid loss" if kind == "siglip" else "the softmax loss",
    }
    sections = [
        f"---\n{head}---\n\n# {name}\n\nTwo towers that embed images and texts, exported by aced.",
        _table(("Part", "Value"), rows),
        f"## Use\n\nReplace FOLDER by the path of this folder.\n\n```python{usage(model, to)}\n```",
    ]
    if run is not None:
        sections += [_evaluations(run), _training(run)]
    if notes:
        sections.append("## Differences\n\n" + "\n".join(f"- {note}." for note in notes))
    return "\n\n".join(sections) + "\n"


def usage(model: Model, to: str, folder: str = "FOLDER") -> str:
    """Code that loads the export in `folder`; its first line is empty."""
    name = f"local-dir:{folder}" if to == "open_clip" else folder
    activation = "softmax(-1)" if model.config.init_bias is None else "sigmoid()"
    return _USAGE[to].format(name=name, activation=activation)


def _evaluations(run: Training) -> str:
    if not run.evaluations:
        return "## Evaluations\n\nThe run has measured none."
    of = f"As logged up to step {run.step:,}"
    if run.averaged:
        of += ", of the parameters themselves; this folder has their moving average"
    rows = {name: f"{value:.4g}" for name, value in sorted(run.evaluations.items())}
    return f"## Evaluations\n\n{of}.\n\n" + _table(("Number", "Value"), rows)


def _training(run: Training) -> str:
    rows: dict[str, Any] = {"method": run.title, "data": run.data, "steps": f"{run.step:,}"}
    rows |= {
        name.replace("_", " "): COLUMNS[name][1].format(value) for name, value in run.costs.items()
    }
    rows |= {name: run.settings[name] for name in _SETTINGS if run.settings.get(name) is not None}
    return "## Training\n\n" + _table(("Setting", "Value"), rows)


def _table(titles: tuple[str, str], rows: Mapping[str, Any]) -> str:
    lines = [f"| {' | '.join(titles)} |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows.items())])
