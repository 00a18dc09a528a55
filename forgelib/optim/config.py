"""The dials of MuonGrokfast and their presets (METHOD, MuGrokfast)."""

from dataclasses import dataclass, fields, replace

#: muon_lr, grokfast_lambda, qk_clip_threshold, kl_coefficient, weight_decay, adamw_lr as given. Where no AdamW rate is
#: given it equals Muon's.
PRESETS = {
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


@dataclass(frozen=True)
class MuGrokConfig:
    """Settings of the optimizer.

    muon_lr: step of the hidden matrices, whose update has spectral norm about sqrt(max(1, rows / columns)).
    adamw_lr: step of embeddings, heads, norms, biases; None means muon_lr.
    grokfast_lambda: how much of the slow part of the gradient is added back. Corrected: a smaller lambda amplifies the
        slow part less, it does not "filter more"; 0 switches Grokfast off.
    grokfast_alpha: memory of that slow part (an EMA), 0.98.
    qk_clip_threshold: largest attention logit tolerated before W_q and W_k of a head are scaled down.
    kl_coefficient: read by the phase that has a KL term in its loss; the optimizer itself never uses it.
    weight_decay: decoupled, times the learning rate, on matrices and embeddings; never on norms and biases.
    """

    muon_lr: float = 1e-3
    adamw_lr: float | None = None
    grokfast_lambda: float = 0.3
    grokfast_alpha: float = 0.98
    qk_clip_threshold: float = 30.0
    kl_coefficient: float = 0.0
    weight_decay: float = 0.05
    muon_momentum: float = 0.95
    adamw_betas: tuple[float, float] = (0.9, 0.95)
    adamw_eps: float = 1e-8

    def __post_init__(self):
        ranges = {
            "muon_lr": (0, 1, "above 0 and at most 1"),
            "adamw_lr": (0, 1, "above 0 and at most 1"),
            "grokfast_lambda": (-1e-300, 100, "between 0 and 100"),
            "grokfast_alpha": (-1e-300, 1 - 1e-12, "at least 0 and below 1"),
            "qk_clip_threshold": (0, float("inf"), "above 0"),
            "kl_coefficient": (-1e-300, float("inf"), "at least 0"),
            "weight_decay": (-1e-300, 1e3, "at least 0"),
            "muon_momentum": (-1e-300, 1 - 1e-12, "at least 0 and below 1"),
            "adamw_eps": (0, 1, "above 0"),
        }
        for name, (low, high, allowed) in ranges.items():
            value = getattr(self, name)
            if value is None and name == "adamw_lr":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= high:
                raise ValueError(f"MuGrokConfig.{name} = {value!r}: must be a number {allowed}")
        if len(self.adamw_betas) != 2 or not all(0 <= beta < 1 for beta in self.adamw_betas):
            raise ValueError(f"MuGrokConfig.adamw_betas = {self.adamw_betas!r}: must be two numbers from 0 to below 1")

    @classmethod
    def preset(cls, name: str, **overrides) -> "MuGrokConfig":
        """The given settings of a phase, with single values replaced. Raises ValueError naming what is allowed."""
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}: choose one of {', '.join(PRESETS)}")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(overrides) - known)
        if unknown:
            raise ValueError(f"MuGrokConfig has no {unknown[0]!r}; it has {', '.join(sorted(known))}")
        return replace(cls(**PRESETS[name]), **overrides)
