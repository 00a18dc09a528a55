"""The learning rate over a training: up over a warm-up, then straight down to zero."""


def warmup_then_decay(step: int, steps: int, warmup_share: float) -> float:
    """Factor in (0, 1] of the learning rate at `step` (from 0) of `steps`; it rises over `warmup_share` of them."""
    warmup = max(1, round(warmup_share * steps))
    return (step + 1) / warmup if step < warmup else (steps - step) / max(1, steps - warmup)
