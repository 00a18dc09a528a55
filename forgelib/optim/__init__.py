"""Floor 1: the one optimizer of all phases."""

from .config import MuGrokConfig
from .mugrokfast import MuonGrokfast

__all__ = ["MuGrokConfig", "MuonGrokfast"]
