"""Numbers that rank examples by a score: average precision and the area under the ROC curve.

Every score is a threshold, so equal scores count together and the order of the examples is
irrelevant. Each number is a function of how often an example counts; see `bootstrap`.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from aced.evaluators import bootstrap
from aced.evaluators.bootstrap import Statistic

_POINTS = np.linspace(1, 0, 11)  # levels of recall, rounded as in vision_evaluation

# Maps hits and examples [r t] up to each of t thresholds, and all hits [r 1], to numbers [r].
_Precision = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def roc_auc(scores: Float[np.ndarray, "n 2"], label: np.ndarray) -> Statistic:
    """The probability that class 1 outscores class 0; ties count half (Mann and Whitney)."""
    with np.errstate(invalid="ignore"):
        margin = np.nan_to_num(scores[:, 1] - scores[:, 0])
    order = np.argsort(margin, kind="stable")
    starts = np.flatnonzero(np.diff(margin[order], prepend=-np.inf))
    is_one = label[order] == 1

    def statistic(counts: Float[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
        counts = counts[:, order]
        ones = np.add.reduceat(counts * is_one, starts, axis=1)
        zeros = np.add.reduceat(counts * ~is_one, starts, axis=1)
        wins = ones * (np.cumsum(zeros, axis=1) - zeros / 2)
        return bootstrap.ratio(wins.sum(axis=1), ones.sum(axis=1) * zeros.sum(axis=1))

    return statistic


def voc_points(scores: Float[np.ndarray, "n classes"], shown: Bool[np.ndarray, "n classes"]):
    """Average precision at 11 points of recall, as in the VOC challenge until 2009.

    The mean over recalls of 0, 0.1, ..., 1 of the best precision at that recall or a higher one
    (Everingham et al., 4.2), averaged over the classes that occur.
    """

    def precision(hits: np.ndarray, among: np.ndarray, total: np.ndarray) -> np.ndarray:
        # Recalls are compared in integers.
        return _at_points(hits, among, [10 * hits >= k * total for k in range(11)])

    return _mean_over_classes(scores, shown, precision)


def elevater_points(
    scores: Float[np.ndarray, "n classes"], shown: Bool[np.ndarray, "n classes"], scale: float
):
    """The same number as the ELEVATER toolkit computes it, which is larger.

    The toolkit ranks the probabilities of a softmax over the classes, of logits that are `scale`
    times the scores, and calls `MeanAveragePrecisionNPointsEvaluator(11)` of vision_evaluation
    0.2.9. That reads scikit-learn's precision-recall curve, which ends in a precision of 1 at a
    recall of 0, so that the point at recall 0 is always 1; and it compares recalls in floating
    point. Classes that do not occur are left out here, too; scikit-learn warns of them.
    """

    def precision(hits: np.ndarray, among: np.ndarray, total: np.ndarray) -> np.ndarray:
        recall = bootstrap.ratio(hits, np.broadcast_to(total, hits.shape))
        return (10 * _at_points(hits, among, [recall >= point for point in _POINTS[:-1]]) + 1) / 11

    return _mean_over_classes(_softmax(np.float32(scale) * scores), shown, precision)


def area(scores: Float[np.ndarray, "n classes"], shown: Bool[np.ndarray, "n classes"]) -> Statistic:
    """The area under the stepwise precision-recall curve, averaged over the classes that occur."""

    def precision(hits: np.ndarray, among: np.ndarray, total: np.ndarray) -> np.ndarray:
        gained = np.diff(hits, axis=1, prepend=0)
        return bootstrap.ratio((_precision(hits, among) * gained).sum(axis=1), total[:, 0])

    return _mean_over_classes(scores, shown, precision)


def _mean_over_classes(scores: np.ndarray, shown: np.ndarray, precision: _Precision) -> Statistic:
    """The mean of `precision` over the classes that occur; 0 if none does."""
    curves = [_curve(scores[:, c], shown[:, c]) for c in range(scores.shape[1])]

    def statistic(counts: Float[np.ndarray, "r n"]) -> Float[np.ndarray, " r"]:
        precisions = []
        for order, last, hit in curves:
            counted = counts[:, order]
            hits = np.cumsum(counted * hit, axis=1)[:, last]
            among = np.cumsum(counted, axis=1)[:, last]
            total = hits[:, -1:]
            precisions.append(np.where(total[:, 0] > 0, precision(hits, among, total), np.nan))
        return np.nan_to_num(bootstrap.mean_of_known(np.stack(precisions, axis=1)))

    return statistic


def _curve(scores: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The examples from the best score down, the last of equal scores, and which are hits."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    return order, last, shown[order]


def _precision(hits: np.ndarray, among: np.ndarray) -> np.ndarray:
    return np.nan_to_num(bootstrap.ratio(hits, among))


def _at_points(hits: np.ndarray, among: np.ndarray, reached: list[np.ndarray]) -> np.ndarray:
    """The mean over the points of the best precision among the thresholds that reach each [r t]."""
    precision = _precision(hits, among)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    rows = np.arange(len(hits))
    at = [np.where(x.any(axis=1), best[rows, x.argmax(axis=1)], 0.0) for x in reached]
    return np.mean(at, axis=0)


def _softmax(logits: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
    """Probabilities; zero for a row without finite logits."""
    best = np.nan_to_num(logits.max(axis=1, keepdims=True), neginf=0.0)
    p = np.exp(logits - best)
    return np.nan_to_num(p / np.maximum(p.sum(axis=1, keepdims=True), np.finfo(p.dtype).tiny))
