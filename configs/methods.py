"""The methods of arXiv 2411.18674 and CABS as settings of one step: `apply(config, "h_acid")`."""

import ml_collections

from aced.config import ConfigError

# name: (selection.score or None for no selection, whether it distils, B_KD)
METHODS = {
    "iid": (None, False, "selected"),
    "kd": (None, True, "selected"),
    "hard": ("hard_learner", False, "selected"),
    "i_acid": ("easy_reference", False, "selected"),
    "h_acid": ("learnability", False, "selected"),
    "aced": ("learnability", True, "selected"),  # ACED-ACIDistill
    "aced_iid": ("learnability", True, "iid"),  # ACED-IIDistill
    "cabs_dm": ("concept_balance", False, "selected"),  # CABS, arXiv 2511.20643
    "cabs_fm": ("concept_count", False, "selected"),
}


def uses_reference(name: str, *, has_teacher: bool = False) -> bool:
    """Whether the method `name` scores with the reference, or distils from it.

    It distils from the reference unless it has a teacher of its own.
    """
    score, distils, _ = METHODS[name]
    return score in ("learnability", "easy_reference") or (distils and not has_teacher)


def distils(name: str) -> bool:
    """Whether the method `name` distils from a teacher."""
    return METHODS[name][1]


def uses_concepts(name: str) -> bool:
    """Whether the method `name` selects by the concepts of captions."""
    return METHODS[name][0] in ("concept_balance", "concept_count")


def drawn(name: str) -> dict[str, str]:
    """The settings of selection, beside the score, by which the method `name` draws."""
    # The candidates with the most concepts, as in the paper.
    return {"method": "independent", "draw": "top_k"} if name == "cabs_fm" else {}


def apply(
    config: ml_collections.ConfigDict,
    name: str,
    *,
    filter_ratio: float,
    weight: float,
    concepts: str = "",
) -> None:
    """Sets `config.method` to the method `name`.

    Args:
        config: of a run; changed in place.
        name: one of `METHODS`.
        filter_ratio: share of the super-batch discarded, where the method selects.
        weight: of distillation, where the method distils.
        concepts: the list of concepts, where the method selects by them.
    """
    if name not in METHODS:
        raise ConfigError(f"Method {name!r} is unknown; known: {', '.join(METHODS)}.")
    score, distils, kd_batch = METHODS[name]
    selection = config.method.selection
    distillation = config.method.distillation
    selection.filter_ratio = filter_ratio if score else 0.0
    selection.score = score or "learnability"
    if uses_concepts(name):
        selection.concepts = concepts
    selection.update(drawn(name))
    distillation.weight = weight if distils else 0.0
    distillation.batch = kd_batch
