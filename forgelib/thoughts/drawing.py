"""Drawing a token from logits: greedy, or from the nucleus at a temperature, by numbers drawn beforehand.

Shape legend: B texts, P positions, K thoughts, L thought tokens, V vocabulary.
"""

import torch
from torch import Tensor


def in_nucleus(log_probs: Tensor, top_p: float) -> Tensor:
    """The fewest most likely tokens whose probabilities reach top_p, of log_probs [..., V]; bool [..., V].

    Nucleus sampling (1904.09751, eq. 2): a token belongs to it where those before it have not reached top_p.
    """
    sorted_probs, order = log_probs.exp().sort(-1, descending=True)
    kept = sorted_probs.cumsum(-1) - sorted_probs < top_p
    kept[..., 0] = True
    return torch.zeros_like(kept).scatter(-1, order, kept)


def policy(logits: Tensor, temperature: float, top_p: float, held: Tensor | None = None) -> Tensor:
    """Log-probabilities [..., V], float32, of the distribution that tokens are drawn from; differentiable.

    logits / temperature, normalised over the nucleus. At temperature 0 all of it lies on the most likely token. `held`
    [...] names tokens that belong to the nucleus whatever rounding says, because they were drawn from it.
    """
    logits = logits.float()
    if temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.full_like(logits, float("-inf")).scatter(-1, best, 0.0)
    log_probs = torch.log_softmax(logits / temperature, -1)
    if top_p == 1:
        return log_probs
    with torch.no_grad():
        kept = in_nucleus(log_probs, top_p)
        kept = kept if held is None else kept.scatter(-1, held[..., None], True)
    return torch.log_softmax(log_probs.masked_fill(~kept, float("-inf")), -1)


def draw(log_probs: Tensor, numbers: Tensor | None) -> Tensor:
    """The token [...] that each number in [0, 1) falls on among log_probs [..., V]; without numbers the likeliest."""
    if numbers is None:
        return log_probs.argmax(-1)
    sums = log_probs.exp().double().cumsum(-1)
    passed = (sums <= (numbers.to(sums.device) * sums[..., -1])[..., None]).sum(-1)
    last = log_probs.shape[-1] - 1 - log_probs.isfinite().flip(-1).to(torch.uint8).argmax(-1)
    return torch.minimum(passed, last)


def numbers_for(active: Tensor, n_thoughts: int, length: int, generator: torch.Generator) -> Tensor:
    """Numbers [B, P, K, L] in [0, 1), float64 on the CPU, for the positions that are active [B, P]; 0 elsewhere.

    Each text has a stream of its own that its real positions take from in their order: neither padding nor the texts
    beside it change what it draws.
    """
    found = torch.zeros((*active.shape, n_thoughts, length), dtype=torch.float64)
    seeds = torch.randint(2**62, (len(active),), generator=generator, device=generator.device).tolist()
    for row, (seed, wanted) in enumerate(zip(seeds, active.cpu(), strict=True)):
        own = torch.Generator().manual_seed(seed)
        shape = (int(wanted.sum()), n_thoughts, length)
        found[row, wanted] = torch.rand(shape, generator=own, dtype=torch.float64)
    return found
