"""CoCa for one image and one text in float64, written from the paper: loops, no batch, no cache."""

import math

import numpy as np


def norm(p, x, eps):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * p["scale"] + p["bias"]


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def attend(p, queries, tokens, heads, sees):
    """sees(i, j): whether query i reads token j."""
    q, k, v = dense(p["q"], queries), dense(p["k"], tokens), dense(p["v"], tokens)
    size = q.shape[-1] // heads
    out = np.zeros_like(q)
    for i in range(len(q)):
        read = [j for j in range(len(k)) if sees(i, j)]
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            weights = np.exp([q[i, part] @ k[j, part] / math.sqrt(size) for j in read])
            out[i, part] = weights / weights.sum() @ v[read, part]
    return dense(p["out"], out)


def mlp(p, x):
    y = dense(p["fc1"], x)
    y = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    return dense(p["fc2"], y)


def layers(stack):
    """The parameters of each layer of a stack."""
    if isinstance(stack, dict):
        parts = {name: layers(part) for name, part in stack.items()}
        depth = len(next(iter(parts.values())))
        return [{name: part[i] for name, part in parts.items()} for i in range(depth)]
    return list(stack)


def everything(i, j):
    return True


def image_tokens(p, config, image):
    """Tokens of the image encoder after its last norm, and what each of its layers gives."""
    heads, eps, side = config.dims.heads, config.norm_eps, config.patch
    cells = [(r * side, c * side) for r in range(config.grid) for c in range(config.grid)]
    x = np.stack([image[r : r + side, c : c + side].reshape(-1) for r, c in cells])
    x, hidden = dense(p["patch"], x) + p["position"], []
    for layer in layers(p["blocks"]):
        y = norm(layer["norm1"], x, eps)
        x = x + attend(layer["attention"], y, y, heads, everything)
        x = x + mlp(layer["mlp"], norm(layer["norm2"], x, eps))
        hidden.append(x)
    return norm(p["norm"], x, eps), hidden


def coca(p, config, image, text):
    """Embeddings, logits of all words, which words are real, and hidden states by module."""
    c, heads, eps = config.text, config.text.dims.heads, config.text.norm_eps
    pooler_heads = config.pooler_heads or heads
    tokens, image_hidden = image_tokens(p["image"], config.image, image)
    poolers, pooled = p["pooler"], tokens
    if config.queries:
        pool = poolers["generative"]
        pooled = attend(pool["attention"], pool["probe"], tokens, pooler_heads, everything)
        pooled = norm(poolers["norm"], pooled, eps)
    pool = poolers["contrastive"]
    zimg = attend(pool["attention"], pool["probe"], pooled, pooler_heads, everything)[0]

    words = text.index(c.eos_id) + 1 if c.eos_id in text else len(text)
    p = p["text"]
    spelled = [p["token"][word] + p["position"][i] for i, word in enumerate(text)]
    x = np.stack([p["start"], *spelled, p["cls"]])
    last = len(text) + 1

    def sees(i, j):
        if i == last:
            return j <= words or j == last
        return j <= i

    hidden = {"image": image_hidden, "unimodal": [], "multimodal": []}
    for layer in layers(p["unimodal"]):
        y = norm(layer["norm1"], x, eps)
        x = x + attend(layer["attention"], y, y, heads, sees)
        x = x + mlp(layer["mlp"], norm(layer["norm2"], x, eps))
        hidden["unimodal"].append(x)
    ztxt = norm(p["norm_cls"], x[last], eps)

    x = x[: len(text)]
    for layer in layers(p["multimodal"]):
        y = norm(layer["norm1"], x, eps)
        x = x + attend(layer["attention"], y, y, heads, sees)
        y = norm(layer["norm_cross"], x, eps)
        x = x + attend(layer["cross"], y, pooled, heads, everything)
        x = x + mlp(layer["mlp"], norm(layer["norm2"], x, eps))
        hidden["multimodal"].append(x)
    logits = norm(p["norm"], x, eps) @ p["softmax"]["kernel"]
    if config.embed_dim is not None:
        zimg, ztxt = dense(poolers["head"], zimg), dense(p["head"], ztxt)
    real = [i < words for i in range(len(text))]
    return unit(zimg), unit(ztxt), logits, real, hidden


def unit(z):
    return z / math.sqrt((z * z).sum())


def captioning_loss(logits, texts, reals):
    """Average over the real words of all texts."""
    losses = []
    for scores, text, real in zip(logits, texts, reals, strict=True):
        for row, word, counts in zip(scores, text, real, strict=True):
            if counts:
                losses.append(np.log(np.exp(row).sum()) - row[word])
    return sum(losses) / len(losses)


def contrastive_loss(zimg, ztxt, scale):
    """CoCa's: the sum of both directions."""
    scores = scale * zimg @ ztxt.T
    total = 0
    for s in (scores, scores.T):
        total -= np.mean([row[i] - np.log(np.exp(row).sum()) for i, row in enumerate(s)])
    return total
