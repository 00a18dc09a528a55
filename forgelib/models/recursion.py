"""The Tiny Recursive Model (TRM, 2510.04871): one small net, used again and again.

A latent z is refined from (z, y, x) for n micro-steps, then the answer y is refined from (y, z):

    z <- f(z + y + x)   n times          y <- f(y + z)

That is one cycle. Deep supervision puts a loss after every cycle and detaches (y, z) before the next, so the
memory of training does not grow with the number of cycles.

Shape legend: B batch, T tokens, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Net = Callable[[Tensor], Tensor]


def refine(net: Net, x: Tensor, y: Tensor, z: Tensor, n_micro_steps: int) -> tuple[Tensor, Tensor]:
    """One cycle: the new answer y and latent z, all [..., D]. `net` maps [..., D] to [..., D]."""
    for _ in range(n_micro_steps):
        z = net(z + y + x)
    return net(y + z), z


def supervision_weights(n_cycles: int) -> list[float]:
    """Weight of each cycle's loss, from 0.5 for the first to 1.0 for the last: 0.5, 0.75, 1.0 for three cycles."""
    if n_cycles == 1:
        return [1.0]
    return [0.5 + 0.5 * cycle / (n_cycles - 1) for cycle in range(n_cycles)]


class RecursionLayer(nn.Module):
    """Post-norm layer of the shared net: attention, then feed-forward, each added and normalised.

    Post-norm keeps the states at unit scale however often the net is applied to its own output. The attention
    reads the context x, which does not change while y and z do: queries come from the recursion's state, keys and
    values from x. So a token may stop early without changing what any other token sees.
    """

    def __init__(self, d_model: int, attention: nn.Module, feed_forward: nn.Module):
        super().__init__()
        self.attention = attention
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        self.attention_norm = nn.RMSNorm(d_model, eps=1e-6)
        self.feed_forward = feed_forward
        self.feed_forward_norm = nn.RMSNorm(d_model, eps=1e-6)

    def forward(self, u: Tensor, context: dict) -> Tensor:
        """u [B, T, D]; context: what the attention needs besides its queries."""
        u = self.attention_norm(u + self.out_proj(self.attention(u, **context)))
        return self.feed_forward_norm(u + self.feed_forward(u))


def take_tokens(x: Tensor, index: Tensor) -> Tensor:
    """x [B, T, D] at index [B, A] -> [B, A, D]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def put_tokens(x: Tensor, index: Tensor, values: Tensor, real: Tensor) -> Tensor:
    """x [B, T, D] with values [B, A, D] at index [B, A] where real [B, A]."""
    old = take_tokens(x, index)
    return x.scatter(1, index[..., None].expand_as(values), torch.where(real[..., None], values, old))


def active_tokens(running: Tensor) -> tuple[Tensor, Tensor]:
    """Indices [B, A] of the tokens still running, padded to the longest row, and which of them are real [B, A].

    Args: running [B, T] bool. Padding points at tokens that have stopped, each at most once.
    """
    longest = int(running.sum(dim=1).max())
    order = torch.argsort(running.logical_not().to(torch.uint8), dim=1, stable=True)[:, :longest]
    return order, running.gather(1, order)
