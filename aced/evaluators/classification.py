"""What classifications of pictures share: the names and prompts of classes, labels, numbers."""

import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int, PyTree

from aced.config import ConfigError
from aced.data.reader import known_fields
from aced.data.records import Source
from aced.data.tokenizers import Tokenizer
from aced.evaluators.average_precision import mean_average_precision
from aced.evaluators.config import EvalConfig
from aced.evaluators.embed import Embedder
from aced.evaluators.references import References

# The class of each picture by its number, or whether each picture shows each class.
Truth = Int[np.ndarray, " n"] | Bool[np.ndarray, "n classes"]


def class_names(config: EvalConfig, source: Source) -> tuple[str, ...]:
    """The evaluation's names of the classes, or those that the data set brings; maybe none."""
    return config.class_names or tuple(getattr(source, "class_names", None) or ())


class Prompts:
    """The prompts of classes, where classes that read alike are one.

    ImageNet has two classes `missile`. Embedded once and compared once, they have equal scores; of
    two rows the last digits would be left to the place in a batch and to the matrix product.

    Attributes:
        repeated: the names that are alike, in groups.
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
        self.repeated = [[names[i] for i in group] for group in groups if len(group) > 1]

    def weights(self, embed: Embedder, params: PyTree) -> Float[np.ndarray, "classes d"]:
        """Mean of the normalised prompt embeddings of each class, normalised again."""
        return self._distinct(embed, params)[self._place]

    def scores(
        self, embed: Embedder, params: PyTree, zimg: Float[np.ndarray, "n d"]
    ) -> Float[np.ndarray, "n classes"]:
        """The similarity of pictures to classes; classes that read alike have the same."""
        return (zimg @ self._distinct(embed, params).T)[:, self._place]

    def _distinct(self, embed: Embedder, params: PyTree) -> Float[np.ndarray, "distinct d"]:
        mean = embed.texts(params, self._prompts).reshape(*self._shape, -1).mean(axis=1)
        return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


class Labelled:
    """The pictures of a data set whose classes are known."""

    def __init__(self, config: EvalConfig, source: Source, names: tuple[str, ...], embed: Embedder):
        """Refuses, before anything is trained, what could never be told apart.

        Raises:
            ConfigError: there are no labels; or classes are in the captions, and have no names.
        """
        self._source, self._names, self._embed = source, names, embed
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

    def __call__(self, params: PyTree) -> tuple[Float[np.ndarray, "n d"], Truth]:
        """Their embeddings and classes; the others are left out, and their number is logged.

        Raises:
            ConfigError: the data set has no labels, or others than the class names.
        """
        found = self._embed.data_set(params, self._source, captions=0)
        if self._shown is None:
            truth = found["label"]
            known = truth >= 0
        else:
            truth = self._multi_hot(self._shown(found["id"]))
            known = truth.any(axis=1)
        if not known.any():
            raise ConfigError(f"Classification needs labels, and {self._source.name} has none.")
        if not known.all():
            logging.warning(
                "An evaluation leaves out %d of %d pictures of %s: they have no label.",
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
        return found["zimg"][known], truth[known]

    def _multi_hot(self, texts: list[tuple[str, ...]]) -> Bool[np.ndarray, "n classes"]:
        places: dict[str, list[int]] = {}  # of a name that is repeated, all
        for i, name in enumerate(self._names):
            places.setdefault(name, []).append(i)
        truth = np.zeros((len(texts), len(self._names)), bool)
        for shown, captions in zip(truth, texts, strict=True):
            for caption in captions:
                if caption not in places:
                    raise ConfigError(
                        f"{self._source.name} has the caption {caption!r:.100}, which is no class "
                        "name; correct class_names of the evaluation, or its classes_in."
                    )
                shown[places[caption]] = True
        return truth


def numbers(scores: Float[np.ndarray, "n classes"], truth: Truth) -> dict[str, float]:
    """Numbers of a classification by `scores`; of equal ones the first class is taken.

    Returns:
        Of one class for each picture: see `accuracy`. Of several: `map_11point` and `map`, the mean
        over the classes of VOC2007's average precision at 11 points and of the area under the
        curve; `top1`, the share of pictures whose best class is one that they show. All in [0, 1];
        and `examples`.
    """
    if truth.ndim == 1:
        return accuracy(scores, truth)
    scores = np.nan_to_num(scores, nan=-np.inf)  # a broken model finds nothing
    found = mean_average_precision(jnp.asarray(scores, jnp.float32), jnp.asarray(truth))
    best, rows = scores.argmax(axis=1), np.arange(len(truth))
    right = truth[rows, best] & (scores[rows, best] > -np.inf)
    return {
        "map_11point": float(found.eleven_points),
        "map": float(found.area),
        "top1": float(right.mean()),
        "examples": float(len(truth)),
    }


def accuracy(scores: Float[np.ndarray, "n classes"], label: np.ndarray) -> dict[str, float]:
    """Numbers of a classification by `scores`; of equal ones the first class is taken.

    That is what argmax does, and so open_clip and CLIP_benchmark. Scores that are no numbers are
    never right.

    Returns:
        `top1` and `top5` accuracy, `mean_per_class` accuracy, of two classes also `roc_auc` (ties
        count half), all in [0, 1]; and `examples`.
    """
    scores = np.nan_to_num(scores, nan=-np.inf)  # a broken model finds nothing
    own = scores[np.arange(len(label)), label][:, None]
    before = np.arange(scores.shape[1]) < label[:, None]
    rank = np.sum((scores > own) | (before & (scores == own)), axis=1)
    rank = np.where(own[:, 0] > -np.inf, rank, scores.shape[1])
    right = rank == 0
    classes = np.unique(label)
    found = {
        "top1": float(right.mean()),
        "top5": float(np.mean(rank < min(5, scores.shape[1]))),
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
