"""How surprised is the model? Cross-entropy per text, so that intervals can be drawn over texts."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def losses_per_text(model: torch.nn.Module, input_ids: Tensor, batch_size: int = 16) -> np.ndarray:
    """Mean cross-entropy in nats per token of each text, [N]; input_ids [N, T] without padding.

    The model runs as at inference (halting on); its training mode is restored.
    """
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    losses = []
    for rows in input_ids.split(batch_size):
        rows = rows.to(device).long()
        logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
        token_losses = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")
        losses.append(token_losses.mean(dim=1).cpu())
    model.train(was_training)
    return torch.cat(losses).double().numpy()


def perplexity(losses: np.ndarray) -> float:
    """exp of the mean loss in nats: the effective number of equally likely next tokens."""
    return float(np.exp(np.mean(losses)))
