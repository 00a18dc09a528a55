"""What Phase 3 hands to Phase 4: the gates of its steps, each of the very model that is handed on."""

from collections.abc import Iterable

from forgelib.core.artifacts import Artifact, load_artifact
from forgelib.core.paths import runs_dir
from forgelib.core.registry import Registry
from forgelib.workbook.origin import made_by

BAKING, TRIAL = "30_quietstar_bake", "32_quietstar_antitheater"


def earlier_verdicts(trained: Artifact) -> list[dict]:
    """Verdicts of the baking that the reinforced model came from, of its reinforcement, and of its trial.

    A trial of another model does not count: without one of this model the verdict reads "not run", and is no pass.
    """
    registry = Registry(runs_dir())
    found = []
    for parent in trained.manifest["parents"]:
        if parent["name"] == "quietstar-baked":
            rows = registry.find(digest=parent["digest"])
            found += (
                load_artifact(rows[0]["path"]).manifest["verdicts"] or []
                if rows
                else [_not_run("Baking", made_by(BAKING, trained.manifest["tags"]))]
            )
    return [*found, *own_verdicts(trained)]


def own_verdicts(trained: Artifact) -> list[dict]:
    """Verdicts of the reinforcement and of the trial of this very model."""
    trial = _trial(Registry(runs_dir()), trained)
    not_run = _not_run("anti-theater", made_by(TRIAL, trained.manifest["tags"]))
    return [*(trained.manifest["verdicts"] or []), *(trial or [not_run])]


def verdict_rows(verdicts: Iterable[dict]) -> list[dict]:
    """One row a gate: how many of its checks passed, and which did not."""
    return [
        {
            "gate": verdict["gate"],
            "checks": len(verdict["checks"]),
            "not passed": "; ".join(check["name"] for check in verdict["checks"] if check["verdict"] != "passed"),
            "verdict": "passed" if verdict["passed"] else "failed",
        }
        for verdict in verdicts
    ]


def _trial(registry: Registry, trained: Artifact) -> list[dict]:
    """The newest trial of this model."""
    for row in registry.find(name="quietstar-verdict"):
        manifest = load_artifact(row["path"]).manifest
        if trained.digest in [parent["digest"] for parent in manifest["parents"]]:
            return manifest["verdicts"] or []
    return []


def _not_run(gate: str, maker: str) -> dict:
    return {
        "gate": gate,
        "passed": False,
        "checks": [{"name": f"not run; {maker}", "measured": None, "verdict": "not run"}],
    }
