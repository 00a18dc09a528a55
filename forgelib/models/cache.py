"""What a Cognate model keeps between generated tokens: a window of keys and values, and the state of its memories."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class WindowLayer(CacheLayerMixin):
    """Keys and values of the last `window - 1` tokens, [B, H, S, d]; counts all tokens it has seen."""

    is_compileable = False
    is_sliding = True

    def __init__(self, window: int):
        super().__init__()
        self.window, self.seen = window, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Add the new tokens; returns all keys and values that they may look at, themselves included."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = torch.cat([self.keys, key_states], dim=2), torch.cat([self.values, value_states], dim=2)
        start = max(0, keys.shape[2] - self.window + 1)
        self.keys, self.values = keys[:, :, start:], values[:, :, start:]
        self.seen += key_states.shape[2]
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        kept = self.keys.shape[2] if self.is_initialized else 0
        return kept + query_length, self.seen - kept

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def select(self, rows: Tensor) -> None:
        if self.is_initialized:
            self.keys, self.values = self.keys[rows], self.values[rows]

    def reset(self) -> None:
        self.seen = 0
        if self.is_initialized:
            self.keys, self.values = self.keys[:, :, :0], self.values[:, :, :0]


class CognateCache(Cache):
    """One window layer per backbone block and one per recursion layer, the memories' states and the padding seen.

    `memories[i]` is (MemoryState, convolution tail) of block i, or None before its first token.
    `valid` [B, S] marks which of the kept tokens were text and not padding, or is None without padding.
    Rows are texts: beam search reorders them. A learnt memory cannot be rolled back, so `crop` is refused.
    """

    def __init__(self, n_blocks: int, n_recursion_layers: int, window: int):
        super().__init__(layers=[WindowLayer(window) for _ in range(n_blocks + n_recursion_layers)])
        self.memories: list[tuple | None] = [None] * n_blocks
        self.valid: Tensor | None = None
        self.window = window

    def extend_valid(self, new: Tensor | None, batch: int, n_new: int, device: torch.device) -> Tensor | None:
        """Validity [B, S + T] of the kept and the new tokens, or None while no padding was ever seen."""
        kept = self.layers[0].get_mask_sizes(0)[0]
        if new is None and self.valid is None:
            return None
        old = self.valid if self.valid is not None else torch.ones(batch, kept, dtype=torch.bool, device=device)
        new = new if new is not None else torch.ones(batch, n_new, dtype=torch.bool, device=device)
        joined = torch.cat([old, new], dim=1)
        self.valid = joined[:, max(0, joined.shape[1] - self.window + 1) :]
        return joined

    def _select(self, rows: Tensor) -> None:
        for layer in self.layers:
            layer.select(rows)
        for i, memory in enumerate(self.memories):
            if memory is not None:
                state, tail = memory
                self.memories[i] = (type(state)(*(part[rows] for part in state)), tail[rows])
        self.valid = None if self.valid is None else self.valid[rows]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx.to(self.layers[0].keys.device))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        rows = torch.arange(self.layers[0].keys.shape[0], device=self.layers[0].keys.device)
        self._select(rows.repeat_interleave(repeats))

    def reset(self) -> None:
        for layer in self.layers:
            layer.reset()
        self.memories, self.valid = [None] * len(self.memories), None

    def crop(self, max_length: int) -> None:
        raise NotImplementedError("a Cognate memory cannot forget single tokens: start from a fresh cache instead")
