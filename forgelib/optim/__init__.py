"""Floor 1: the one optimizer of all phases, and the attention logits of foreign models for its QK-Clip."""

from .attention_logits import track_attention_logits
from .config import MuGrokConfig
from .mugrokfast import MuonGrokfast

__all__ = ["MuGrokConfig", "MuonGrokfast", "track_attention_logits"]
