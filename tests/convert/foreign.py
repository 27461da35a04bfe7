"""Small random models of other libraries, and texts and pictures that are hard to read."""

import functools
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import tokenizers
from PIL import Image

from aced.data.shapes import scenes
from aced.models.two_tower import TwoTower
from tests.many_processes import USERS_COMPILER

CAPTIONS = [
    "a photo of a cat",
    "",
    " ",
    "A  Photo\n of a\tCAT ",
    "It's 2026: 3.14% off!!! #sale @home",
    "café naïve über straße ΟΔΟΣ İstanbul",
    "“curly” ‘quotes’ &amp; &lt;b&gt;tags&lt;/b&gt;",
    "日本語 Русский العربية",
    "😀 emoji 👨\u200d👩\u200d👧",
    "&amp;amp; doubled &nbsp;x&#39;s",
    "ﬁne ligature ﬂy ＡＢＣ",
    "nul\x00 bell\x07 esc\x1b[31mred",
    "under_score snake_case e-mail {} $5 a+b=c ^~`|",
    "word " * 200,
    "x" * 500,
    "e\u0301 combining, \u200bzero\ufeff width",
    "!",
    "!!! ?!",
]


def pictures():
    """Tall, wide, tiny, grey, square; RGB unless the name has another mode."""
    rng = np.random.default_rng(0)

    def noise(h, w):
        return Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8))

    out = {f"{h}x{w}": noise(h, w) for h, w in [(90, 31), (31, 90), (1, 1), (1, 40), (64, 64)]}
    out |= {f"{h}x{w}": noise(h, w) for h, w in [(30, 30), (47, 61), (200, 13), (101, 100)]}
    out["grey"] = noise(40, 50).convert("L")
    alpha = noise(40, 50).convert("RGBA")
    alpha.putalpha(noise(40, 50).convert("L"))
    out["alpha"] = alpha
    return out


def png(picture):
    stream = io.BytesIO()
    picture.save(stream, "png")
    return stream.getvalue()


@functools.cache
def sentencepiece_model(kind="unigram", vocab_size=400, upper=False):
    """A tiny model with SigLIP's special ids: pad 0, end 1, unknown 2; bytes as a last resort."""
    data = scenes.Shapes(scenes.ShapesConfig())
    texts = [data[i]["texts"][0] for i in range(300)] + [x.lower() for x in CAPTIONS[:13]] * 3
    texts += CAPTIONS[:13] * 3 if upper else []
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=out,
        model_type=kind,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return out.getvalue()


def gemma_tokenizer():
    """A small byte-pair tokenizer with Gemma's special ids and bytes as a last resort."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=500, special_tokens=special)
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    model.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    model.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    model.train_from_iterator([x.lower() for x in CAPTIONS[:13]] * 5, trainer)
    vocab = model.get_vocab()
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    merges = [tuple(x) for x in json.loads(model.to_str())["model"]["merges"]]
    return vocab, merges


@functools.cache
def torch():
    """torch. Beside its CPU build, torchvision finds none of its own compiled operators."""
    module = pytest.importorskip("torch")
    if module.version.cuda is None:
        library = module.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        module.library_of_torchvision = library  # undone when it is collected
    return module


def transformers():
    torch()
    return pytest.importorskip("transformers")


def open_clip():
    torch()
    return pytest.importorskip("open_clip")


def randomize(module, seed=0):
    """Every parameter away from its special initial value."""
    torch_ = torch()
    generator = torch_.Generator().manual_seed(seed)
    with torch_.no_grad():
        for parameter in module.parameters():
            noise = torch_.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise)
    return module.eval()


def embed(model, images, ids):
    """Our embeddings of normalised pictures [b h w 3] and ids."""
    apply = jax.jit(TwoTower(model.config).apply, compiler_options=USERS_COMPILER)
    e = apply({"params": model.params}, jnp.asarray(images), jnp.asarray(ids, jnp.int32))
    logits = e.scale * e.zimg @ e.ztxt.T + e.bias
    return np.asarray(e.zimg), np.asarray(e.ztxt), np.asarray(logits)


def images(model, b=8, seed=1):
    side = model.config.image.resolution
    return np.random.default_rng(seed).standard_normal((b, side, side, 3), np.float32)


def assert_same_tensors(a, b):
    """Equal bit for bit; position ids and the like, which are no weights, are left out."""
    a, b = ({k: v for k, v in x.items() if "position_ids" not in k} for x in (a, b))
    assert set(a) == set(b)
    for name, value in a.items():
        np.testing.assert_array_equal(np.asarray(value), np.asarray(b[name]), err_msg=name)
