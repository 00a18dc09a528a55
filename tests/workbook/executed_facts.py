"""Executed notebooks by hand: a gate, the parameters, and what surrounds them in the file."""

from forgelib.workbook.publish import MIME

CHECK = {"name": "halting", "measured": 0.41, "threshold": 0.3, "op": ">", "passed": True, "verdict": "passed"}


def executed(*facts: dict) -> dict:
    """An executed notebook that published these facts."""
    return {"cells": [{"outputs": [{"data": {MIME: fact}}]} for fact in facts]}


def gate(*rows: dict, name: str = "Diversity") -> dict:
    """A published gate with these checks."""
    return {"kind": "gate", "name": name, "passed": True, "advice": "", "rows": list(rows)}


def provenance(mode: str) -> dict:
    """Published parameters, with a W&B mode among them."""
    return {"kind": "provenance", "notebook": "x", "pairs": [["wandb_mode", mode], ["seed", 0]]}
