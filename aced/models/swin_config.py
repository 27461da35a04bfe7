"""Settings of a Swin transformer and its stages."""

import dataclasses
from typing import Annotated, Literal

from aced.bounds import OneOf, PositiveInt
from aced.config import Checked, ConfigError
from aced.models import presets


@dataclasses.dataclass(frozen=True)
class SwinStage:
    """One stage: blocks of one width on a square map of tokens."""

    width: int  # channels
    depth: int  # blocks
    heads: int  # attention heads; they share the width
    mlp: int  # channels inside the MLP
    grid: int  # tokens a side of the map
    window: int  # tokens a side of the windows that attention stays in
    shift: int  # tokens by which every second block's windows are moved; 0: one window is the map

    @property
    def padded(self) -> int:
        """Tokens a side with the padding of the last windows."""
        return -(-self.grid // self.window) * self.window


@dataclasses.dataclass(frozen=True)
class SwinConfig(Checked):
    """A Swin transformer (arXiv 2103.14030). The defaults are Swin-T; there is no drop path."""

    size: Annotated[str, OneOf(presets.SWIN_SIZES)] = "T"
    patch: PositiveInt = 4  # pixels a side
    window: PositiveInt = 7  # tokens a side, at most those of a stage's map
    mlp_ratio: PositiveInt = 4  # channels inside the MLP, per channel
    activation: Literal["gelu_tanh", "gelu", "quick_gelu"] = "gelu"
    norm_eps: float = 1e-5
    # These three override the size's numbers: channels of the first stage (each stage has twice
    # those of the one before), blocks and heads of each stage. Blocks come in pairs.
    width: PositiveInt | None = None
    depths: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None

    def _check(self) -> None:
        dims = self.dims
        if not dims.depths or len(dims.depths) != len(dims.heads):
            raise ConfigError(
                f"image.swin.depths = {dims.depths} and image.swin.heads = {dims.heads} must have "
                "one number for each stage, and at least one stage."
            )
        if any(depth < 2 or depth % 2 for depth in dims.depths):
            raise ConfigError(
                f"image.swin.depths must be even and at least 2, got {dims.depths}: every second "
                "block shifts its windows."
            )
        for stage, heads in enumerate(dims.heads):
            if heads < 1 or (dims.width << stage) % heads:
                raise ConfigError(
                    f"The {dims.width << stage} channels of stage {stage} cannot be shared by "
                    f"image.swin.heads[{stage}] = {heads}; choose a number that divides them."
                )

    @property
    def dims(self) -> presets.SwinSize:
        """Width, depths and heads after the overrides."""
        names = ("width", "depths", "heads")
        given = {n: getattr(self, n) for n in names if getattr(self, n) is not None}
        return dataclasses.replace(presets.SWIN_SIZES[self.size], **given)

    @property
    def out_width(self) -> int:
        """Channels of the last stage."""
        return self.dims.width << (len(self.dims.depths) - 1)

    def stages(self, resolution: int) -> tuple[SwinStage, ...]:
        """The stages for images of `resolution` pixels a side.

        A map that is not a multiple of the window is padded; a smaller map is one window.

        Raises:
            ConfigError: the map cannot be halved for every stage but the first.
        """
        dims = self.dims
        smallest = self.patch << (len(dims.depths) - 1)  # pixels a side of the last stage's tokens
        if resolution < smallest or resolution % smallest:
            raise ConfigError(
                f"image.resolution = {resolution} must be a multiple of {smallest} pixels: patches "
                f"of image.swin.patch = {self.patch}, merged two by two before each of the "
                f"{len(dims.depths) - 1} later stages."
            )
        out = []
        for i, (depth, heads) in enumerate(zip(dims.depths, dims.heads, strict=True)):
            width, grid = dims.width << i, resolution // (self.patch << i)
            window = min(self.window, grid)
            shift = window // 2 if grid > window else 0
            out.append(SwinStage(width, depth, heads, self.mlp_ratio * width, grid, window, shift))
        return tuple(out)
