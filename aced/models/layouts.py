"""Recognises the layout of model files: ours, transformers', open_clip's or big_vision's."""

import pathlib
import re
from typing import Literal

from aced.models import model_folder, tensors

Layout = Literal["aced", "transformers", "open_clip", "big_vision"]

TRANSFORMERS_CONFIG = "config.json"
OPEN_CLIP_CONFIG = "open_clip_config.json"
BIG_VISION_SUFFIX = ".npz"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def layout(path: pathlib.Path) -> Layout | None:
    """Returns the layout of a folder or file, or None if it is not a known model.

    Raises:
        InteropError: config.json is damaged.
    """
    if path.suffix == BIG_VISION_SUFFIX and path.is_file():
        return "big_vision"
    if model_folder.is_model_folder(str(path)):
        return "aced"
    config = path / TRANSFORMERS_CONFIG
    if config.is_file() and "model_type" in tensors.read_json(config):
        return "transformers"
    return "open_clip" if (path / OPEN_CLIP_CONFIG).is_file() else None


def is_hub_name(source: str) -> bool:
    """Whether `source` has the form owner/name of models on the Hugging Face hub."""
    return _HUB_NAME.fullmatch(source) is not None


def convert_command(source: str) -> str:
    """Returns the command that converts `source` to a model folder."""
    is_file = source.endswith(BIG_VISION_SUFFIX)
    name = pathlib.PurePath(source).stem if is_file else pathlib.PurePath(source).name
    model = " --model=NAME" if is_file else ""
    return f"python -m aced.convert --source={source}{model} --out=models/{name} --to=aced"
