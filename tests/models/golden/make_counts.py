"""Writes counts.json: parameter counts of transformers' SigLIP and CLIP, on the meta device.

    python tests/models/golden/make_counts.py      (needs the 'parity' extra)

The sizes are written out here again, from the papers, so that a slip in aced's table shows.
"""

import json
import pathlib

PATH = pathlib.Path(__file__).with_name("counts.json")
# width, depth, mlp, heads: "Scaling Vision Transformers" (arXiv 2106.04560, table 2),
# "Getting ViT in Shape" (2305.13035) for So400m, big_vision for M and g; mu is aced's own.
SIZES = {
    "mu": (32, 1, 128, 2),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "M": (512, 12, 2048, 8),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "So400m": (1152, 27, 4304, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
}
SIGLIP_TEXT = {"vocab_size": 32000, "max_position_embeddings": 64}
CLIP_TEXT = {"vocab_size": 49408, "max_position_embeddings": 77}


def _tower(size, **more):
    width, depth, mlp, heads = SIZES[size]
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        **more,
    }


def _count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def siglip(size, patch, resolution, text_size, **text):
    """Counts of SiglipModel, with the text projected to the image tower's width."""
    import torch
    import transformers

    vision = _tower(size, patch_size=patch, image_size=resolution)
    text = _tower(text_size, projection_size=vision["hidden_size"], **(SIGLIP_TEXT | text))
    with torch.device("meta"):
        model = transformers.SiglipModel(
            transformers.SiglipConfig(vision_config=vision, text_config=text)
        )
    return {
        "image": _count(model.vision_model),
        "text": _count(model.text_model),
        "total": _count(model),
    }


def clip(size, patch, resolution, text_size, embed_dim):
    """Counts of CLIPModel; each tower with its projection."""
    import torch
    import transformers

    config = transformers.CLIPConfig(
        vision_config=_tower(size, patch_size=patch, image_size=resolution),
        text_config=_tower(text_size, **CLIP_TEXT),
        projection_dim=embed_dim,
    )
    with torch.device("meta"):
        model = transformers.CLIPModel(config)
    return {
        "image": _count(model.vision_model) + _count(model.visual_projection),
        "text": _count(model.text_model) + _count(model.text_projection),
        "total": _count(model),
    }


def make():
    """All counts: every size in both families, and the models that have a name."""
    counts = {"siglip": {}, "clip": {}, "models": {}}
    for size in SIZES:
        counts["siglip"][size] = siglip(size, 16, 256, size)
        counts["clip"][size] = clip(size, 16, 224, size, 512)
    counts["models"] = {
        "ACED-F0": siglip("S", 32, 288, "S"),
        "ACED-F1": siglip("B", 32, 256, "S"),
        "ACED-F2": siglip("B", 24, 240, "S"),
        "SigLIP-B/16-256": siglip("B", 16, 256, "B"),
        "SigLIP-So400m/14-224": siglip("So400m", 14, 224, "So400m", max_position_embeddings=16),
        "SigLIP-So400m/14-384": siglip("So400m", 14, 384, "So400m"),
        "CLIP-B/32": clip("B", 32, 224, "M", 512),
        "CLIP-B/16": clip("B", 16, 224, "M", 512),
        "CLIP-L/14": clip("L", 14, 224, "B", 768),
        "CLIP-g/14": clip("g", 14, 224, "L", 1024),
    }
    return counts


if __name__ == "__main__":
    PATH.write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")
