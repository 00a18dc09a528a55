"""Floor 2: measurements of any causal language model - accuracy, perplexity, diversity, intervals."""

from .accuracy import Answers, answer_by_generation, first_line
from .diversity import (
    Behaviour,
    behaviour,
    interleaved_latency,
    relative_spread,
    spread_of_means,
    spread_of_medians,
)
from .heldout import by_category, constant_guess, mixed_questions, mixed_texts
from .intervals import bootstrap_interval, share_interval
from .perplexity import losses_per_text, perplexity

__all__ = [
    "Answers",
    "Behaviour",
    "answer_by_generation",
    "behaviour",
    "bootstrap_interval",
    "by_category",
    "constant_guess",
    "first_line",
    "interleaved_latency",
    "losses_per_text",
    "mixed_questions",
    "mixed_texts",
    "perplexity",
    "relative_spread",
    "share_interval",
    "spread_of_means",
    "spread_of_medians",
]
