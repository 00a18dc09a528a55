"""(d) Grokking x * y mod 97: steps until 95% of the unseen products are right, six optimizers, three seeds.

Half of the 97 x 97 products train a decoder of 2 layers (width 128, 4 heads, batch 512), the other half validate, as in
Grokfast's benchmark (2405.20233). Its famous factor of 50 is against a baseline that nobody tuned: Adam without any
weight decay. That baseline is a row here under that name, beside AdamW with weight decay 1.0 and beside Grokfast's
own L2 without its filter.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.step_time import GrokfastEMA
from bench.table import main
from forgelib.optim import MuGrokConfig, MuonGrokfast

TITLE = "(d) grokking x * y mod 97: steps to 95% of the unseen products"
PRIME, TIMES, EQUALS = 97, 97, 98
BATCH, WARMUP, TARGET = 512, 10, 0.95
#: Every so many steps, at so many unseen products first; at all of them when those pass.
LOOK_EVERY, LOOK_AT = 20, 1024
BETAS, SEEDS = (0.9, 0.98), (0, 1, 2)


class Layer(nn.Module):
    """Pre-norm attention and MLP; `queries` from the end of the sequence are answered, all tokens are looked at."""

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, queries: int) -> Tensor:
        h, x = self.attention_norm(x), x[:, -queries:]
        q, k, v = (
            projection(states).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for projection, states in ((self.q_proj, h[:, -queries:]), (self.k_proj, h), (self.v_proj, h))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=queries == h.shape[1])
        x = x + self.out_proj(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x))))


class Decoder(nn.Module):
    """Tokens "x * y =" [B, 4] -> logits of the product [B, 97]. Only the last token's answer is computed."""

    def __init__(self, width: int = 128, n_heads: int = 4):
        super().__init__()
        self.token_embedding, self.position_embedding = nn.Embedding(PRIME + 2, width), nn.Embedding(4, width)
        self.first, self.second = Layer(width, n_heads), Layer(width, n_heads)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, PRIME, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens) + self.position_embedding.weight
        return self.head(self.norm(self.second(self.first(x, 4), 1)[:, 0]))


def products(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training tokens [4656, 4] and answers [4656], then as many unseen; x from 0 to 96, y from 1 to 96, as there."""
    pairs = torch.cartesian_prod(torch.arange(PRIME), torch.arange(1, PRIME))
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))]
    tokens = torch.stack(
        [pairs[:, 0], torch.full_like(pairs[:, 0], TIMES), pairs[:, 1], torch.full_like(pairs[:, 0], EQUALS)], dim=1
    )
    answers, half = pairs.prod(dim=1) % PRIME, len(pairs) // 2
    return tokens[:half], answers[:half], tokens[half:], answers[half:]


class AdamWithGrokfast(torch.optim.Adam):
    """Grokfast as published: its filter in front of Adam with L2 0.005."""

    def __init__(self, model: nn.Module):
        super().__init__(model.parameters(), lr=1e-3, betas=BETAS, weight_decay=0.005)
        self.parameters, self.grokfast = list(model.parameters()), GrokfastEMA(alpha=0.98, lam=2.0)

    def step(self, closure=None) -> None:
        self.grokfast(self.parameters)
        super().step(closure)


def muon(grokfast_lambda: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    config = MuGrokConfig(
        muon_lr=0.01, adamw_lr=1e-3, grokfast_lambda=grokfast_lambda, weight_decay=1.0, adamw_betas=BETAS
    )
    return lambda model: MuonGrokfast(model, config)


@dataclass(frozen=True)
class Method:
    name: str
    settings: str
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]


METHODS = (
    Method(
        "AdamW",
        "lr 0.001, decay 1.0",
        lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, betas=BETAS, weight_decay=1.0),
    ),
    Method("Grokfast-EMA", "Adam, lr 0.001, L2 0.005, alpha 0.98, lambda 2", AdamWithGrokfast),
    Method(
        "Adam with L2, no filter",
        "as Grokfast-EMA, lambda 0",
        lambda m: torch.optim.Adam(m.parameters(), lr=1e-3, betas=BETAS, weight_decay=0.005),
    ),
    Method("Muon", "lr 0.01, AdamW 0.001, decay 1.0", muon(0.0)),
    Method("MuonGrokfast", "as Muon, lambda 0.3", muon(0.3)),
    Method(
        "Adam as published (untuned baseline)",
        "lr 0.001, no decay",
        lambda m: torch.optim.Adam(m.parameters(), lr=1e-3, betas=BETAS),
    ),
)


@torch.no_grad()
def share_right(model: nn.Module, tokens: Tensor, answers: Tensor) -> float:
    return float((model(tokens).argmax(-1) == answers).float().mean())


def passes(model: nn.Module, tokens: Tensor, answers: Tensor) -> bool:
    some = share_right(model, tokens[:LOOK_AT], answers[:LOOK_AT])
    return some >= TARGET and share_right(model, tokens, answers) >= TARGET


def grok(method: Method, seed: int, cap: int) -> dict:
    """Train until 95% of the unseen products are right, or for `cap` steps; looks every 20 steps."""
    tokens, answers, unseen, unseen_answers = products(seed)
    torch.manual_seed(seed)
    model, dice, started = Decoder(), torch.Generator().manual_seed(seed), time.perf_counter()
    optimizer = method.optimizer(model)
    base = [group["lr"] for group in optimizer.param_groups]
    step, reached = 0, None
    while step < cap and reached is None:
        for batch in torch.randperm(len(tokens), generator=dice).split(BATCH):
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * min(1.0, (step + 1) / WARMUP)
            optimizer.zero_grad()
            F.cross_entropy(model(tokens[batch]), answers[batch]).backward()
            optimizer.step()
            step += 1
            if step % LOOK_EVERY == 0:
                reached = step if passes(model, unseen, unseen_answers) else None
            if reached or step >= cap:
                break
    return {
        "method": method.name,
        "settings": method.settings,
        "seed": seed,
        "steps to 95%": reached if reached is not None else f"not reached by {cap}",
        "training right": share_right(model, tokens, answers),
        "unseen right": share_right(model, unseen, unseen_answers),
        "seconds": time.perf_counter() - started,
    }


def run(quick: bool = False, cap: int = 4_000, baseline_cap: int = 10_000) -> list[dict]:
    """A row for each method and seed, about an hour of one core; half of it for the untuned baseline, which comes last
    and stops at `baseline_cap` steps (its authors report 39,890)."""
    *others, untuned = METHODS
    if quick:
        return [grok(method, 0, 20) for method in METHODS]
    rows = [grok(method, seed, cap) for seed in SEEDS for method in others]
    return rows + [grok(untuned, seed, baseline_cap) for seed in SEEDS]


if __name__ == "__main__":
    main(TITLE, run)
