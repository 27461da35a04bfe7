"""Sizes of transformers and settings of named models, from the papers."""

import dataclasses
from typing import Any

from aced.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a transformer."""

    width: int  # channels of the residual stream
    depth: int  # blocks
    mlp: int  # channels inside the MLP
    heads: int  # attention heads; they share the width


@dataclasses.dataclass(frozen=True)
class SwinSize:
    """The size of a Swin transformer."""

    width: int  # channels of the first stage; each later one has twice those of the one before
    depths: tuple[int, ...]  # blocks of each stage
    heads: tuple[int, ...]  # attention heads of each stage


# big_vision's names and numbers (JEST, arXiv 2406.17711, uses the same). "mu" is for tests.
SIZES: dict[str, Size] = {
    "mu": Size(32, 1, 128, 2),
    "Ti": Size(192, 12, 768, 3),
    "S": Size(384, 12, 1536, 6),
    "M": Size(512, 12, 2048, 8),
    "B": Size(768, 12, 3072, 12),
    "L": Size(1024, 24, 4096, 16),
    "So400m": Size(1152, 27, 4304, 16),
    "H": Size(1280, 32, 5120, 16),
    "g": Size(1408, 40, 6144, 16),
}

# arXiv 2103.14030, 3.3: heads of 32 channels. "mu" is for tests.
SWIN_SIZES: dict[str, SwinSize] = {
    "mu": SwinSize(16, (2, 2), (2, 4)),
    "T": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "S": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "B": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32)),
}

_CLIP_IMAGE = {
    "resolution": 224,
    "pool": "cls",
    "activation": "quick_gelu",
    "norm_eps": 1e-5,
    "pre_norm": True,
    "patch_bias": False,
    "mean": (0.48145466, 0.4578275, 0.40821073),  # computed by OpenAI from its training images
    "std": (0.26862954, 0.26130258, 0.27577711),
}
_CLIP_TEXT = {
    "vocab_size": 49408,
    "length": 77,
    "causal": True,
    "pool": "eot",
    "activation": "quick_gelu",
    "norm_eps": 1e-5,
    "head_bias": False,
}
_GELU = {"activation": "gelu"}
# Softmax loss: no bias, and the initial temperature of CLIP, 1 / 0.07 (arXiv 2103.00020, 2.5).
_CLIP = {"init_scale": 1 / 0.07, "init_bias": None}


def _clip(
    embed_dim: int, image: dict[str, Any], text: dict[str, Any], changes: dict[str, Any]
) -> dict[str, Any]:
    return {
        "image": _CLIP_IMAGE | changes | image,
        "text": _CLIP_TEXT | changes | text,
        "embed_dim": embed_dim,
        **_CLIP,
    }


def _siglip(image: dict[str, Any], text: dict[str, Any]) -> dict[str, Any]:
    return {"image": image, "text": text}


# Settings of `two_tower.TwoTowerConfig` where they differ from its defaults (SigLIP B/16, 256 px).
# CLIP-* are OpenAI's (quick GELU); CLIP-g/14 is open_clip's ViT-g-14, which uses the exact GELU.
# ACED-F* are DERIVED: arXiv 2411.18674 gives 3.30 / 7.14 / 10.29 G multiply-adds for image + text,
# and these are the sizes that fit (F0, F1 exactly; F2 within 0.5 %). All have an S text tower of
# 64 tokens.
MODELS: dict[str, dict[str, Any]] = {
    "ACED-F0": _siglip({"size": "S", "patch": 32, "resolution": 288}, {"size": "S"}),
    "ACED-F1": _siglip({"size": "B", "patch": 32, "resolution": 256}, {"size": "S"}),
    "ACED-F2": _siglip({"size": "B", "patch": 24, "resolution": 240}, {"size": "S"}),
    "SigLIP-B/16-256": _siglip({"size": "B", "patch": 16, "resolution": 256}, {"size": "B"}),
    "SigLIP-So400m/14-224": _siglip(
        {"size": "So400m", "patch": 14, "resolution": 224}, {"size": "So400m", "length": 16}
    ),
    "SigLIP-So400m/14-384": _siglip(
        {"size": "So400m", "patch": 14, "resolution": 384}, {"size": "So400m"}
    ),
    "CLIP-B/32": _clip(512, {"size": "B", "patch": 32}, {"size": "M"}, {}),
    "CLIP-B/16": _clip(512, {"size": "B", "patch": 16}, {"size": "M"}, {}),
    "CLIP-L/14": _clip(768, {"size": "L", "patch": 14}, {"size": "B"}, {}),
    "CLIP-g/14": _clip(1024, {"size": "g", "patch": 14}, {"size": "L"}, _GELU),
}

# Settings of `coca.CoCaConfig`: those of its `image` where they differ from the config's default
# (288 px, patches of 18), and of its `text`. arXiv 2205.01917, table 1. The tiny ones are students
# of our own: a half and a quarter of CoCa-Large's layers.
COCA: dict[str, dict[str, dict[str, Any]]] = {
    "CoCa-Base": {
        "image": {"size": "B"},
        "text": {"size": "B", "unimodal": 12, "multimodal": 12},
    },
    "CoCa-Large": {
        "image": {"size": "L"},
        "text": {"size": "L", "unimodal": 12, "multimodal": 12},
    },
    "CoCa": {
        "image": {"size": "g"},
        "text": {"size": "g", "mlp": 5632, "unimodal": 18, "multimodal": 18},
    },
    "coca_tiny12": {
        "image": {"size": "M", "depth": 12},
        "text": {"size": "M", "unimodal": 6, "multimodal": 6},
    },
    "coca_tiny6": {
        "image": {"size": "S", "depth": 6},
        "text": {"size": "S", "unimodal": 3, "multimodal": 3},
    },
}


def resolve(key: str, size: str, **overrides: int | None) -> Size:
    """Returns `SIZES[size]`, with the overrides (width, depth, mlp, heads) that are not None.

    Raises:
        ConfigError: the heads do not share the width; the message begins with `key`, the path of
            the setting ("image", "text").
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    dims = dataclasses.replace(SIZES[size], **given)
    if dims.width % dims.heads:
        raise ConfigError(
            f"{key}.width = {dims.width} cannot be shared by {key}.heads = {dims.heads}; "
            f"choose a number of heads that divides the width."
        )
    return dims
