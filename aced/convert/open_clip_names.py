"""Which of open_clip's tensors is which of our parameters."""

from aced.convert.tables import Pair, convolution, fused, linear, norm, same, transposed, with_axes
from aced.models.two_tower import TwoTowerConfig


def table(config: TwoTowerConfig, custom_text: bool, scalar_axes: int) -> list[Pair]:
    """Returns the table of a model.

    Args:
        config: image.pool = "map" is timm's tower, "cls" open_clip's own.
        custom_text: the text tower's names begin with "text." (CustomTextCLIP).
        scalar_axes: of logit_scale and logit_bias, 0 or 1.
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
    """torch's MultiheadAttention: one matrix for q, k and v."""
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
