"""CoCa's multiply-adds against what XLA counts in its parts, and against counts of weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from aced.cost import flops
from aced.data.tokenizers import TokenizerConfig
from aced.models import coca
from aced.models.coca import CoCa, CoCaConfig
from aced.models.decoder import DecoderConfig
from aced.models.vit import ImageConfig

# Wide enough that XLA's elementwise operations, which we leave out, are about a percent; unrolled,
# since XLA counts the body of a loop once. Image and text differ in every number.
CONFIG = CoCaConfig(
    image=ImageConfig(width=512, depth=1, mlp=2048, heads=4, patch=14, resolution=90, pool="none"),
    text=DecoderConfig(
        width=640,
        mlp=1536,
        heads=4,
        unimodal=2,
        multimodal=1,
        vocab_size=3000,
        length=30,
        eos_id=1,
    ),
    queries=48,
    embed_dim=96,
    scan=False,
    tokenizer=TokenizerConfig(length=24),  # texts are shorter than the positions
)
B = 4


def counted(method, *inputs):
    """MACs per example that XLA counts in a forward pass of a part."""
    params = jax.eval_shape(CONFIG.init, jax.random.key(0))
    if method == "everything":

        def run(params, image, text):
            out = coca.forward(CONFIG, params, image, text)
            return coca.logits(out), out.embeddings.zimg, out.embeddings.ztxt
    else:

        def run(params, *inputs):
            return CoCa(CONFIG).apply({"params": params}, *inputs, method=method)

    compiled = jax.jit(run).lower(params, *inputs).compile()
    return compiled.cost_analysis()["flops"] / 2 / B


@pytest.mark.slow
def test_multiply_adds_are_what_xla_counts():
    image = jax.ShapeDtypeStruct((B, 90, 90, 3), jnp.float32)
    text = jax.ShapeDtypeStruct((B, 24), jnp.int32)
    macs = flops.macs_coca(CONFIG)
    of_image = counted("encode_image", image)
    of_text = counted("encode_text", text)
    whole = counted("everything", image, text)
    assert of_image == pytest.approx(macs.image + macs.generative + macs.contrastive, rel=0.03)
    assert of_text == pytest.approx(macs.unimodal, rel=0.03)
    assert whole - of_image - of_text == pytest.approx(macs.multimodal + macs.softmax, rel=0.03)
    assert whole == pytest.approx(sum(macs), rel=0.03)
    assert (
        sum(flops.macs(CONFIG)) == macs.image + macs.generative + macs.contrastive + macs.unimodal
    )


@pytest.mark.slow
@pytest.mark.parametrize(("pictures", "hidden"), [(1, 0), (2, 0), (2, 1024)])
def test_multiply_adds_of_answers(pictures, hidden):
    config = dataclasses.replace(CONFIG, classes=3000, pictures=pictures, head_hidden=hidden)
    images = (jax.ShapeDtypeStruct((B, 90, 90, 3), jnp.uint8),) * pictures
    text = jax.ShapeDtypeStruct((B, 24), jnp.int32)
    params = jax.eval_shape(config.init, jax.random.key(0))
    run = jax.jit(functools.partial(coca.answer, config))
    found = run.lower(params, images, text).compile().cost_analysis()["flops"] / 2 / B
    macs = flops.macs_coca(config)
    assert macs.classifier == sum(
        x["kernel"].size for name, x in params["head"].items() if name != "pooler"
    )
    assert found == pytest.approx(macs.answering(pictures), rel=0.03)


def test_every_weight_is_used_once_for_each_of_its_tokens():
    """A count of CoCa-Base by its parameters, with attention scores of n^2 d twice in a layer."""
    config = coca.preset("CoCa-Base", embed_dim=512)
    shapes = jax.eval_shape(config.init, jax.random.key(0))

    def kernels(tree):
        named = jax.tree.leaves_with_path(tree)
        return sum(x.size for path, x in named if "kernel" in jax.tree_util.keystr(path))

    d, words, tokens = 768, 64, 256
    macs = flops.macs_coca(config)
    scores = 12 * 2 * tokens**2 * d
    assert macs.image == tokens * kernels(shapes["image"]) + scores
    blocks = kernels(shapes["text"]["unimodal"])
    assert macs.unimodal == 66 * blocks + 12 * 2 * 66**2 * d + 512 * d
    of_queries = 12 * 2 * d * d  # cross-attention's k and v
    blocks = kernels(shapes["text"]["multimodal"]) - of_queries
    scores = 12 * 2 * words * (words + 256) * d
    assert macs.multimodal == words * blocks + 256 * of_queries + scores
    assert macs.softmax == words * kernels(shapes["text"]["softmax"])


def test_shorter_texts_cost_less():
    short = dataclasses.replace(CONFIG, tokenizer=TokenizerConfig(length=12))
    ours, theirs = flops.macs_coca(short), flops.macs_coca(CONFIG)
    assert ours.softmax == theirs.softmax / 2
    assert ours.unimodal < theirs.unimodal
    assert flops.macs(short)[0] == flops.macs(CONFIG)[0]
