"""The SigLIP image towers that open_clip takes from timm, by name."""

import dataclasses

from aced.models import presets
from aced.models.saved import InteropError
from aced.models.vit import ImageConfig

_SIZES = {
    "base": presets.SIZES["B"],
    "large": presets.SIZES["L"],
    # open_clip and timm give the MLP as a ratio, 3.7362.
    "so400m": presets.SIZES["So400m"],
    "giantopt": presets.Size(1536, 40, 6144, 16),
}
_TANH = "gelu_tanh"
# (size, patch, resolution) -> activation. timm computes the towers of SigLIP 1 with the exact GELU,
# although they were trained with the approximation by tanh.
_TOWERS: dict[tuple[str, int, int], str] = {
    ("base", 32, 256): _TANH,
    ("base", 16, 224): "gelu",
    ("base", 16, 256): "gelu",
    ("base", 16, 384): "gelu",
    ("base", 16, 512): "gelu",
    ("large", 16, 256): "gelu",
    ("large", 16, 384): "gelu",
    ("large", 16, 512): _TANH,
    ("so400m", 14, 224): "gelu",
    ("so400m", 14, 378): "gelu",
    ("so400m", 14, 384): "gelu",
    ("so400m", 16, 256): _TANH,
    ("so400m", 16, 384): _TANH,
    ("so400m", 16, 512): _TANH,
    ("giantopt", 16, 256): _TANH,
    ("giantopt", 16, 384): _TANH,
}


@dataclasses.dataclass(frozen=True)
class TimmTower:
    """What a name stands for."""

    size: presets.Size
    patch: int
    resolution: int
    activation: str


TOWERS: dict[str, TimmTower] = {
    f"vit_{size}_patch{patch}_siglip_{resolution}": TimmTower(
        _SIZES[size], patch, resolution, activation
    )
    for (size, patch, resolution), activation in _TOWERS.items()
}


def name_of(image: ImageConfig) -> str:
    """Returns the name of the tower `image` is.

    Raises:
        InteropError: timm has no such tower.
    """
    wanted = TimmTower(image.dims, image.patch, image.resolution, image.activation)
    for name, tower in TOWERS.items():
        if tower == wanted:
            return name
    dims = image.dims
    raise InteropError(
        "open_clip takes image towers with attention pooling (image.pool = 'map') from timm by "
        f"name, and there is none of width {dims.width}, depth {dims.depth}, mlp {dims.mlp}, "
        f"{dims.heads} heads, patch {image.patch}, resolution {image.resolution}, activation "
        f"{image.activation}; there are {', '.join(TOWERS)}. Convert --to=huggingface instead: "
        "SiglipModel takes any size."
    )
