"""The preprocessing of pictures in the layout of transformers."""

import pathlib
from typing import Any

from aced.data.images.transforms import ResizeConfig
from aced.models import tensors
from aced.models.saved import InteropError
from aced.models.two_tower import TwoTowerConfig

FILE = "preprocessor_config.json"
_NESTED = "processor_config.json"  # since transformers 5: under "image_processor"
_FILTERS = {3: "bicubic", 2: "bilinear"}  # Pillow's numbers
_RESCALE = 1 / 255

Triple = tuple[float, float, float]


def read(folder: pathlib.Path, resolution: int) -> tuple[ResizeConfig, Triple, Triple]:
    """Returns the resizing, and the mean and standard deviation of pixels in [0, 1].

    Raises:
        InteropError: the file is missing, has settings that `ResizeConfig` lacks, or has another
            resolution than the image tower.
    """
    file = folder / FILE
    if file.is_file():
        settings = tensors.read_json(file)
    elif (folder / _NESTED).is_file():
        file = folder / _NESTED
        settings = tensors.read_json(file).get("image_processor") or {}
    else:
        raise InteropError(
            f"{folder} has no {FILE}, which defines how pictures are resized and normalised. Save "
            'the processor there: AutoProcessor.from_pretrained(NAME).save_pretrained("FOLDER").'
        )
    if not settings.get("do_resize", True):
        raise InteropError(f"{file}: do_resize must be true, because towers have a fixed size.")
    scale = settings.get("rescale_factor", _RESCALE)
    is_ours = isinstance(scale, int | float) and abs(scale - _RESCALE) <= 1e-9
    if not settings.get("do_rescale", True) or not is_ours:
        raise InteropError(f"{file}: pixels must be rescaled by 1/255, found {scale!r}.")
    resample = settings.get("resample", 3)
    if resample not in _FILTERS:
        raise InteropError(
            f"{file}: resample must be 3 (bicubic) or 2 (bilinear), found {resample!r}."
        )
    mode = _mode(settings, resolution, file)
    mean, std = (0.0,) * 3, (1.0,) * 3
    if settings.get("do_normalize", True):
        keys = ("image_mean", "image_std")
        mean, std = (triple(settings.get(key), f"{file}: {key}") for key in keys)
    # transformers rounds the margin of the crop down.
    margin = "down" if mode == "crop" else "nearest"
    return ResizeConfig(mode, _FILTERS[resample], margin), mean, std


def _mode(settings: dict[str, Any], resolution: int, file: pathlib.Path) -> str:
    crops, size = settings.get("do_center_crop", False), settings.get("size")
    square = {"height": resolution, "width": resolution}
    if crops:
        crop = settings.get("crop_size", size)
        short = size.get("shortest_edge") if isinstance(size, dict) else size
        if short == resolution and crop in (resolution, square):
            return "crop"
        settings_text = f"size = {size!r} with crop_size = {crop!r}"
    else:
        if size in (resolution, square):
            return "squash"
        settings_text = f"size = {size!r} without a crop"
    raise InteropError(
        f"{file}: {settings_text}, but our models resize both sides to the tower's {resolution} "
        "px, or resize the shorter side and crop the middle."
    )


def triple(value: Any, where: str) -> Triple:
    """Returns three numbers, or raises an InteropError that names `where`."""
    is_numbers = isinstance(value, list | tuple) and all(isinstance(x, int | float) for x in value)
    if not is_numbers or len(value) != 3:
        raise InteropError(f"{where} must be three numbers, found {value!r}.")
    return tuple(map(float, value))


def write(config: TwoTowerConfig, folder: pathlib.Path, processor: str) -> list[str]:
    """Writes preprocessor_config.json for the processor class `processor`.

    Returns:
        Notes on differences from our own preprocessing.
    """
    resolution = config.image.resolution
    square = {"height": resolution, "width": resolution}
    filters = {name: number for number, name in _FILTERS.items()}
    crops = config.resize.mode == "crop"
    settings: dict[str, Any] = {
        "processor_class": processor,
        "image_processor_type": "CLIPImageProcessor" if crops else "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": resolution} if crops else square,
        "resample": filters[config.resize.interpolation],
        "do_center_crop": crops,
        "do_rescale": True,
        "rescale_factor": _RESCALE,
        "do_normalize": True,
        "image_mean": list(config.image.mean),
        "image_std": list(config.image.std),
    }
    if crops:
        settings["crop_size"] = square
    tensors.write_json(folder / FILE, settings)
    if crops and config.resize.margin != "down":
        return ["where a crop's margin is half a pixel, transformers' picture is one pixel off"]
    return []
