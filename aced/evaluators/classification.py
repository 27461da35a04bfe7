"""Shared parts of image classification: class names and prompts, labels, metrics."""

from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int, PyTree

from aced.config import ConfigError
from aced.data.reader import known_fields
from aced.data.records import Source
from aced.data.tokenizers import Tokenizer
from aced.evaluators import bootstrap, ranking
from aced.evaluators.config import EvalConfig
from aced.evaluators.embed import Embedder
from aced.evaluators.whole import References

# The class index of each image, or a mask of the classes that each image shows.
Truth = Int[np.ndarray, " n"] | Bool[np.ndarray, "n classes"]

DEFAULT_TEMPLATES = ("a photo of a {}.",)


class Pictures(NamedTuple):
    """The labelled images of a data set, embedded."""

    zimg: Float[np.ndarray, "n d"]
    truth: Truth
    group: Int[np.ndarray, " n"] | None  # -1: unknown; None: the data set has no groups


def class_names(config: EvalConfig, source: Source) -> tuple[str, ...]:
    """The class names of the evaluation, or else of the data set; may be empty."""
    return config.class_names or tuple(getattr(source, "class_names", None) or ())


def templates(config: EvalConfig, source: Source) -> tuple[str, ...]:
    """The prompts of the evaluation, or else of the data set, or else "a photo of a {}."."""
    return config.templates or getattr(source, "templates", None) or DEFAULT_TEMPLATES


class Prompts:
    """The prompts of classes. Classes with identical prompts share one embedding.

    ImageNet has two classes `missile`. Sharing makes their scores exactly equal; with separate rows
    they could differ by rounding.

    Attributes:
        repeated: groups of names with identical prompts.
    """

    def __init__(self, names: tuple[str, ...], templates: tuple[str, ...], tokenizer: Tokenizer):
        prompts = [template.replace("{}", name) for name in names for template in templates]
        ids = tokenizer(prompts).reshape(len(names), -1)
        _, first, place = np.unique(ids, axis=0, return_index=True, return_inverse=True)
        self._shape = len(first), len(templates)
        self._prompts = [
            prompt for i in first for prompt in prompts[i * len(templates) :][: len(templates)]
        ]
        self._place = place.reshape(-1)
        groups = [np.flatnonzero(self._place == i) for i in range(len(first))]
        groups = [[names[i] for i in group if names[i]] for group in groups]
        self.repeated = [group for group in groups if len(group) > 1]

    def weights(self, embed: Embedder, params: PyTree) -> Float[np.ndarray, "classes d"]:
        """The mean of the normalised prompt embeddings of each class, normalised again."""
        return self._distinct(embed, params)[self._place]

    def scores(
        self, embed: Embedder, params: PyTree, zimg: Float[np.ndarray, "n d"]
    ) -> Float[np.ndarray, "n classes"]:
        """The similarities of images to classes; equal for identical prompts."""
        return (zimg @ self._distinct(embed, params).T)[:, self._place]

    def _distinct(self, embed: Embedder, params: PyTree) -> Float[np.ndarray, "distinct d"]:
        mean = embed.texts(params, self._prompts).reshape(*self._shape, -1).mean(axis=1)
        return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


class Labelled:
    """The labelled images of a data set."""

    def __init__(self, config: EvalConfig, source: Source, names: tuple[str, ...], embed: Embedder):
        """Checks the labels before training starts.

        Raises:
            ConfigError: the data set has no labels, or classes are in the captions but have no
                names.
        """
        self._source, self._names, self._embed = source, names, embed
        self._nameless = [i for i, name in enumerate(names) if not name]
        self._shown = None
        if config.classes_in == "label" and "label" not in known_fields(source, config.data):
            raise ConfigError(f"Classification needs labels, and {source.name} has none.")
        if config.classes_in == "captions":
            if not names:
                raise ConfigError(
                    f"classes_in = 'captions' needs class names, and {source.name} brings none; "
                    "set class_names of the evaluation."
                )
            self._shown = References(source, config.data)

    def __call__(self, params: PyTree) -> Pictures:
        """The labelled images, with their classes. The number of others is logged.

        Raises:
            ConfigError: the data set has no labels, or labels without a class name.
        """
        rows = self._embed.data_set(params, self._source, captions=0)
        if self._shown is None:
            truth = rows["label"]
            known = (truth >= 0) & ~np.isin(truth, self._nameless)
        else:
            truth = self._multi_hot(self._shown(rows["id"]))
            known = truth.any(axis=1)
        if not known.any():
            raise ConfigError(f"Classification needs labels, and {self._source.name} has none.")
        if not known.all():
            logging.warning(
                "An evaluation leaves out %d of %d pictures of %s: they have no label, or one "
                "without a name.",
                np.sum(~known),
                len(known),
                self._source.name,
            )
        if self._shown is None and self._names and truth.max() >= len(self._names):
            beyond = np.unique(truth[truth >= len(self._names)])
            listed = ", ".join(map(str, beyond[:10])) + ", ..." * (len(beyond) > 10)
            raise ConfigError(
                f"{self._source.name} has classes {listed}, but only {len(self._names)} class "
                "names, which are numbered from 0; set class_names to all of them."
            )
        group = rows["group"][known] if "group" in rows else None
        return Pictures(rows["zimg"][known], truth[known], group)

    def _multi_hot(self, texts: list[tuple[str, ...]]) -> Bool[np.ndarray, "n classes"]:
        places: dict[str, list[int]] = {}  # all indices of a name, which may repeat
        for i, name in enumerate(self._names):
            places.setdefault(name, []).append(i)
        truth = np.zeros((len(texts), len(self._names)), bool)
        for shown, captions in zip(truth, texts, strict=True):
            for caption in captions:
                if caption not in places:
                    raise ConfigError(
                        f"{self._source.name} has the caption {caption!r:.100}, which is not a "
                        "class name; correct class_names of the evaluation, or its classes_in."
                    )
                shown[places[caption]] = True
        return truth


def numbers(
    scores: Float[np.ndarray, "n classes"],
    truth: Truth,
    group: Int[np.ndarray, " n"] | None = None,
    *,
    scale: float = 1.0,
    samples: int = 0,
) -> dict[str, float]:
    """Metrics of a classification by `scores`; ties go to the first class.

    Args:
        scores: similarities or logits of every class, for n images.
        truth: the class or classes of each image.
        group: the group of each image, -1 where unknown; None: no groups.
        scale: factor that makes logits of the scores, for `map_11point_elevater`.
        samples: of the bootstrap; 0: no intervals. See `bootstrap.numbers`.

    Returns:
        With one class per image: see `accuracy`. With several: `map_11point`, VOC2007's 11-point
        average precision, `map_11point_elevater`, the same as the ELEVATER toolkit computes it, and
        `map`, the area under the curve, each averaged over the classes; `top1`, the share of images
        whose best class is one that they show; all in [0, 1]. Also `examples`.
    """
    if truth.ndim == 1:
        return accuracy(scores, truth, group, samples=samples)
    scores = np.nan_to_num(scores, nan=-np.inf)  # NaN is never right
    best, rows = scores.argmax(axis=1), np.arange(len(truth))
    right = truth[rows, best] & (scores[rows, best] > -np.inf)
    statistics = {
        "map_11point": ranking.voc_points(scores, truth),
        "map_11point_elevater": ranking.elevater_points(scores, truth, scale),
        "map": ranking.area(scores, truth),
        "top1": bootstrap.mean(right),
    }
    numbers = bootstrap.numbers(statistics, len(truth), samples)
    return numbers | {"examples": float(len(truth))}


def accuracy(
    scores: Float[np.ndarray, "n classes"],
    label: np.ndarray,
    group: Int[np.ndarray, " n"] | None = None,
    *,
    samples: int = 0,
) -> dict[str, float]:
    """Metrics of a classification by `scores`; ties go to the first class.

    This matches argmax, open_clip and CLIP_benchmark. NaN is never right.

    Returns:
        `top1`, `top5` and `mean_per_class` accuracy; `f1_macro`, the mean F1 of the classes that
        occur, as in WILDS; for two classes `roc_auc` (ties count half); with groups
        `worst_group_top1` and `worst_group_top5`, the accuracy in the group where it is least; all
        in [0, 1]. Also `examples`. With `samples`, also intervals.
    """
    scores = np.nan_to_num(scores, nan=-np.inf)
    own = scores[np.arange(len(label)), label][:, None]
    before = np.arange(scores.shape[1]) < label[:, None]
    rank = np.sum((scores > own) | (before & (scores == own)), axis=1)
    rank = np.where(own[:, 0] > -np.inf, rank, scores.shape[1])
    in_top5 = rank < min(5, scores.shape[1])
    chosen = np.where(scores.max(axis=1) > -np.inf, scores.argmax(axis=1), -1)
    statistics = {
        "top1": bootstrap.mean(rank == 0),
        "top5": bootstrap.mean(in_top5),
        "mean_per_class": bootstrap.mean_of_groups(rank == 0, label),
        "f1_macro": _f1_macro(chosen, label),
    }
    if scores.shape[1] == 2 and len(np.unique(label)) == 2:
        statistics["roc_auc"] = ranking.roc_auc(scores, label)
    if group is not None and np.any(group >= 0):
        statistics["worst_group_top1"] = bootstrap.worst_of_groups(rank == 0, group)
        statistics["worst_group_top5"] = bootstrap.worst_of_groups(in_top5, group)
    numbers = bootstrap.numbers(statistics, len(label), samples)
    return numbers | {"examples": float(len(label))}


def _f1_macro(chosen: Int[np.ndarray, " n"], label: Int[np.ndarray, " n"]) -> bootstrap.Statistic:
    """The mean over the classes that occur of 2 TP / (2 TP + FP + FN); `chosen` -1: none."""
    size = 1 + max(label.max(), chosen.max())
    right, some = chosen == label, chosen >= 0

    def by_class(classes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        by_row = [np.bincount(classes, row, size) for row in counts]
        return np.stack(by_row).astype(np.float64)  # integers where there are no classes

    def statistic(counts: Float[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
        hits = by_class(label[right], counts[:, right])
        occurring = by_class(label, counts)
        total = occurring + by_class(chosen[some], counts[:, some])  # 2 TP + FP + FN
        f1 = bootstrap.ratio(2 * hits, total)
        return bootstrap.mean_of_known(np.where(occurring > 0, f1, np.nan))

    return statistic
