"""Pretraining of small image-text models: ACID, ACED, DIME-FM and OPTIMA in JAX.

The names below are the public interface: `import aced; aced.select(...)`. Each is imported on first
use, so `import aced` itself loads nothing. Everything else may change between versions.
"""

import importlib
from typing import Any

# Public names, by module.
_PUBLIC = {
    "aced.config": ("ConfigError",),
    "aced.outputs": ("Embeddings",),
    "aced.losses.contrastive": ("sigmoid_loss", "softmax_loss"),
    "aced.losses.distillation": (
        "feature_matching",
        "init_projection",
        "sigmoid_kd",
        "softmax_kd",
    ),
    "aced.losses.similarity": ("SimilarityConfig", "similarity_loss", "similarity_losses"),
    "aced.selection": ("Selection", "SelectionConfig", "select", "take"),
    "aced.models.two_tower": ("TwoTower", "TwoTowerConfig", "preset"),
    "aced.methods.frozen": ("CheckpointOf", "load_model", "trained_model"),
    "aced.inference": ("Encoder", "load"),
    "aced.data.tokenizers": ("TokenizerConfig", "get_tokenizer"),
    "aced.data.sources": ("DataConfig", "open_source"),
    "aced.data.pipeline": ("View", "train_batches"),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'aced' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
