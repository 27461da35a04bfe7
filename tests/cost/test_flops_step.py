"""The FLOPs of whole train steps against what XLA counts in them.

XLA also counts what `aced.cost.flops` leaves out: elementwise work, the loss, selection and the
optimizer. The models are wide (512) and the batch is small, so that all of it stays below 3 %:
elementwise work shrinks with the width, the loss with the batch. Layers are unrolled, since XLA
counts the body of a loop once, and nothing is cut into micro-batches or computed again.
"""

import jax
import pytest

from aced.config import to_config
from aced.data.tokenizers import TokenizerConfig
from aced.methods.coca import CoCaTrainConfig
from aced.methods.coca_task import CoCaTaskConfig
from aced.models.coca import CoCaConfig
from aced.models.decoder import DecoderConfig
from aced.models.vit import ImageConfig
from aced.parallel import mesh as meshes
from aced.preflight import hlo
from aced.train import program
from aced.train.config import TrainConfig, parse
from configs import methods

# The code for the CPU is not run, so it need not be good.


def step_of(name):
    """The compiled step of a method, and its FLOPs by the settings alone."""
    config = to_config(TrainConfig())
    config.batch_size = 16
    config.total_steps = 1
    model = config.method.model
    for tower in (model.image, model.text):
        tower.width = 512
        tower.depth = 1
        tower.mlp = 2048
        tower.heads = 4
    model.image.patch = 16
    model.image.resolution = 96
    model.text.vocab_size = 100
    model.text.length = 32
    model.tokenizer.length = 32
    model.scan = False
    methods.apply(config, name, filter_ratio=0.5, weight=1.0)
    config.method.selection.chunks = 2
    config.method.reference.model = model.copy_and_resolve_references()
    config.method.reference.model.text.width = 256  # another cost than the learner's
    return compiled_step(config)


def compiled_step(config):
    mesh = meshes.make_mesh(jax.devices()[:1])
    built = program.build(parse(config), mesh)
    with jax.set_mesh(mesh):
        lowered = built.step.lower(built.state, built.frozen, built.batch())
        compiled = lowered.compile()
    return compiled, built.method.flops_per_step(built.batch_size)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iid", "kd", "h_acid", "aced"])
def test_flops_of_a_step_are_what_xla_counts(name):
    compiled, ours = step_of(name)
    counted = compiled.cost_analysis()["flops"]
    assert ours == pytest.approx(counted, rel=0.03)
    # By products alone, we count one that is not there: the gradient of the pixels.
    products = sum(hlo.read(compiled.as_text()).flops.values())
    assert ours == pytest.approx(products, rel=0.03)


def coca_of(method, **changes):
    size = {"width": 512, "mlp": 2048, "heads": 4}
    return method(
        model=CoCaConfig(
            image=ImageConfig(depth=1, patch=16, resolution=96, pool="none", **size),
            text=DecoderConfig(
                unimodal=1, multimodal=1, vocab_size=500, length=32, eos_id=1, **size
            ),
            queries=24,
            tokenizer=TokenizerConfig(length=32),
            scan=False,
            **changes,
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        coca_of(CoCaTrainConfig),
        coca_of(CoCaTaskConfig, classes=100),
        coca_of(CoCaTaskConfig, classes=100, pictures=2),
    ],
    ids=["pretraining", "answers", "two pictures"],
)
def test_flops_of_cocas_steps_are_what_xla_counts(method):
    config = to_config(TrainConfig())
    config.batch_size = 16
    config.total_steps = 1
    config.method = to_config(method)
    compiled, ours = compiled_step(config)
    assert ours == pytest.approx(compiled.cost_analysis()["flops"], rel=0.03)
