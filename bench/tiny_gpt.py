"""A plain GPT for optimizer benches: pre-norm, learned positions, causal attention that reports its largest logits."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Causal self-attention of the last `wanted` tokens of x [B, T, D]. In training `max_logits` [H] feeds QK-Clip."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.num_heads, self.max_logits = heads, None
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, wanted: int) -> Tensor:
        q, k, v = (
            projection(part).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, part in ((self.q_proj, x[:, -wanted:]), (self.k_proj, x), (self.v_proj, x))
        )
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)[-wanted:]
        logits = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(later, -1e9)
        if self.training:
            self.max_logits = logits.detach().amax(dim=(0, 2, 3))
        return self.o_proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a GELU MLP, each behind a norm and around a residual. [B, T, D] -> [B, wanted, D]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, wanted: int) -> Tensor:
        x = x[:, -wanted:] + self.attention(self.attention_norm(x), wanted)
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class TinyGPT(nn.Module):
    """ids [B, T] -> logits [B, wanted, vocabulary] of the last `wanted` tokens, all by default."""

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, heads: int):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.lm_head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor, wanted: int | None = None) -> Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks[:-1]:
            x = block(x, x.shape[1])
        x = self.blocks[-1](x, wanted or x.shape[1])
        return self.lm_head(self.norm(x))
