"""The dials of MuonGrokfast and their presets (METHOD, MuGrokfast)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

#: The given settings of each phase, at full size; a smaller model may need a larger muon_lr (0.01 at 0.9M parameters).
PRESETS: dict[str, dict[str, float]] = {
    "cognate": {"muon_lr": 1e-3, "grokfast_lambda": 0.3, "qk_clip_threshold": 30.0, "weight_decay": 0.05},
    "baking": {"muon_lr": 1e-4, "grokfast_lambda": 0.2, "qk_clip_threshold": 30.0, "weight_decay": 0.01},
    "rl": {
        "muon_lr": 5e-4,
        "grokfast_lambda": 0.1,
        "qk_clip_threshold": 25.0,
        "kl_coefficient": 0.1,
        "weight_decay": 0.0,
    },
    "bitnet": {
        "muon_lr": 1e-3,
        "adamw_lr": 1e-5,
        "grokfast_lambda": 2.0,
        "qk_clip_threshold": 30.0,
        "weight_decay": 0.0,
    },
}

_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "muon_lr": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "adamw_lr": (lambda v: 0 < v <= 1, "above 0 and at most 1, or None for muon_lr"),
    "grokfast_lambda": (lambda v: 0 <= v <= 100, "from 0 to 100"),
    "grokfast_alpha": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "qk_clip_threshold": (lambda v: v > 0, "above 0, or None for no clipping"),
    "kl_coefficient": (lambda v: v >= 0, "at least 0"),
    "weight_decay": (lambda v: 0 <= v <= 10, "from 0 to 10"),
    "muon_momentum": (lambda v: 0 <= v < 1, "at least 0 and below 1"),
    "adamw_eps": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
}
_MAY_BE_NONE = {"adamw_lr", "qk_clip_threshold"}


@dataclass(frozen=True)
class MuGrokConfig:
    """Settings of the optimizer. Raises ValueError naming field, value and range.

    muon_lr: step of the hidden matrices. The update has singular values near 1, times sqrt(max(1, outputs / inputs)).
    adamw_lr: step of embeddings, heads, norms and biases; None, the default, means muon_lr.
    grokfast_lambda: how much of the slow part of the gradient is added; 0 switches the filter off. Corrected: a
        smaller lambda is often said to "filter more". It does not: it amplifies the slow part less.
    grokfast_alpha: decay a of the average that is the slow part; it remembers about 1 / (1 - a) steps.
    qk_clip_threshold: tau, the largest attention logit (scaled, before the softmax) a head may reach before its W_q
        and W_k are scaled down; None switches QK-Clip off.
    kl_coefficient: weight of the KL term in the loss of the phase that has one; the optimizer never uses it.
    weight_decay: decoupled, W <- (1 - lr weight_decay) W, on every parameter with two or more dimensions.
    muon_momentum: decay of Muon's Nesterov momentum.
    adamw_betas, adamw_eps: as in torch.optim.AdamW.
    """

    muon_lr: float = 1e-3
    adamw_lr: float | None = None
    grokfast_lambda: float = 0.3
    grokfast_alpha: float = 0.98
    qk_clip_threshold: float | None = 30.0
    kl_coefficient: float = 0.0
    weight_decay: float = 0.05
    muon_momentum: float = 0.95
    adamw_betas: tuple[float, float] = (0.9, 0.95)
    adamw_eps: float = 1e-8

    def __post_init__(self):
        for name, (holds, allowed) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            if not _is_number(value) or not holds(value):
                raise ValueError(f"MuGrokConfig.{name} = {value!r}: must be a number {allowed}")
        betas = self.adamw_betas
        pair = isinstance(betas, tuple | list) and len(betas) == 2
        if not pair or not all(_is_number(beta) and 0 <= beta < 1 for beta in betas):
            raise ValueError(f"MuGrokConfig.adamw_betas = {betas!r}: must be two numbers, each at least 0 and below 1")

    @classmethod
    def preset(cls, name: str, **overrides) -> "MuGrokConfig":
        """The given settings of a phase ("cognate", "baking", "rl", "bitnet") with single fields replaced.

        Raises ValueError for an unknown preset, field or value, naming what is allowed.
        """
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}")
        known = [field.name for field in fields(cls)]
        for field in overrides:
            if field not in known:
                raise ValueError(f"MuGrokConfig has no field {field!r}; it has {', '.join(known)}")
        return replace(cls(**PRESETS[name]), **overrides)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
