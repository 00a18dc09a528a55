"""The memory stays finite, and bounded, over 10,000 optimizer steps at the training rate that never falls."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from forgelib.models.memory import NeuralMemory
from forgelib.optim import MuGrokConfig, MuonGrokfast

STEPS, TOKENS, VOCABULARY, WIDTH = 10_000, 24, 32, 16


class Reader(nn.Module):
    """Nothing but a memory between an embedding and a head."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.memory = NeuralMemory(d_model=WIDTH, n_heads=2, chunk=8, ltm_tokens=2048, conv_kernel=4)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.embed_tokens(input_ids)
        read, state, _ = self.memory(x)
        return self.lm_head(x + read), state.memory


@pytest.mark.slow
def test_ten_thousand_training_steps_stay_finite():
    """Random tokens, each text repeating its first half: there is always something to write."""
    torch.manual_seed(0)
    model = Reader()
    optimizer = MuonGrokfast(model, MuGrokConfig.preset("cognate", muon_lr=0.02, adamw_lr=0.003))
    largest = 0.0
    for step in range(STEPS):
        half = torch.randint(VOCABULARY, (4, TOKENS // 2))
        input_ids = torch.cat([half, half], dim=1)
        logits, memory = model(input_ids)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert float(loss.detach()) < 100, f"step {step}: loss {float(loss.detach())}"
        largest = max(largest, float(memory.detach().norm(dim=(-2, -1)).max()))
    assert all(p.isfinite().all() for p in model.parameters())
    assert largest < 1000, "the associations stay of a size that float32 holds exactly enough"
    written = memory.detach() - model.memory.initial_state(4).memory.detach()
    assert float(written.abs().max()) > 1e-2, "it still writes"
