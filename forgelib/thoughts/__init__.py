"""Floor 2: thinking vocabularies on models, thoughts sampled in parallel, read again, placed, scored and mixed in."""

from .coherence import Coherence, semantic_coherence, syntactic_coherence
from .injection import Difficulty, choose_positions, difficulty
from .mixing import Mixed, MixingHead
from .quietstar import MixedOutput, QuietSTaRModel
from .reading import Reading, read_thoughts, then_text, thought_log_probs
from .sampling import sample_thoughts
from .thought import ThoughtConfig, Thoughts
from .vocabulary import Added, add_vocabulary

__all__ = [
    "Added",
    "Coherence",
    "Difficulty",
    "Mixed",
    "MixedOutput",
    "MixingHead",
    "QuietSTaRModel",
    "Reading",
    "ThoughtConfig",
    "Thoughts",
    "add_vocabulary",
    "choose_positions",
    "difficulty",
    "read_thoughts",
    "sample_thoughts",
    "semantic_coherence",
    "syntactic_coherence",
    "then_text",
    "thought_log_probs",
]
