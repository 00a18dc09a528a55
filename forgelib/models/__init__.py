"""Floor 2: the Cognate model, its memory, its recursion. Importing the room registers the Auto classes."""

from .cognate import CognateForCausalLM, CognateModel
from .configuration import CognateConfig

__all__ = ["CognateConfig", "CognateForCausalLM", "CognateModel"]
