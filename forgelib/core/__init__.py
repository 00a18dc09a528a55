"""Floor 0: artifacts, registry, tracking, gates, the resumable loop. Import its modules by name; this file is empty."""
