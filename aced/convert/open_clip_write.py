"""Writes our models in open_clip's layout; see `open_clip`."""

import pathlib
from typing import Any

import numpy as np

from aced.convert import open_clip_names, tables, tokenizer_write
from aced.convert.open_clip import CONFIG, WEIGHTS
from aced.models import tensors
from aced.models.saved import InteropError, Model, refuse
from aced.models.text import TextConfig
from aced.models.two_tower import TwoTowerConfig
from aced.models.vit import ImageConfig

_HERE = "in this folder"  # a placeholder: open_clip uses the tokenizer in the config's folder
_EPS = 1e-5  # torch's default, without norm_kwargs


def write(model: Model, folder: pathlib.Path) -> list[str]:
    """Writes `model` into the empty `folder`.

    Returns:
        Notes on differences in preprocessing; the weights are the same.

    Raises:
        InteropError: open_clip cannot express the model; the message names the settings.
    """
    config = model.config
    timm = config.image.pool == "map"
    _check(config, timm)
    vision: dict[str, Any] = {"image_size": config.image.resolution}
    if timm:
        vision |= {"timm_model_name": open_clip_names.timm_name(config.image)}
        vision |= {"timm_model_pretrained": False, "timm_pool": "map"}
        vision |= {"timm_proj": "none" if config.embed_dim is None else "linear"}
    else:
        dims = config.image.dims
        vision |= {"patch_size": config.image.patch, "head_width": dims.width // dims.heads}
        vision |= {"no_ln_pre": not config.image.pre_norm, **_shared(config.image)}
    tokens, files, notes, table = _tokenizer(model)
    text = {
        "context_length": config.text.length,
        "vocab_size": len(table),
        "heads": config.text.dims.heads,
        "no_causal_mask": not config.text.causal,
        "proj_bias": config.text.head_bias,
        **_pool(config.text, len(table)),
        **_shared(config.text),
        **tokens,
    }
    about: dict[str, Any] = {"embed_dim": config.width}
    if config.init_bias is not None:
        about["init_logit_bias"] = float(model.params["bias"])
    if config.text.activation == "quick_gelu":
        about["quick_gelu"] = True
    about |= {"custom_text": timm, "vision_cfg": vision, "text_cfg": text}
    pictures = {
        "mean": list(config.image.mean),
        "std": list(config.image.std),
        "interpolation": config.resize.interpolation,
        "resize_mode": {"crop": "shortest", "squash": "squash"}[config.resize.mode],
    }
    tensors.write_json(folder / CONFIG, {"model_cfg": about, "preprocess_cfg": pictures})
    params = model.params | {"text": model.params["text"] | {"token": table}}
    weights = tables.to_tensors(open_clip_names.table(config, timm, 0), params, config)
    tensors.write_safetensors(folder / WEIGHTS, weights, "pt")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if config.resize.mode == "crop" and config.resize.margin != "nearest":
        notes.append("where a crop's margin is half a pixel, open_clip's picture is one pixel off")
    return notes


def _check(config: TwoTowerConfig, timm: bool) -> None:
    image, text = config.image, config.text
    quick = [tower.activation == "quick_gelu" for tower in (image, text)]
    problems = {
        "image.architecture must be 'vit'": image.architecture != "vit",
        "image.position must be 'learned'": image.position != "learned",
        "image.pool must be 'map' or 'cls'": image.pool not in ("map", "cls"),
        f"tokenizer.length = {config.tokenizer.length} must be text.length = {text.length}": (
            config.tokenizer.length != text.length
        ),
    }
    if timm:
        problems |= {
            "image.pre_norm must be False for image.pool = 'map'": image.pre_norm,
            "image.patch_bias must be True for image.pool = 'map'": not image.patch_bias,
            "image.norm_eps must be 1e-6 for image.pool = 'map'": image.norm_eps != 1e-6,
        }
    else:
        problems |= {
            "image.patch_bias must be False for image.pool = 'cls'": image.patch_bias,
            "embed_dim must be a number for image.pool = 'cls'": config.embed_dim is None,
            "image.activation and text.activation must both be 'quick_gelu', or neither": (
                quick[0] != quick[1]
            ),
        }
    refuse("open_clip", problems)


def _shared(tower: ImageConfig | TextConfig) -> dict[str, Any]:
    dims = tower.dims
    out: dict[str, Any] = {"width": dims.width, "layers": dims.depth}
    ratio = dims.mlp / dims.width
    if int(dims.width * ratio) != dims.mlp:  # open_clip rounds down
        ratio = (dims.mlp + 0.5) / dims.width
    out["mlp_ratio"] = ratio
    if tower.norm_eps != _EPS:
        out["norm_kwargs"] = {"eps": tower.norm_eps}
    if tower.activation == "gelu_tanh":
        out["act_kwargs"] = {"approximate": "tanh"}
    return out


def _pool(text: TextConfig, vocab_size: int) -> dict[str, Any]:
    if text.pool == "last":
        return {"pool_type": "last"}
    if text.eot_id == vocab_size - 1:
        return {"pool_type": "argmax"}  # the highest id of a text is its end
    return {"pool_type": "eos", "eos_id": text.eot_id}


def _tokenizer(
    model: Model,
) -> tuple[dict[str, Any], dict[str, bytes], list[str], np.ndarray]:
    """Settings of text_cfg, files, notes on differences, and the token table."""
    config = model.config.tokenizer
    if config.kind == "clip_bpe":
        if config.pad_id not in (None, 0) and not model.config.text.causal:
            raise InteropError("open_clip pads CLIP's tokenizer with 0; set tokenizer.pad_id to 0.")
        if config.canonicalize and config.underscore != "space":
            raise InteropError(
                "open_clip canonicalises '_' to a space; set tokenizer.underscore to 'space'."
            )
        clean = {"tokenizer_kwargs": {"clean": "canonicalize"}} if config.canonicalize else {}
        return clean, {}, [], model.params["text"]["token"]
    written = tokenizer_write.files(model)
    notes = [] if config.mend else ["open_clip mends texts with ftfy before it encodes them"]
    clean = "whitespace"
    if config.mend and config.lower:
        clean = "canonicalize" if config.underscore == "space" else "lower"
    tokens = {"hf_tokenizer_name": _HERE, "tokenizer_kwargs": {"clean": clean}}
    files = written.files | {"tokenizer_config.json": tensors.to_json(written.settings)}
    return tokens, files, [*written.notes, *notes], tokenizer_write.padded_table(model, written)
