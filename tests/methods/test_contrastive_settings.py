"""What a method asks of the loop, what it costs, and what it refuses."""

import dataclasses

import by_hand
import jax
import jax.numpy as jnp
import pytest

from aced import methods
from aced.cache import description
from aced.config import ConfigError, to_config
from aced.cost import flops
from aced.data.concepts import MOST
from aced.data.sources import DataConfig
from aced.methods.contrastive import Contrastive
from aced.methods.contrastive_settings import ContrastiveConfig, DistillationConfig
from aced.methods.frozen import FrozenConfig
from aced.methods.providers import Running, Stored
from aced.selection import SelectionConfig
from configs.smoke import CONCEPTS

b, B = 8, 32
L = sum(flops.macs(by_hand.model()))
REFERENCE = by_hand.model(resolution=16, patch=8, embed_dim=24)
R = sum(flops.macs(REFERENCE))
TEACHER = by_hand.model(resolution=48, length=6)
T = sum(flops.macs(TEACHER))


@pytest.mark.parametrize(
    ("name", "names", "expected"),
    [
        # A step of training is three forward passes, of two operations per multiply-add.
        ("iid", ["reference"], 6 * L * b),
        ("kd", ["reference"], 6 * L * b + 2 * R * b),
        ("kd", ["x"], 6 * L * b + 2 * T * b),
        ("hard", ["reference"], 6 * L * b + 2 * L * B),
        ("i_acid", ["reference"], 6 * L * b + 2 * R * B),
        ("h_acid", ["reference"], 6 * L * b + 2 * L * B + 2 * R * B),
        # The scores' embeddings are the teacher's: distillation is free.
        ("aced", ["reference"], 6 * L * b + 2 * L * B + 2 * R * B),
        ("aced", ["reference", "x"], 6 * L * b + 2 * L * B + 2 * R * B + 2 * T * b),
        ("aced", ["x"], 6 * L * b + 2 * L * B + 2 * R * B + 2 * T * b),
        # The learner is trained on two sub-batches.
        ("aced_iid", ["reference"], 12 * L * b + 2 * L * B + 2 * R * B),
    ],
)
def test_flops_of_a_step(name, names, expected):
    settings = by_hand.settings(
        name, reference=REFERENCE, teachers={"x": TEACHER}, names=tuple(names)
    )
    method = Contrastive(settings)
    assert method.flops_per_step(b) == expected
    assert method.config.super_batch_size(b) == (b if name in ("iid", "kd") else B)


def test_models_by_the_prefix_of_what_they_see():
    arguments = {"reference": REFERENCE, "teachers": {"x": TEACHER}, "names": ("x",)}
    method = Contrastive(by_hand.settings("aced", **arguments))
    own = by_hand.model()
    assert method.models == {"": own, "reference/": REFERENCE, "teacher/x/": TEACHER}
    assert Contrastive(by_hand.settings("iid", **arguments)).models == {"": own}
    assert Contrastive(by_hand.settings("hard", **arguments)).models == {"": own}


def test_projections_only_where_features_are_matched():
    def shapes(**changes):
        settings = by_hand.settings("kd", reference=REFERENCE, teachers={"x": TEACHER}, **changes)
        return jax.eval_shape(Contrastive(settings).init_params, jax.random.key(0))

    assert set(shapes()) == {"model"}
    found = shapes(kd="feature", names=("reference", "x"))["projections"]
    found = jax.tree.map(lambda x: x.shape, found)
    assert found["reference"] == {"image": (32, 24), "text": (32, 24)}
    assert found["x"] == {"image": (32, 32), "text": (32, 32)}


def settings(**changes):
    return dataclasses.replace(ContrastiveConfig(model=by_hand.model()), **changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: settings(distillation=DistillationConfig(weight=1.0, teachers=("big",))),
            "names 'big'; known: .'reference'",
        ),
        (
            lambda: settings(teachers={"reference": FrozenConfig()}),
            "must not be called 'reference'",
        ),
        (lambda: settings(distillation=DistillationConfig(weight=-1.0)), "must be at least 0"),
        (
            lambda: settings(distillation=DistillationConfig(weight=1.0, teachers=())),
            "needs method.distillation.teachers",
        ),
        (
            lambda: Contrastive(settings(selection=SelectionConfig(score="learnability"))),
            "'reference'; set method.reference.checkpoint",
        ),
        (
            lambda: Contrastive(settings(selection=SelectionConfig(score="easy_reference"))),
            "'reference'; set method.reference.checkpoint",
        ),
        (
            lambda: Contrastive(settings(distillation=DistillationConfig(weight=1.0))),
            "'reference'; set method.reference.checkpoint",
        ),
        (
            lambda: Contrastive(
                settings(
                    teachers={"big": FrozenConfig()},
                    distillation=DistillationConfig(weight=1.0, teachers=("big",)),
                )
            ),
            "'big'; set method.teachers.big.checkpoint",
        ),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_unused_models_may_be_missing():
    # With weight 0 the list of teachers is ignored; without scores by it, so is the reference.
    Contrastive(settings(selection=SelectionConfig(filter_ratio=0.0)))
    Contrastive(settings(selection=SelectionConfig(score="hard_learner")))


def test_a_method_is_built_by_its_name():
    config = to_config(settings())
    method = methods.build(methods.parse(config))
    assert isinstance(method, Contrastive)
    assert method.config == settings()
    config.name = "contrastiv"
    with pytest.raises(ConfigError, match=r"'contrastiv'; known: .*'contrastive'"):
        methods.parse(config)


@pytest.mark.parametrize("filter_ratio", [0.3, 0.5, 0.75, 0.8, 0.9])
@pytest.mark.parametrize("strata", [1, 8, 32])
@pytest.mark.parametrize("size", [64, 96])
def test_sub_batch_size_inverts_super_batch_size(filter_ratio, strata, size):
    config = SelectionConfig(filter_ratio=filter_ratio, chunks=1, strata=strata)
    assert config.sub_batch_size(config.super_batch_size(size)) == size


def test_distillation_only():
    only = {"contrastive_weight": 0.0}
    assert by_hand.settings("kd", **only).title == "softmax-KD only"
    assert by_hand.settings("aced", **only).title == "H-ACID + softmax-KD only"
    with pytest.raises(ConfigError, match=r"contrastive_weight and .* must be above 0"):
        by_hand.settings("h_acid", **only)
    with pytest.raises(ConfigError, match="nothing is trained on the selected batch"):
        by_hand.settings("aced_iid", **only)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"average": "logits", "loss": "feature"}, "has no logits that could be averaged"),
        ({"reference_scale": 60.0, "teachers": ("x",)}, r"set method.teachers.NAME.scale"),
        ({"reference_scale": 60.0}, r"reference_scale is not read .*weight is 0"),
        ({"reference_scale": 60.0, "weight": 1.0, "loss": "feature"}, "is not read .*'feature'"),
        (
            {"weight": 1.0, "loss": "feature", "teachers": ("x",)},
            r"method.teachers.x.scale is not read .*'feature'",
        ),
    ],
)
def test_settings_of_teachers_that_contradict(settings, message):
    teachers = {"x": FrozenConfig(model=TEACHER, scale=70.0)}
    with pytest.raises(ConfigError, match=message):
        ContrastiveConfig(teachers=teachers, distillation=DistillationConfig(**settings))


def test_the_feature_loss_takes_no_scale_of_a_cached_teacher_but_the_caches_own(tmp_path):
    """That one is filled in, so that resolved settings can be resolved again."""
    prints = dict.fromkeys(("weights", "tokenizer", "data", "decode"), "")
    plan = description.Plan(8, "both", "float32", 8, TEACHER, 25.0, -10.0, 0, 2, prints)
    shard = description.Shard(bytes=1, sha256="0" * 64, captions=8, missing={})
    description.write(
        tmp_path / description.COMPLETE, description.Description(plan, (shard,), None, {})
    )

    def settings(scale, loss="feature"):
        return ContrastiveConfig(
            teachers={"x": FrozenConfig(cache=str(tmp_path), scale=scale)},
            distillation=DistillationConfig(weight=1.0, loss=loss, teachers=("x",)),
        )

    resolved = settings(None).resolve("")
    assert resolved.teachers["x"].scale == 25.0
    assert resolved.resolve("") == resolved == settings(25.0).resolve("")
    with pytest.raises(ConfigError, match=r"method\.teachers\.x\.scale is not read .*'feature'"):
        settings(70.0).resolve("")
    assert settings(70.0, "softmax").resolve("").teachers["x"].scale == 70.0


def test_the_shifted_loss_runs_the_reference_on_the_sub_batch():
    shift = {"loss": "softmax", "reference_shift": True, "reference": REFERENCE}
    method = Contrastive(by_hand.settings("iid", **shift))
    assert method.config.title == "DRRho"
    assert list(method.frozen) == ["reference"]
    assert method.flops_per_step(b) == 6 * L * b + 2 * R * b
    # Where it teaches, too, or has scored, it runs once.
    method = Contrastive(by_hand.settings("kd", **shift))
    assert method.flops_per_step(b) == 6 * L * b + 2 * R * b
    assert isinstance(method.shift, Running)
    assert isinstance(method.teachers["reference"], Stored)
    # It teaches another sub-batch than that of the shifted loss, without having scored.
    apart = by_hand.settings("hard", **shift, distillation={"weight": 1.0, "batch": "iid"})
    assert Contrastive(apart).flops_per_step(b) == 12 * L * b + 2 * L * B + 4 * R * b
    method = Contrastive(by_hand.settings("h_acid", **shift))
    assert method.config.title == "H-ACID + DRRho"
    assert method.flops_per_step(b) == 6 * L * b + 2 * L * B + 2 * R * B
    for wrong in ({"loss": "sigmoid"}, {"contrastive_weight": 0.0}):
        with pytest.raises(ConfigError, match=r"method\.reference_shift changes the softmax"):
            by_hand.settings("kd", **shift | wrong)


@pytest.mark.parametrize(
    ("method", "name"),
    [("iid", "scoring"), ("i_acid", "scoring"), ("hard", "reference_scoring"), ("kd", "scoring")],
)
def test_settings_of_a_model_that_does_not_score_are_refused(method, name):
    with pytest.raises(ConfigError, match=rf"method\.{name} is not read with .*leave it at its"):
        by_hand.settings(method, **{name: {"precision": "int8"}})
    damped = {"selection": {"false_negative_margin": 0.05}}
    by_hand.settings("hard", reference_scoring={"precision": "int8"}, **damped)


def test_damping_needs_a_reference_and_negatives():
    damped = {"selection": {"false_negative_margin": 0.05}}
    method = Contrastive(by_hand.settings("hard", **damped))
    assert list(method.frozen) == ["reference"]
    assert method.flops_per_step(b) == 6 * L * b + 4 * L * B
    with pytest.raises(ConfigError, match="independent selection has no negatives"):
        by_hand.settings("hard", selection={"false_negative_margin": 0.05, "method": "independent"})
    with pytest.raises(ConfigError, match=r"set selection\.first_chunk = 'uniform'"):
        by_hand.settings("hard", loss="softmax", **damped)
    damped["selection"]["first_chunk"] = "uniform"
    assert by_hand.settings("hard", loss="softmax", **damped).reference_scores


@pytest.mark.parametrize("name", ["cabs_dm", "cabs_fm"])
def test_selection_by_concepts_runs_no_model_but_the_learner(name):
    method = Contrastive(by_hand.settings(name, concepts=CONCEPTS))
    assert not method.frozen
    assert not method.scorers
    assert method.flops_per_step(b) == 6 * L * b
    assert method.config.super_batch_size(b) == B
    shapes = method.streams(DataConfig(), B)[""].shapes()
    assert shapes["concepts"] == ((MOST,), jnp.int32)
    assert "0 concepts each" in method.warning({"selection/concepts_each": 0.0})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cabs_dm", {"concepts": ""}, r"set method\.selection\.concepts to a text file"),
        ("h_acid", {"selection": {"concepts": CONCEPTS}}, "is not read .*'learnability'"),
        ("iid", {"selection": {"concepts": CONCEPTS}}, "is not read .*filter_ratio = 0"),
    ],
)
def test_a_list_of_concepts_exactly_where_it_is_read(name, changes, message):
    with pytest.raises(ConfigError, match=message):
        by_hand.settings(name, **changes)
