"""Agent Forge: the thin package behind the notebooks."""

import os

# Before torch loads OpenMP: threads that wait give the core away instead of spinning. On a busy machine two spinning
# threads make a training step three times slower than one thread does; on an idle one nothing is lost (DECISIONS.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
