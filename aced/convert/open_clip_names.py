"""open_clip's names of our parameters, and timm's names of SigLIP's image towers."""

import dataclasses

from aced.convert.tables import Pair, convolution, fused, linear, norm, same, transposed, with_axes
from aced.models import presets
from aced.models.saved import InteropError
from aced.models.two_tower import TwoTowerConfig
from aced.models.vit import ImageConfig

_SIZES = {
    "base": presets.SIZES["B"],
    "large": presets.SIZES["L"],
    # open_clip and timm write the width of its MLP as the ratio 3.7362.
    "so400m": presets.SIZES["So400m"],
    "giantopt": presets.Size(1536, 40, 6144, 16),
}
_TANH = "gelu_tanh"
# (size, patch, resolution) -> activation. timm computes the towers of SigLIP 1 with the exact GELU,
# although they were trained with the tanh approximation.
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
    """The settings of one of timm's towers."""

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


def timm_name(image: ImageConfig) -> str:
    """Returns timm's name of the tower with these settings.

    Raises:
        InteropError: timm has no such tower.
    """
    settings = TimmTower(image.dims, image.patch, image.resolution, image.activation)
    for name, tower in TOWERS.items():
        if tower == settings:
            return name
    dims = image.dims
    raise InteropError(
        "open_clip takes image towers with attention pooling (image.pool = 'map') from timm by "
        f"name, and timm has no tower of width {dims.width}, depth {dims.depth}, mlp {dims.mlp}, "
        f"{dims.heads} heads, patch {image.patch}, resolution {image.resolution}, activation "
        f"{image.activation}; it has {', '.join(TOWERS)}. Convert --to=huggingface instead: "
        "SiglipModel takes any size."
    )


def table(config: TwoTowerConfig, custom_text: bool, scalar_axes: int) -> list[Pair]:
    """Returns the pairs of open_clip's tensors and our parameters.

    Args:
        config: image.pool = "map" is timm's tower, "cls" open_clip's own.
        custom_text: whether names of the text tower begin with "text." (CustomTextCLIP).
        scalar_axes: number of axes of logit_scale and logit_bias, 0 or 1.
    """
    out = _timm(config) if config.image.pool == "map" else _own(config)
    text = "text." if custom_text else ""
    out += [
        same(f"{text}token_embedding.weight", "text/token"),
        same(f"{text}positional_embedding", "text/position"),
        *_blocks(f"{text}transformer", "text"),
        *norm(f"{text}ln_final", "text/norm"),
    ]
    if config.text.head_bias:
        out += linear(f"{text}text_projection", "text/head")
    else:
        out.append(same(f"{text}text_projection", "text/head/kernel"))
    out.append(with_axes("logit_scale", "t", scalar_axes))
    if config.init_bias is not None:
        out.append(with_axes("logit_bias", "bias", scalar_axes))
    return out


def _blocks(theirs: str, ours: str) -> list[Pair]:
    """Blocks with torch's MultiheadAttention, which has one matrix for q, k and v."""
    layer, block = f"{theirs}.resblocks.{{}}", f"{ours}/blocks"
    parts = [f"{block}/attention/{x}" for x in "qkv"]
    return [
        *norm(f"{layer}.ln_1", f"{block}/norm1"),
        *fused(f"{layer}.attn.in_proj_weight", f"{layer}.attn.in_proj_bias", parts),
        *linear(f"{layer}.attn.out_proj", f"{block}/attention/out"),
        *norm(f"{layer}.ln_2", f"{block}/norm2"),
        *linear(f"{layer}.mlp.c_fc", f"{block}/mlp/fc1"),
        *linear(f"{layer}.mlp.c_proj", f"{block}/mlp/fc2"),
    ]


def _own(config: TwoTowerConfig) -> list[Pair]:
    before = norm("visual.ln_pre", "image/norm_pre") if config.image.pre_norm else []
    return [
        convolution("visual.conv1.weight", "image/patch/kernel", config.image.patch),
        same("visual.class_embedding", "image/cls"),
        same("visual.positional_embedding", "image/position"),
        *before,
        *_blocks("visual.transformer", "image"),
        *norm("visual.ln_post", "image/norm"),
        same("visual.proj", "image/head/kernel"),
    ]


def _timm(config: TwoTowerConfig) -> list[Pair]:
    trunk, block, pool = "visual.trunk", "image/blocks", "image/map"
    layer, attention = f"{trunk}.blocks.{{}}", f"{trunk}.attn_pool"
    parts = [f"{block}/attention/{x}" for x in "qkv"]
    out = [
        convolution(f"{trunk}.patch_embed.proj.weight", "image/patch/kernel", config.image.patch),
        same(f"{trunk}.patch_embed.proj.bias", "image/patch/bias"),
        with_axes(f"{trunk}.pos_embed", "image/position", 1),
        *norm(f"{layer}.norm1", f"{block}/norm1"),
        *fused(f"{layer}.attn.qkv.weight", f"{layer}.attn.qkv.bias", parts),
        *linear(f"{layer}.attn.proj", f"{block}/attention/out"),
        *norm(f"{layer}.norm2", f"{block}/norm2"),
        *linear(f"{layer}.mlp.fc1", f"{block}/mlp/fc1"),
        *linear(f"{layer}.mlp.fc2", f"{block}/mlp/fc2"),
        *norm(f"{trunk}.norm", "image/norm"),
        with_axes(f"{attention}.latent", f"{pool}/probe", 2),
        *linear(f"{attention}.q", f"{pool}/attention/q"),
        *fused(
            f"{attention}.kv.weight",
            f"{attention}.kv.bias",
            (f"{pool}/attention/k", f"{pool}/attention/v"),
        ),
        *linear(f"{attention}.proj", f"{pool}/attention/out"),
        *norm(f"{attention}.norm", f"{pool}/norm"),
        *linear(f"{attention}.mlp.fc1", f"{pool}/mlp/fc1"),
        *linear(f"{attention}.mlp.fc2", f"{pool}/mlp/fc2"),
    ]
    if config.embed_dim is not None:
        out.append(transposed("visual.head.proj.weight", "image/head/kernel"))
    return out
