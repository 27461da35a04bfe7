"""The methods of arXiv 2411.18674 as settings of one step: `apply(config, "h_acid")`."""

import ml_collections

# name: (selection.score or None for no selection, selection.method, distils?, B_KD)
METHODS = {
    "iid": (None, "joint", False, "selected"),
    "kd": (None, "joint", True, "selected"),
    "hard": ("hard_learner", "joint", False, "selected"),
    "i_acid": ("easy_reference", "joint", False, "selected"),
    "h_acid": ("learnability", "joint", False, "selected"),
    "aced": ("learnability", "joint", True, "selected"),  # ACED-ACIDistill
    "aced_iid": ("learnability", "joint", True, "iid"),  # ACED-IIDistill
}


def apply(
    config: ml_collections.ConfigDict, name: str, *, filter_ratio: float, weight: float
) -> None:
    """Sets `config.method` to the method `name`.

    Args:
        config: of a run; changed in place.
        name: one of `METHODS`.
        filter_ratio: share of the super-batch discarded, where the method selects.
        weight: of distillation, where the method distils.
    """
    if name not in METHODS:
        raise ValueError(f"Method {name!r} is unknown; known: {', '.join(METHODS)}.")
    score, method, distils, kd_batch = METHODS[name]
    selection, distillation = config.method.selection, config.method.distillation
    selection.filter_ratio = filter_ratio if score else 0.0
    selection.score = score or "learnability"
    selection.method = method
    distillation.weight = weight if distils else 0.0
    distillation.batch = kd_batch
