"""Floor 2: measurements of any causal language model - accuracy, perplexity, diversity, intervals."""

from .accuracy import Answers, answer_by_generation, first_line
from .diversity import (
    cycles_per_text,
    halted_and_right,
    interleaved_latency,
    memory_horizon_per_text,
    memory_share_per_text,
    relative_spread,
    spread_of_means,
    spread_of_medians,
)
from .heldout import by_category, constant_guess, mixed_questions, mixed_texts
from .intervals import bootstrap_interval, share_interval
from .perplexity import losses_per_text, perplexity

__all__ = [
    "Answers",
    "answer_by_generation",
    "bootstrap_interval",
    "by_category",
    "constant_guess",
    "cycles_per_text",
    "first_line",
    "halted_and_right",
    "interleaved_latency",
    "losses_per_text",
    "memory_horizon_per_text",
    "memory_share_per_text",
    "mixed_questions",
    "mixed_texts",
    "perplexity",
    "relative_spread",
    "share_interval",
    "spread_of_means",
    "spread_of_medians",
]
