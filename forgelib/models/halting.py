"""Adaptive computation: a head that says "this token is right", and a token that stops once it is sure.

After every recursion cycle the head gives q = P(the most likely next token is right). At inference a token stops
as soon as q reaches the threshold; the others go on, up to max_cycles. The threshold does not change training.

The target of q is 1 where the prediction was right and 0 where it was wrong, drawn by 1% towards the running
accuracy of that cycle (an EMA with 0.98): a bare 0/1 target pushes q to certainty that the running accuracy does
not bear out. A higher threshold therefore means more recursion, not less.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMA_DECAY = 0.98
CALIBRATION = 0.01


class HaltingHead(nn.Module):
    """Logit of "right" for each token, and the running accuracy of each cycle.

    Buffers: step_accuracy [cycles], the EMA; -1 for a cycle that was never trained.
    """

    def __init__(self, d_model: int, cycles_limit: int):
        super().__init__()
        self.probe = nn.Linear(d_model, 1)
        self.register_buffer("step_accuracy", torch.full((cycles_limit,), -1.0))

    def forward(self, y: Tensor) -> Tensor:
        """[..., D] -> logits [...]."""
        return self.probe(y).squeeze(-1)

    def loss(self, logits: Tensor, correct: Tensor, cycle: int) -> Tensor:
        """Binary cross-entropy in nats against the calibrated target; logits [N], correct [N] bool, cycle from 0.

        In training the running accuracy of the cycle is updated first, so the target has seen this batch.
        """
        accuracy = correct.float().mean()
        if self.training:
            old = self.step_accuracy[cycle]
            self.step_accuracy[cycle] = torch.where(old < 0, accuracy, EMA_DECAY * old + (1 - EMA_DECAY) * accuracy)
        running = torch.where(self.step_accuracy[cycle] < 0, accuracy, self.step_accuracy[cycle])
        target = (1 - CALIBRATION) * correct.float() + CALIBRATION * running
        return F.binary_cross_entropy_with_logits(logits.float(), target)
