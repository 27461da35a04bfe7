"""What classifications of pictures share: the names and prompts of classes, labels, numbers."""

import numpy as np
from jaxtyping import Float, Int, PyTree

from aced.config import ConfigError
from aced.data.records import Source
from aced.evaluators.config import EvalConfig
from aced.evaluators.embed import Embedder


def class_names(config: EvalConfig, source: Source) -> tuple[str, ...]:
    """The evaluation's names of the classes, or those that the data set brings; maybe none."""
    return config.class_names or tuple(getattr(source, "class_names", None) or ())


def class_weights(
    embed: Embedder, params: PyTree, names: tuple[str, ...], templates: tuple[str, ...]
) -> Float[np.ndarray, "classes d"]:
    """Mean of the normalised prompt embeddings of each class, normalised again."""
    prompts = [template.replace("{}", name) for name in names for template in templates]
    ztxt = embed.texts(params, prompts)
    mean = ztxt.reshape(len(names), len(templates), -1).mean(axis=1)
    return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def labelled(
    embed: Embedder, params: PyTree, source: Source, names: tuple[str, ...]
) -> tuple[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]]:
    """Embeddings and labels of the pictures that have a label.

    Raises:
        ConfigError: the data set has no labels, or labels beyond the class names, if there are any.
    """
    found = embed.data_set(params, source, captions=0)
    label = found.get("label", np.zeros(0, int))
    known = label >= 0
    if not known.any():
        raise ConfigError(f"Classification needs labels, and {source.name} has none.")
    if names and label.max() >= len(names):
        raise ConfigError(
            f"{source.name} has label {label.max()}, but there are only {len(names)} class names; "
            "set class_names to all of them."
        )
    return found["zimg"][known], label[known]


def accuracy(scores: Float[np.ndarray, "n classes"], label: np.ndarray) -> dict[str, float]:
    """Numbers of a classification by `scores`; ties count as wrong.

    Returns:
        `top1` and `top5` accuracy, `mean_per_class` accuracy, of two classes also `roc_auc` (ties
        count half), all in [0, 1]; and `examples`.
    """
    scores = np.nan_to_num(scores, nan=-np.inf)  # a broken model finds nothing
    own = scores[np.arange(len(label)), label][:, None]
    rank = np.sum(scores >= own, axis=1) - 1
    right = rank == 0
    classes = np.unique(label)
    found = {
        "top1": float(right.mean()),
        "top5": float(np.mean(rank < 5)),
        "mean_per_class": float(np.mean([right[label == c].mean() for c in classes])),
        "examples": float(len(label)),
    }
    if scores.shape[1] == 2 and len(classes) == 2:
        found["roc_auc"] = _roc_auc(scores, label)
    return found


def _roc_auc(scores: Float[np.ndarray, "n 2"], label: np.ndarray) -> float:
    """How often a picture of class 1 gets more for it than one of class 0 (Mann and Whitney)."""
    with np.errstate(invalid="ignore"):
        margin = np.nan_to_num(scores[:, 1] - scores[:, 0])
    _, place, count = np.unique(margin, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]  # from 1; the mean of equal ones
    ones = int(label.sum())
    wins = rank[label == 1].sum() - ones * (ones + 1) / 2
    return float(wins / (ones * (len(label) - ones)))
