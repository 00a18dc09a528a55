"""What a forward pass of a Cognate model returns."""

from dataclasses import dataclass

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import ModelOutput


@dataclass
class CognateOutput(ModelOutput):
    """What a forward pass returns; the fields after `hidden_states` are Cognate's own.

    loss: scalar, nats per token. logits: [B, T, V]. cycle_losses: [cycles] cross-entropy after each cycle, detached.
    n_cycles: [B, T] recursion cycles each token ran. halt_probability: [B, T] after its last cycle.
    gate_entropy: mean entropy of the memory gates in nats. memory_share: [n memories] share of the mixed signal
    that came from each memory, 0 to 1.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    last_hidden_state: Tensor | None = None
    cycle_states: list[Tensor] | None = None
    cycle_losses: Tensor | None = None
    act_loss: Tensor | None = None
    n_cycles: Tensor | None = None
    halt_probability: Tensor | None = None
    gate_entropy: Tensor | None = None
    memory_share: Tensor | None = None
