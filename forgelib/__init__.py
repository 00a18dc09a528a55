"""forgelib: the thin package behind the Agent Forge workbook."""
