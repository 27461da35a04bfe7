"""SigLIP ViT-B/16 in plain PyTorch, where open_clip is not to be had: bfloat16 under autocast."""

import math

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


class Tower(nn.Module):
    """Blocks with norms first, each computed again in the backward pass."""

    def __init__(self, width: int, depth: int, heads: int):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the last layer's tokens."""
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return self.norm(x)


class TwoTowers(nn.Module):
    """Images and texts to what open_clip's model returns: embeddings, scale and bias."""

    def __init__(
        self, *, resolution: int, patch: int, length: int, words: int, width: int = 768,
        depth: int = 12, heads: int = 12,
    ):  # fmt: skip
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.place = nn.Parameter(torch.randn((resolution // patch) ** 2, width) * width**-0.5)
        self.image = Tower(width, depth, heads)
        self.probe = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.pool = nn.MultiheadAttention(width, heads, batch_first=True)
        self.pool_norm = nn.LayerNorm(width)
        self.pool_mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.words = nn.Embedding(words, width)
        self.order = nn.Parameter(torch.randn(length, width) * 0.01)
        self.text = Tower(width, depth, heads)
        self.head = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns (zimg, ztxt, scale, bias)."""
        tokens = self.image(self.patch(image).flatten(2).transpose(1, 2) + self.place)
        probe = self.probe.expand(len(tokens), -1, -1)
        zimg = self.pool(probe, tokens, tokens, need_weights=False)[0][:, 0]
        zimg = zimg + self.pool_mlp(self.pool_norm(zimg))
        ztxt = self.head(self.text(self.words(text) + self.order)[:, -1])
        zimg, ztxt = (functional.normalize(z, dim=-1) for z in (zimg, ztxt))
        return zimg, ztxt, self.scale.exp(), self.bias
