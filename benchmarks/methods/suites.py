"""Which runs belong together: a suite is a list, whose first entries matter most."""

import dataclasses
import itertools
import json
from collections.abc import Callable

from benchmarks.methods.runs import DIVERSE, SHIFTED, Run, by_name, ours

SEEDS = (0, 1, 2)
NOISES = (0.5, 0.0, 0.25, 0.75)  # shares of wrong captions
MAIN = ("iid", "h_acid", "aced", "i_acid", "kd")
EXAMPLES = 192_000  # trained: 3,000 steps of 64
SHORT = EXAMPLES // 8
# IID's examples at the FLOPs of H-ACID with a cached reference, f = 0.8: a forward pass of the
# super-batch beside forward and backward of the sub-batch.
EQUAL_FLOPS = round(EXAMPLES * (1 + 1 / 3 / (1 - 0.8)))
SCALES = (20.0, 80.0)  # of a teacher's logits; its own are 38 on scenes
MARGINS = (0.02, 0.1)  # of false negatives
FEW = 6_000  # pairs; a run without selection reads each of them 32 times
VIEWS = 8  # stored augmentations


def main() -> list[Run]:
    """The methods, by seed, noise and method: every seed is a whole comparison."""
    return [
        by_name(method, wrong=wrong, seed=seed, examples=EXAMPLES)
        for seed, wrong, method in itertools.product(SEEDS, NOISES, MAIN)
    ]


def icons() -> list[Run]:
    """The methods on icons with the names that they have."""
    equal = [by_name("iid", wrong=0.0, seed=s, examples=EQUAL_FLOPS, data="icons") for s in SEEDS]
    return [
        by_name(method, wrong=0.0, seed=seed, examples=EXAMPLES, data="icons")
        for seed, method in itertools.product(SEEDS, (*MAIN, "hard", "aced_iid"))
    ] + equal


def equal_flops() -> list[Run]:
    """IID for as many examples as the FLOPs of H-ACID with a cached reference allow."""
    return [
        by_name("iid", wrong=wrong, examples=EQUAL_FLOPS, seed=seed)
        for seed, wrong in itertools.product(SEEDS, NOISES)
    ]


def rest() -> list[Run]:
    """What else the paper compares: ACED-IIDistill, hard learner, independent, other KD."""
    other = [
        by_name("aced_iid"),
        by_name("hard"),
        by_name("h_acid", settings=ours(method="independent")),
        by_name("kd", distillation_loss="sigmoid"),
        by_name("kd", distillation_loss="feature"),
    ]
    return _varied(other)


def references() -> list[Run]:
    """References smaller than the learner, equal to it and larger than the usual one."""
    sizes = ("weak", "equal", "large")
    runs = itertools.product(("h_acid", "aced", "kd"), sizes)
    return _varied([by_name(method, reference=size) for method, size in runs])


def filter_ratios() -> list[Run]:
    """f = 0.5 and 0.9 beside 0.8."""
    return _varied([by_name("h_acid", settings=ours(filter_ratio=f)) for f in (0.5, 0.9)])


def weights() -> list[Run]:
    """The weight of the reference by noise, beside IID, H-ACID (2) and I-ACID (its limit)."""
    return [
        by_name("h_acid", wrong=wrong, seed=seed, examples=EXAMPLES, settings=ours(weight=weight))
        for seed, wrong, weight in itertools.product(SEEDS, NOISES, (1.0, 0.5, 4.0))
    ]


def softmax() -> list[Run]:
    """The softmax loss of CLIP."""
    return _varied([by_name(name, loss="softmax") for name in ("iid", "h_acid", "aced")])


def short() -> list[Run]:
    """An eighth of the examples."""
    runs = _varied([by_name(name) for name in ("iid", "h_acid", "aced")])
    return [dataclasses.replace(run, examples=SHORT) for run in runs]


def _varied(runs: list[Run]) -> list[Run]:
    """These runs by seed, with and without wrong captions."""
    return [
        dataclasses.replace(run, wrong=wrong, seed=seed, examples=EXAMPLES)
        for seed, wrong, run in itertools.product(SEEDS, (0.5, 0.0), runs)
    ]


def teachers() -> list[Run]:
    """ACED with a teacher beside its reference: another model, or both averaged."""
    both = {"teachers": f"reference+{DIVERSE}"}
    listed = [
        by_name("aced", teachers=DIVERSE),
        by_name("aced", average="probabilities", **both),
        by_name("aced", average="logits", **both),
    ]
    return _on_all_data(listed)


def scales() -> list[Run]:
    """ACED with a scale of the teacher's logits that is not its own."""
    return _on_all_data([by_name("aced", teacher_scale=scale) for scale in SCALES])


def only_distils() -> list[Run]:
    """Distillation as the only loss, on all pairs and on those that H-ACID picks."""
    listed = [by_name("aced", contrastive=0.0), by_name("kd", contrastive=0.0)]
    return _on_all_data(listed) + _longer([listed[1]])


def shifted() -> list[Run]:
    """DRRho's loss on all pairs and on those that H-ACID picks, beside the softmax loss."""
    names = ("iid", "h_acid")
    changed = [by_name(name, loss=SHIFTED) for name in names]
    usual = _on_all_data([by_name(name, loss="softmax") for name in names])
    # The suite `softmax` has those on scenes.
    listed = _on_all_data(changed) + [run for run in usual if run.data == "icons"]
    return listed + _longer([changed[0], by_name("iid", loss="softmax")])


def concepts() -> list[Run]:
    """CABS: by concepts of the captions, without a model."""
    listed = [by_name("cabs_dm"), by_name("cabs_fm")]
    return _on_all_data(listed) + _longer(listed)


def false_negatives() -> list[Run]:
    """Damping on icons, whose names repeat across families."""
    listed = [
        by_name(name, settings=ours(false_negative_margin=margin))
        for name, margin in itertools.product(("h_acid", "aced"), MARGINS)
    ]
    return [run for run in _on_all_data(listed) if run.data == "icons"]


def captions() -> list[Run]:
    """Captions of other kinds beside the given ones and, on scenes, in their place."""
    kinds = {"shapes": ("given+short", "given+class", "short", "class"), "icons": ("given+alias",)}
    return [
        dataclasses.replace(run, captions=kind)
        for run in _on_all_data([by_name(name) for name in ("iid", "kd", "aced")])
        for kind in kinds[run.data]
    ]


def augmented() -> list[Run]:
    """Stored augmentations of few pictures, which are seen often."""
    listed = [
        by_name(name, pairs=FEW, augmentations=number)
        for name, number in itertools.product(("iid", "kd", "aced"), (0, VIEWS))
    ]
    return _on_all_data(listed)


def _on_all_data(runs: list[Run], examples: int = EXAMPLES) -> list[Run]:
    """These runs on scenes with and without wrong captions and on icons, with every seed."""
    pools = ({"wrong": 0.5}, {"wrong": 0.0, "data": "icons"}, {"wrong": 0.0})
    return [
        dataclasses.replace(run, **pool, seed=seed, examples=examples)
        for run, pool, seed in itertools.product(runs, pools, SEEDS)
    ]


def _longer(runs: list[Run]) -> list[Run]:
    """Runs without a scoring pass, for as many examples as the FLOPs of H-ACID allow."""
    return _on_all_data(runs, EQUAL_FLOPS)


def gain() -> list[Run]:
    """How sharp a draw should be: R@1 by gain, batch size and noise.

    A learner sees 128,000 examples, whatever its batch.
    """
    noises, listed = (0.5, 0.0), []
    # The rule: raw and ours, by batch size, with and without noise.
    changes = [*(ours(share) for share in (0.5, 0.4, 0.3, 0.2, 0.1, 0.7)),
               *(json.dumps({"gain": gain}) for gain in (10.0, 1.0, 0.1, 100.0))]  # fmt: skip
    for seed in SEEDS:
        for wrong, size in itertools.product(noises, (64, 256, 1024)):
            listed.append(Run("", wrong, size, seed=seed))
            listed += [Run("learnability", wrong, size, seed=seed, settings=c) for c in changes]
    return list(dict.fromkeys(listed))


SUITES: dict[str, Callable[[], list[Run]]] = {
    suite.__name__: suite
    for suite in (
        main,
        icons,
        equal_flops,
        rest,
        references,
        filter_ratios,
        softmax,
        short,
        weights,
        teachers,
        scales,
        only_distils,
        shifted,
        concepts,
        false_negatives,
        captions,
        augmented,
        gain,
    )
}
