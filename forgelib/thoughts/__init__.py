"""The thoughts room: thinking vocabularies on models, and (with Step 2) thoughts sampled in parallel."""

from .vocabulary import Added, add_vocabulary

__all__ = ["Added", "add_vocabulary"]
