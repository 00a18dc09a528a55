"""What 12_cognate_diversity needs besides measurements: the three specialists, their dials, the parents' artifact."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from forgelib import evaluate
from forgelib.core.artifacts import Artifact
from forgelib.core.run import latest_artifact, open_run
from forgelib.data import SPECIALISTS
from forgelib.models import CognateForCausalLM
from forgelib.phases.curriculum import TRUNK_CYCLES
from forgelib.workbook.origin import made_by, tags
from forgelib.workbook.params import CognateDiversity, Parameters
from forgelib.workbook.phase1 import CODE, load_model

#: The dials of the control: the trunk's.
COMMON_DIALS = {"act_threshold": 0.95, "max_cycles": TRUNK_CYCLES, "ltm_tokens": 2048}


def load_specialists(p: Parameters) -> tuple[dict[str, CognateForCausalLM], dict[str, Artifact]]:
    """The three specialists by name. Raises MissingInput naming the command that trains the missing one."""
    artifacts = {
        name: latest_artifact(
            f"cognate-{name}", tags(p, part=name), made_by("11_cognate_train", tags(p, specialist=name))
        )
        for name in SPECIALISTS
    }
    return {name: load_model(artifact) for name, artifact in artifacts.items()}, artifacts


@contextlib.contextmanager
def common_dials(
    model: CognateForCausalLM, act_threshold: float = 0.95, max_cycles: int = TRUNK_CYCLES
) -> Iterator[None]:
    """The model with the dials that all share, for as long as the block lasts: the control of the diversity gate."""
    own = {name: getattr(model.config, name) for name in ("act_threshold", "max_cycles", "ltm_tokens")}
    try:
        model.set_dials(COMMON_DIALS)
        yield
    finally:
        model.set_dials(own)


def halting_row(name: str, model: CognateForCausalLM, found: evaluate.Behaviour) -> dict:
    """How often the model's tokens stopped because they were sure, and how often they were right to."""
    sure, right = found.sure, found.right
    return {
        "model": name,
        "threshold": model.config.act_threshold,
        "cycles at most": model.config.max_cycles,
        "stopped sure": round(float(sure.mean()), 3),
        "of these right": round(float(right[sure].mean()), 3) if sure.any() else None,
        "right in all": round(float(right.mean()), 3),
    }


def memory_row(name: str, model: CognateForCausalLM, texts: torch.Tensor, found: evaluate.Behaviour) -> dict:
    """What the memory is worth to the model: its share of the signal, and the loss with and without it."""
    on = evaluate.losses_per_text(model, texts)
    model.model.use_memory = False
    try:
        off = evaluate.losses_per_text(model, texts)
    finally:
        model.model.use_memory = True
    return {
        "model": name,
        "horizon set": model.config.ltm_tokens,
        "horizon measured": round(float(found.horizon.mean())),
        "share of the signal": round(found.memory_share, 3),
        "loss": round(float(on.mean()), 3),
        "loss with the memory off": round(float(off.mean()), 3),
    }


def publish_parents(p: CognateDiversity, artifacts: Mapping[str, Artifact], verdict: dict) -> Artifact:
    """The artifact that names the three parents and the gate's verdict: what Phase 2 takes."""
    parents = list(artifacts.values())
    facts = {"parents": parents, "seed": p.seed, "tags": tags(p), "label": p.profile, "code": CODE}
    run = open_run(CognateDiversity.NOTEBOOK, p.model_dump(), **facts)
    named = {name: {"name": a.name, "digest": a.digest} for name, a in artifacts.items()}

    def write(folder: Path) -> None:
        (folder / "parents.json").write_text(json.dumps({"parents": named, "gate": verdict}, indent=1))

    return run.finished() or run.publish("cognate-parents", write, [verdict])
