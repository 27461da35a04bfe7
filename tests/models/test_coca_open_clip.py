"""CoCa against open_clip's CoCa on the same weights, as far as its structure allows.

open_clip has some of the traps of public re-implementations, which are changed here, in its model:

- its image encoder always has a class token: taken out before the blocks;
- its multimodal layers have two MLPs: the first one's output is set to zero;
- its poolers are cascaded only as work in progress: the second one cannot read what the first one
  gives where the widths differ, and is made anew; the layer norm between encoder and poolers is
  made for the wrong width, and is taken out (ours is its poolers' own);
- its padding mask of the [CLS] is one place off unless a setting corrects it.

It has a layer norm for every reader of the pooled tokens, where ours is shared: theirs are given
equal weights. Its tokenizer's start of text is our `start`. What is left are its own attention,
masks, poolers, norms, MLPs and positions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.models import coca
from aced.models.coca import CoCaConfig
from aced.models.decoder import DecoderConfig
from aced.models.vit import ImageConfig
from tests.convert import foreign

SOT, EOT = 18, 19
CONFIG = CoCaConfig(
    image=ImageConfig(
        width=24,
        depth=2,
        mlp=96,
        heads=3,
        patch=4,
        resolution=12,
        pool="none",
        activation="gelu",
        norm_eps=1e-5,
        patch_bias=False,
        pre_norm=True,
    ),
    text=DecoderConfig(
        width=32,
        mlp=128,
        heads=4,
        unimodal=2,
        multimodal=3,
        vocab_size=20,
        length=7,
        eos_id=EOT,
        activation="gelu",
        norm_eps=1e-5,
    ),
    queries=5,
    pooler_heads=2,
    embed_dim=32,
)


def dense(weights, name):
    return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}


def norm(weights, name):
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def attention(weights, name):
    if f"{name}.in_proj_weight" in weights:
        kernels = np.split(weights[f"{name}.in_proj_weight"], 3)
    else:
        kernels = [weights[f"{name}.{x}_proj_weight"] for x in "qkv"]
    biases = np.split(weights[f"{name}.in_proj_bias"], 3)
    parts = zip("qkv", kernels, biases, strict=True)
    out = {x: {"kernel": kernel.T, "bias": bias} for x, kernel, bias in parts}
    return out | {"out": dense(weights, f"{name}.out_proj")}


def mlp(weights, name):
    return {"fc1": dense(weights, f"{name}.c_fc"), "fc2": dense(weights, f"{name}.c_proj")}


def block(weights, name):
    return {
        "norm1": norm(weights, f"{name}.ln_1"),
        "attention": attention(weights, f"{name}.attn"),
        "norm2": norm(weights, f"{name}.ln_2"),
        "mlp": mlp(weights, f"{name}.mlp"),
    }


def multimodal_block(weights, i):
    own, cross = f"text_decoder.resblocks.{i}", f"text_decoder.cross_attn.{i}"
    return {
        "norm1": norm(weights, f"{own}.ln_1"),
        "attention": attention(weights, f"{own}.attn"),
        "norm_cross": norm(weights, f"{cross}.ln_1"),
        "cross": attention(weights, f"{cross}.attn"),
        "norm2": norm(weights, f"{cross}.ln_2"),
        "mlp": mlp(weights, f"{cross}.mlp"),
    }


def stack(blocks):
    return jax.tree.map(lambda *xs: np.stack(xs), *blocks)


def convert(model):
    """open_clip's weights in our names."""
    weights = {name: x.detach().numpy() for name, x in model.named_parameters()}

    def pooler(name):
        query = getattr(model.visual, name)
        return {
            "probe": query.ln_q(query.query).detach().numpy(),
            "attention": attention(weights, f"visual.{name}.attn"),
        }

    table, position = weights["text.token_embedding.weight"], weights["text.positional_embedding"]
    kernel = weights["visual.conv1.weight"]  # [width 3 patch patch]
    return {
        "image": {
            "patch": {"kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))},
            "position": weights["visual.positional_embedding"][1:],
            "norm_pre": norm(weights, "visual.ln_pre"),
            "blocks": stack([block(weights, f"visual.transformer.resblocks.{i}") for i in (0, 1)]),
            "norm": norm(weights, "visual.attn_pool.ln_k"),
        },
        "pooler": {
            "generative": pooler("attn_pool"),
            "norm": norm(weights, "visual.attn_pool_contrastive.ln_k"),
            "contrastive": pooler("attn_pool_contrastive"),
            "head": {"kernel": weights["visual.proj"]},
        },
        "text": {
            "token": table,
            "start": table[SOT] + position[0],
            "position": position[1:-1],
            "cls": weights["text.cls_emb"] + position[-1],
            "unimodal": stack([block(weights, f"text.transformer.resblocks.{i}") for i in (0, 1)]),
            "norm_cls": norm(weights, "text.ln_final"),
            "head": {"kernel": weights["text.text_projection"]},
            "multimodal": stack([multimodal_block(weights, i) for i in range(3)]),
            "norm": norm(weights, "text_decoder.ln_final"),
            "softmax": {"kernel": weights["text_decoder.text_projection"]},
        },
        "t": weights["logit_scale"],
    }


def open_clip_model():
    """open_clip's CoCa with random parameters, its structure changed as said above."""
    torch = foreign.torch()
    foreign.open_clip()
    from open_clip.coca_model import CoCa
    from open_clip.transformer import AttentionalPooler

    model = CoCa(
        embed_dim=32,
        vision_cfg={
            "image_size": 12,
            "patch_size": 4,
            "width": 24,
            "head_width": 8,
            "layers": 2,
            "attentional_pool": "cascade",
            "attn_pooler_queries": 5,
            "attn_pooler_heads": 2,
            "output_tokens": True,
        },
        text_cfg={
            "context_length": 8,
            "vocab_size": 20,
            "width": 32,
            "heads": 4,
            "layers": 2,
            "embed_cls": True,
            "output_tokens": True,
        },
        multimodal_cfg={
            "context_length": 8,
            "vocab_size": 20,
            "width": 32,
            "heads": 4,
            "layers": 3,
        },
    )
    visual = model.visual
    visual.attn_pool_contrastive = AttentionalPooler(32, 32, n_head=2, n_queries=1)
    visual.ln_post = torch.nn.Identity()
    embeds = visual._embeds

    def without_class_token(x):
        ln_pre, visual.ln_pre = visual.ln_pre, torch.nn.Identity()
        x = embeds(x)[:, 1:]
        visual.ln_pre = ln_pre
        return ln_pre(x)

    visual._embeds = without_class_token
    model.text.correct_cls_mask = True
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if ".ln_" in name and name.endswith("weight"):
                parameter.add_(1.0)
        for own, cross in zip(
            model.text_decoder.resblocks, model.text_decoder.cross_attn, strict=True
        ):
            own.mlp.c_proj.weight.zero_()
            own.mlp.c_proj.bias.zero_()
            cross.ln_1_kv.load_state_dict(visual.attn_pool_contrastive.ln_k.state_dict())
    return model.eval(), torch


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_equal_to_open_clip():
    model, torch = open_clip_model()
    params = jax.tree.map(jnp.asarray, convert(model))
    shapes = jax.eval_shape(CONFIG.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)

    rng = np.random.default_rng(0)
    image = rng.standard_normal((4, 12, 12, 3), np.float32)
    text = rng.integers(1, SOT, (4, 7))
    for row, end in zip(text, (2, 6, 0), strict=False):  # the last has no end
        row[end], row[end + 1 :] = EOT, 0
    with torch.no_grad():
        theirs = np.concatenate([np.full((4, 1), SOT), text], axis=1)
        pixels = torch.tensor(image.transpose(0, 3, 1, 2))
        expected = model(pixels, torch.tensor(theirs))
    forward = jax.jit(lambda image, text: coca.forward(CONFIG, params, image, text))
    out = forward(jnp.asarray(image), jnp.asarray(text, jnp.int32))
    logits = coca.logits(out)
    zimg = expected["image_features"][:, 0]  # [b 1 d] in a cascade
    np.testing.assert_allclose(out.embeddings.zimg, zimg, atol=1e-5)
    np.testing.assert_allclose(out.embeddings.ztxt, expected["text_features"], atol=1e-5)
    np.testing.assert_allclose(out.embeddings.scale, expected["logit_scale"], rtol=1e-5)
    real = np.asarray(out.real)
    assert real.sum(axis=1).tolist() == [3, 7, 1, 7]
    # The outputs for padding differ from open_clip's, and are not used.
    np.testing.assert_allclose(logits[real], expected["logits"].numpy()[real], atol=1e-4)
