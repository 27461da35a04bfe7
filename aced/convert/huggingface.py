"""SigLIP, SigLIP 2 of fixed resolution, and CLIP in the layout of transformers.

config.json, model.safetensors (or several with an index), preprocessor_config.json, tokenizer
"""

import pathlib
from typing import Any

from aced.convert import positions, preprocessor, tables, tokenizer_read, tokenizer_write
from aced.convert.tables import Pair, convolution, fused, linear, norm, same, transposed, with_axes
from aced.models import tensors
from aced.models.layouts import TRANSFORMERS_CONFIG as CONFIG
from aced.models.saved import (
    InteropError,
    Model,
    Params,
    checking_settings,
    read_config_value,
    refuse,
    size_settings,
)
from aced.models.text import TextConfig
from aced.models.two_tower import TwoTowerConfig
from aced.models.vit import ImageConfig

WEIGHTS = "model.safetensors"
_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "quick_gelu": "quick_gelu"}
PIPELINE_LENGTH = 64  # of pipeline("zero-shot-image-classification") for every SigLIP
_LEGACY_EOS = 2  # of CLIP checkpoints before 2023, which pool at the highest id
# Defaults of transformers' classes for settings that config.json leaves out.
_DEFAULTS: dict[str, dict[str, dict[str, Any]]] = {
    "siglip": {
        "shared": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
        | {"num_attention_heads": 12, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
        "vision": {"image_size": 224, "patch_size": 16, "num_channels": 3, "vision_use_head": True},
        "text": {"vocab_size": 32000, "max_position_embeddings": 64},
    },
    "clip": {
        "shared": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
        | {"num_attention_heads": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
        "vision": {"image_size": 224, "patch_size": 32, "num_channels": 3},
        "text": {"vocab_size": 49408, "max_position_embeddings": 77, "hidden_size": 512}
        | {"intermediate_size": 2048, "num_attention_heads": 8, "eos_token_id": 49407},
    },
}


# --- Reading -------------------------------------------------------------------------------------


def read(folder: pathlib.Path, source: str) -> Model:
    """Returns the model in `folder`; `source` is its name in errors.

    Raises:
        InteropError: a file is missing or broken, or our models cannot express it.
    """
    about = tensors.read_json(folder / CONFIG)
    family = about.get("model_type")
    if family not in _DEFAULTS:
        raise InteropError(
            f"{source} has the model_type {family!r}; siglip (SigLIP and SigLIP 2 of fixed "
            "resolution) and clip can be read. SigLIP 2's NaFlex models (model_type siglip2) take "
            "pictures of any shape, which ours do not."
        )
    vision, text = _tower(about, family, "vision"), _tower(about, family, "text")
    positions = text["max_position_embeddings"]
    tokenizer, content, notes = tokenizer_read.read(folder, positions, family)
    resize, mean, std = preprocessor.read(folder, vision["image_size"])
    weights = tensors.read_safetensors(folder, (WEIGHTS,))
    weights = {k: v for k, v in weights.items() if not k.endswith(".position_ids")}
    if family == "siglip":
        embed_dim, bias = None, "logit_bias"
    else:  # CLIPModel reads only the outer value of projection_dim
        outer = {"projection_dim": 512} | about
        embed_dim, bias = read_config_value(outer, "projection_dim", int, CONFIG), None
    with checking_settings(source):
        config = TwoTowerConfig(
            image=_image_config(vision, family, mean, std, source),
            text=_text_config(text, family, tokenizer.eos_id, source),
            embed_dim=embed_dim,
            resize=resize,
            tokenizer=tokenizer,
            **tables.logits(weights, "logit_scale", bias, source),
        )
    params = tables.to_params(_table(config), weights, config, source)
    return Model(config, params, content, source, notes)


def _tower(about: dict[str, Any], family: str, tower: str) -> dict[str, Any]:
    defaults = _DEFAULTS[family]
    given = about.get(f"{tower}_config") or {}
    if not isinstance(given, dict):
        raise InteropError(f"{CONFIG}: {tower}_config must be an object, found {given!r}.")
    settings = defaults["shared"] | defaults[tower] | given
    where = f"{CONFIG}: {tower}_config"
    counts = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    own = {
        "vision": ("image_size", "patch_size"),
        "text": ("vocab_size", "max_position_embeddings"),
    }
    for key in (*counts, *own[tower]):
        if read_config_value(settings, key, int, where) < 1:
            raise InteropError(f"{where}: {key} must be at least 1, found {settings[key]}.")
    read_config_value(settings, "layer_norm_eps", float, where)
    if settings["hidden_act"] not in _ACTIVATIONS:
        raise InteropError(
            f"{where}: hidden_act = {settings['hidden_act']!r} is not supported; these are: "
            f"{', '.join(_ACTIVATIONS)}."
        )
    return settings


def _shared_settings(tower: dict[str, Any]) -> dict[str, Any]:
    sizes = size_settings(
        tower["hidden_size"],
        tower["num_hidden_layers"],
        tower["intermediate_size"],
        tower["num_attention_heads"],
    )
    activation = _ACTIVATIONS[tower["hidden_act"]]
    return {**sizes, "activation": activation, "norm_eps": float(tower["layer_norm_eps"])}


def _image_config(
    vision: dict[str, Any], family: str, mean: Any, std: Any, source: str
) -> ImageConfig:
    if vision["num_channels"] != 3:
        raise InteropError(f"{source}: vision_config.num_channels must be 3.")
    if not vision.get("vision_use_head", True):
        raise InteropError(f"{source}: vision_config.vision_use_head must be true.")
    kind = {} if family == "siglip" else {"pool": "cls", "pre_norm": True, "patch_bias": False}
    return ImageConfig(
        patch=vision["patch_size"],
        resolution=vision["image_size"],
        mean=mean,
        std=std,
        **kind,
        **_shared_settings(vision),
    )


def _text_config(text: dict[str, Any], family: str, eos_id: int | None, source: str) -> TextConfig:
    sizes = {"vocab_size": text["vocab_size"], "length": text["max_position_embeddings"]}
    if family == "siglip":
        return TextConfig(**sizes, **_shared_settings(text))
    eot = text["eos_token_id"]
    if eot == _LEGACY_EOS:
        # Pooling at the highest id is the same if no id is above the end of text.
        eot = text["vocab_size"] - 1
        if eos_id != eot:
            raise InteropError(
                f"{source} pools at the highest id of a text (text_config.eos_token_id = 2), but "
                f"its end of text, {eos_id}, is not the highest of {text['vocab_size']} ids."
            )
    if eot != eos_id:
        raise InteropError(
            f"{source}: text_config.eos_token_id = {eot!r}, but the tokenizer ends texts with "
            f"{eos_id}."
        )
    return TextConfig(
        **sizes, **_shared_settings(text), pool="eot", eot_id=eot, causal=True, head_bias=False
    )


# --- Names ---------------------------------------------------------------------------------------


def _table(config: TwoTowerConfig) -> list[Pair]:
    image = "vision_model.embeddings"
    shared = [
        *_tower_table("image", "vision_model", "post_layernorm"),
        *_tower_table("text", "text_model", "final_layer_norm"),
        same("text_model.embeddings.token_embedding.weight", "text/token"),
        convolution(f"{image}.patch_embedding.weight", "image/patch/kernel", config.image.patch),
    ]
    if config.image.pool == "map":
        head = "vision_model.head"
        parts = [f"image/map/attention/{x}" for x in "qkv"]
        attention = f"{head}.attention"
        return [
            *shared,
            same(f"{image}.patch_embedding.bias", "image/patch/bias"),
            with_axes(f"{head}.probe", "image/map/probe", 2),
            *fused(f"{attention}.in_proj_weight", f"{attention}.in_proj_bias", parts),
            *linear(f"{attention}.out_proj", "image/map/attention/out"),
            *norm(f"{head}.layernorm", "image/map/norm"),
            *linear(f"{head}.mlp.fc1", "image/map/mlp/fc1"),
            *linear(f"{head}.mlp.fc2", "image/map/mlp/fc2"),
            *linear("text_model.head", "text/head"),
            with_axes("logit_scale", "t", 1),
            with_axes("logit_bias", "bias", 1),
        ]
    return [
        *shared,
        same(f"{image}.class_embedding", "image/cls"),
        *norm("vision_model.pre_layrnorm", "image/norm_pre"),
        transposed("visual_projection.weight", "image/head/kernel"),
        transposed("text_projection.weight", "text/head/kernel"),
        same("logit_scale", "t"),
    ]


def _tower_table(ours: str, theirs: str, final_norm: str) -> list[Pair]:
    layer, block = f"{theirs}.encoder.layers.{{}}", f"{ours}/blocks"
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
    attention = [
        linear(f"{layer}.self_attn.{v}", f"{block}/attention/{k}") for k, v in names.items()
    ]
    return [
        *norm(f"{layer}.layer_norm1", f"{block}/norm1"),
        *[pair for pairs in attention for pair in pairs],
        *norm(f"{layer}.layer_norm2", f"{block}/norm2"),
        *linear(f"{layer}.mlp.fc1", f"{block}/mlp/fc1"),
        *linear(f"{layer}.mlp.fc2", f"{block}/mlp/fc2"),
        *norm(f"{theirs}.{final_norm}", f"{ours}/norm"),
        same(f"{theirs}.embeddings.position_embedding.weight", f"{ours}/position"),
    ]


# --- Writing -------------------------------------------------------------------------------------


def write(model: Model, folder: pathlib.Path, text_length: int = 0) -> list[str]:
    """Writes `model` into the empty `folder`, as SiglipModel or CLIPModel.

    Args:
        model: the model.
        folder: the empty folder.
        text_length: ids of a text of a SiglipModel, if the tokenizer gives fewer; see `positions`.
            0: as the tokenizer gives.

    Returns:
        Notes on differences in preprocessing; the weights are the same without `text_length`.

    Raises:
        InteropError: neither class can express the model; the message names the settings.
    """
    config = model.config
    refuse(
        "transformers' SiglipModel and CLIPModel",
        {"image.architecture must be 'vit'": config.image.architecture != "vit"},
    )
    siglip = _is_siglip(config)
    own, unread, notes = config.tokenizer.length, 0, []
    if siglip and config.tokenizer.eos and own < text_length:
        model, unread = positions.extend(model, text_length), text_length - own
        config = model.config
        notes.append(
            f"{unread} text positions were added that receive no attention, so that "
            "transformers' pipelines can run it; embeddings are the same up to rounding"
        )
    written = tokenizer_write.files(model, unread)
    params: Params = model.params | {"text": model.params["text"] | {}}
    params["text"]["token"] = tokenizer_write.padded_table(model, written)
    weights = tables.to_tensors(_table(config), params, config)
    tensors.write_safetensors(folder / WEIGHTS, weights, "pt")
    tensors.write_json(folder / CONFIG, _their_config(config, params, written, siglip))
    processor = "SiglipProcessor" if siglip else "CLIPProcessor"
    for name, content in written.files.items():
        (folder / name).write_bytes(content)
    settings = {**written.settings, "processor_class": processor}
    tensors.write_json(folder / "tokenizer_config.json", settings)
    notes += [*written.notes, *preprocessor.write(config, folder, processor)]
    if siglip and config.tokenizer.length != PIPELINE_LENGTH:
        notes.append(
            "transformers' pipelines pad texts for a SigLIP to 64 ids, but this model reads "
            f"{config.tokenizer.length}; use AutoModel and AutoProcessor"
        )
    return notes


def _their_config(
    config: TwoTowerConfig, params: Params, tokenizer: tokenizer_write.TokenizerFiles, siglip: bool
) -> dict[str, Any]:
    """The content of their config.json, of a SiglipModel or a CLIPModel."""
    towers = {"vision": _their_tower(config.image), "text": _their_tower(config.text)}
    towers["vision"] |= {"image_size": config.image.resolution, "patch_size": config.image.patch}
    towers["text"] |= {
        "vocab_size": len(params["text"]["token"]),
        "max_position_embeddings": config.text.length,
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": None,
        "eos_token_id": config.text.eot_id if config.text.pool == "eot" else tokenizer.eos_id,
    }
    about = {
        "architectures": ["SiglipModel" if siglip else "CLIPModel"],
        "model_type": "siglip" if siglip else "clip",
        "dtype": "float32",
    }
    if siglip:
        towers["text"]["projection_size"] = config.width
    else:
        about |= {"projection_dim": config.width, "logit_scale_init_value": float(params["t"])}
        for tower in towers.values():
            tower["projection_dim"] = config.width
    for name, tower in towers.items():
        about[f"{name}_config"] = {"model_type": f"{about['model_type']}_{name}_model", **tower}
    return about


def _their_tower(tower: ImageConfig | TextConfig) -> dict[str, Any]:
    theirs = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    return {
        "hidden_size": tower.dims.width,
        "intermediate_size": tower.dims.mlp,
        "num_hidden_layers": tower.dims.depth,
        "num_attention_heads": tower.dims.heads,
        "hidden_act": theirs[tower.activation],
        "layer_norm_eps": tower.norm_eps,
        "attention_dropout": 0.0,
    }


def _is_siglip(config: TwoTowerConfig) -> bool:
    """Whether the model is a SiglipModel; otherwise it is a CLIPModel.

    Raises:
        InteropError: it is neither.
    """
    image, text = config.image, config.text
    if image.pool == "map":
        problems = tables.differences_from_siglip(config)
        refuse("transformers' SiglipModel (for image.pool = 'map')", problems)
        return True
    pool = f"image.pool = {image.pool!r} must be 'cls' (or 'map', for SiglipModel)"
    problems = {
        pool: image.pool != "cls",
        "image.position must be 'learned'": image.position != "learned",
        "image.pre_norm must be True": not image.pre_norm,
        "image.patch_bias must be False": image.patch_bias,
        "embed_dim must be a number": config.embed_dim is None,
        "init_bias must be None (CLIPModel has no bias)": config.init_bias is not None,
        "text.pool must be 'eot'": text.pool != "eot",
        "text.causal must be True": not text.causal,
        "text.head_bias must be False": text.head_bias,
        "text.eot_id must not be 2 (a legacy value)": text.eot_id == _LEGACY_EOS,
    }
    refuse("transformers' CLIPModel", problems)
    return False
