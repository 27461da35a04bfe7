"""open_clip's layout: CLIP with open_clip's own towers, SigLIP with timm's image tower.

open_clip_config.json, open_clip_model.safetensors, tokenizer (none for CLIP's own)
"""

import pathlib
from typing import Any

from aced.convert import open_clip_names, preprocessor, tables, tokenizer_read
from aced.data.images.transforms import ResizeConfig
from aced.data.tokenizers import CLIP_EOS, TokenizerConfig
from aced.models import tensors
from aced.models.layouts import OPEN_CLIP_CONFIG as CONFIG
from aced.models.saved import (
    InteropError,
    Model,
    checking_settings,
    read_config_value,
    size_settings,
)
from aced.models.text import TextConfig
from aced.models.two_tower import TwoTowerConfig
from aced.models.vit import ImageConfig

WEIGHTS = "open_clip_model.safetensors"
_OTHER_WEIGHTS = ("open_clip_pytorch_model.safetensors", "model.safetensors")
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_MODES = {"shortest": "crop", "squash": "squash"}
# Settings without effect in a trained model.
_IDLE = {"patch_dropout", "output_tokens", "timm_model_pretrained", "timm_drop", "timm_drop_path"}
_VISION: dict[str, Any] = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0} | {
    "patch_size": 16,
    "image_size": 224,
    "no_ln_pre": False,
    "act_kwargs": None,
    "norm_kwargs": None,
}
_TIMM: dict[str, Any] = {"timm_model_name": None, "timm_pool": "avg", "timm_proj": "linear"} | {
    "timm_proj_bias": False,
    "image_size": 224,
}
_TEXT: dict[str, Any] = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8} | {
    "layers": 12,
    "mlp_ratio": 4.0,
    "hf_tokenizer_name": None,
    "tokenizer_kwargs": None,
    "pad_id": 0,
    "eos_id": 2,
    "no_causal_mask": False,
    "pool_type": "argmax",
    "proj_bias": False,
    "act_kwargs": None,
    "norm_kwargs": None,
}
# Settings of models that ours can express only with these values.
_FIXED: dict[str, Any] = {
    "ls_init_value": None,
    "attentional_pool": False,
    "pos_embed_type": "learnable",
    "final_ln_after_pool": False,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
    "embed_cls": False,
    "proj_type": "linear",
    "hf_model_name": None,
    "tokenizer_mode": None,
}


def read(folder: pathlib.Path, source: str, quick_gelu: bool = False) -> Model:
    """Returns the model in `folder`.

    Args:
        folder: the folder of the model.
        source: name of the source in errors and in the model's record.
        quick_gelu: whether it was trained with QuickGELU, if the config does not record that.

    Raises:
        InteropError: a file is missing or broken, or our models cannot express it.
    """
    about = tensors.read_json(folder / CONFIG)
    model, pictures = about.get("model_cfg"), about.get("preprocess_cfg") or {}
    if not isinstance(model, dict) or not isinstance(pictures, dict):
        raise InteropError(f"{source}: {CONFIG} has no model_cfg.")
    vision, text = (_part(model, f"{name}_cfg", source) for name in ("vision", "text"))
    timm = vision.get("timm_model_name") is not None
    vision = _known(vision, _TIMM if timm else _VISION | {"pool_type": "tok"}, "vision_cfg", source)
    text = _known(text, _TEXT, "text_cfg", source)
    if not timm and vision["pool_type"] != "tok":
        raise InteropError(
            f"{source}: vision_cfg.pool_type = {vision['pool_type']!r}, but only those of "
            "open_clip's own towers that pool at the class token ('tok') can be read."
        )
    if quick_gelu and model.get("quick_gelu") is False:
        raise InteropError(
            f"{source}: {CONFIG} records quick_gelu = false; leave --quick_gelu out."
        )
    quick = quick_gelu or bool(model.get("quick_gelu", False))
    embed_dim = read_config_value(model, "embed_dim", int, f"{source}: model_cfg")
    weights = tensors.read_safetensors(folder, (WEIGHTS, *_OTHER_WEIGHTS))
    tokenizer, content = _tokenizer(folder, text, source)
    pixels = {"mean": OPENAI_MEAN, "std": OPENAI_STD} | pictures
    image = {
        name: preprocessor.triple(pixels[name], f"{source}: preprocess_cfg.{name}")
        for name in ("mean", "std")
    }
    bias = "logit_bias" if weights.get("logit_bias") is not None else None
    with checking_settings(source):
        config = TwoTowerConfig(
            image=_timm_tower(vision, image, source) if timm else _own_tower(vision, image, quick),
            text=_text_tower(text, tokenizer, quick, source),
            embed_dim=None if timm and vision["timm_proj"] == "none" else embed_dim,
            resize=_resize(pictures, source),
            tokenizer=tokenizer,
            **tables.logits(weights, "logit_scale", bias, source),
        )
    custom_text = bool(model.get("custom_text", False))
    table = open_clip_names.table(config, custom_text, weights["logit_scale"].ndim)
    return Model(config, tables.to_params(table, weights, config, source), content, source)


def _part(model: dict[str, Any], name: str, source: str) -> dict[str, Any]:
    part = model.get(name)
    if not isinstance(part, dict):
        raise InteropError(f"{source}: {CONFIG} has no model_cfg.{name}.")
    return part


def _known(
    given: dict[str, Any], defaults: dict[str, Any], name: str, source: str
) -> dict[str, Any]:
    """`given` over `defaults`; an InteropError for a setting that is neither known nor idle."""
    for key, value in given.items():
        if key in defaults or key in _IDLE or (key in _FIXED and value == _FIXED[key]):
            continue
        raise InteropError(
            f"{source}: {name}.{key} = {value!r} is not supported by our models; ViT towers and "
            "SigLIP's can be read."
        )
    out = defaults | {key: value for key, value in given.items() if key in defaults}
    for key, default in defaults.items():
        if type(default) is int and (type(out[key]) is not int or out[key] < 0):
            raise InteropError(f"{source}: {name}.{key} must be a count, found {out[key]!r}.")
        if type(default) is float and type(out[key]) not in (int, float):
            raise InteropError(f"{source}: {name}.{key} must be a number, found {out[key]!r}.")
    return out


def _shared(cfg: dict[str, Any], heads: int, quick: bool) -> dict[str, Any]:
    tanh = (cfg["act_kwargs"] or {}).get("approximate") == "tanh"
    mlp = int(cfg["width"] * cfg["mlp_ratio"])
    return {
        **size_settings(cfg["width"], cfg["layers"], mlp, heads),
        "activation": "quick_gelu" if quick else "gelu_tanh" if tanh else "gelu",
        "norm_eps": float((cfg["norm_kwargs"] or {}).get("eps", 1e-5)),
    }


def _own_tower(vision: dict[str, Any], pixels: dict[str, Any], quick: bool) -> ImageConfig:
    return ImageConfig(
        patch=vision["patch_size"],
        resolution=vision["image_size"],
        pool="cls",
        pre_norm=not vision["no_ln_pre"],
        patch_bias=False,
        **_shared(vision, vision["width"] // max(vision["head_width"], 1), quick),
        **pixels,
    )


def _timm_tower(vision: dict[str, Any], pixels: dict[str, Any], source: str) -> ImageConfig:
    name = str(vision["timm_model_name"]).partition(".")[0]
    tower = open_clip_names.TOWERS.get(name)
    if tower is None or vision["timm_pool"] not in ("map", ""):
        raise InteropError(
            f"{source}: the timm tower {name!r} with timm_pool = {vision['timm_pool']!r} cannot be "
            f"read; with timm_pool = 'map' these can: {', '.join(open_clip_names.TOWERS)}."
        )
    if vision["timm_proj"] not in ("none", "linear") or vision["timm_proj_bias"]:
        raise InteropError(
            f"{source}: vision_cfg.timm_proj must be 'none', or 'linear' without bias, found "
            f"{vision['timm_proj']!r}."
        )
    size = tower.size
    return ImageConfig(
        patch=tower.patch,
        resolution=tower.resolution,
        activation=tower.activation,
        **size_settings(size.width, size.depth, size.mlp, size.heads),
        **pixels,
    )


def _text_tower(
    text: dict[str, Any], tokenizer: TokenizerConfig, quick: bool, source: str
) -> TextConfig:
    eos = CLIP_EOS if tokenizer.kind == "clip_bpe" else tokenizer.eos_id
    pool: dict[str, Any] = {"pool": "last"}
    if text["pool_type"] == "eos":
        pool = {"pool": "eot", "eot_id": text["eos_id"]}
    elif text["pool_type"] == "argmax":
        pool = {"pool": "eot", "eot_id": text["vocab_size"] - 1}
    elif text["pool_type"] != "last":
        raise InteropError(
            f"{source}: text_cfg.pool_type = {text['pool_type']!r} is not supported."
        )
    if pool["pool"] == "eot" and pool["eot_id"] != eos:
        raise InteropError(
            f"{source} pools texts at the id {pool['eot_id']} (text_cfg.pool_type = "
            f"{text['pool_type']!r}), but its tokenizer ends them with {eos}."
        )
    return TextConfig(
        vocab_size=text["vocab_size"],
        length=text["context_length"],
        causal=not text["no_causal_mask"],
        head_bias=bool(text["proj_bias"]),
        **pool,
        **_shared(text, text["heads"], quick),
    )


def _tokenizer(
    folder: pathlib.Path, text: dict[str, Any], source: str
) -> tuple[TokenizerConfig, bytes]:
    """SimpleTokenizer is our "clip_bpe"; HFTokenizer cleans texts before the file's tokenizer."""
    kwargs = dict(text["tokenizer_kwargs"] or {})
    hf = bool(text["hf_tokenizer_name"])
    clean = kwargs.pop("clean", "whitespace" if hf else "lower")
    if any(kwargs.values()) or clean not in ("whitespace", "lower", "canonicalize"):
        raise InteropError(
            f"{source}: text_cfg.tokenizer_kwargs has {kwargs or clean}, which is unknown."
        )
    if not hf and clean == "whitespace":
        raise InteropError(f"{source}: CLIP's tokenizer without lower-casing is not supported.")
    canonical: dict[str, Any] = {}
    if clean == "canonicalize":
        canonical = {"canonicalize": True, "underscore": "space"}
    if not hf:
        return TokenizerConfig(length=text["context_length"], **canonical), b""
    tokens, content, _ = tokenizer_read.read(folder, text["context_length"], "")
    settings = {"mend": True, "lower": tokens.lower or clean != "whitespace", **canonical}
    # HFTokenizer pads and cuts to context_length, and ignores the tokenizer's own length.
    fields = {key: getattr(tokens, key) for key in ("kind", "path", "eos", "eos_id", "pad_id")}
    return TokenizerConfig(length=text["context_length"], **fields, **settings), content


def _resize(pictures: dict[str, Any], source: str) -> ResizeConfig:
    mode = pictures.get("resize_mode") or "shortest"
    if mode not in _MODES or pictures.get("mode", "RGB") != "RGB":
        raise InteropError(
            f"{source}: preprocess_cfg.resize_mode = {mode!r} is not supported, or .mode is not "
            f"'RGB'; modes of resizing: {', '.join(_MODES)}."
        )
    # open_clip's "random" is for training, and bicubic at inference.
    filters = {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}
    name = pictures.get("interpolation") or "bicubic"
    if name not in filters:
        raise InteropError(f"{source}: preprocess_cfg.interpolation = {name!r} is not supported.")
    return ResizeConfig(mode=_MODES[mode], interpolation=filters[name])
