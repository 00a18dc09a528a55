"""Run folders as forgelib's own writers leave them, without any training: journals, artifacts, gates, a verdict."""

import json
import shutil
from pathlib import Path

import numpy as np

from forgelib.core.gates import Check, Gate
from forgelib.core.run import Run, open_run
from forgelib.evaluate.verdict import Evidence, Findings, Measured, Thresholds, Verdict

TAGS = {"profile": "smoke", "seed": 0, "data": "procedural"}
GOOD = Measured(0.6, (0.5, 0.7), {"shuffled": 0.1}, 100)


def losses(n: int, start: int = 0) -> list[dict]:
    """n records of a training whose loss falls."""
    return [{"step": step, "loss": 4.0 / (step + 1), "epoch": (step + 1) / 100} for step in range(start, start + n)]


def plant(step: str, records: list[dict], params: dict | None = None, prefix: str = "", **facts) -> Run:
    """A run that wrote these records; `params` make its key its own. facts: tags, parents."""
    tags = {**TAGS, **facts.pop("tags", {})}
    run = open_run(step, params or {}, seed=0, tags=tags, metrics_prefix=prefix, **facts)
    for record in records:
        run.tracker.log(record)
    return run


def finish(run: Run, name: str, *gates: Gate):
    """The run's artifact, with its gates."""
    verdicts = [gate.verdict() for gate in gates]
    return run.publish(name, lambda folder: (folder / "notes.json").write_text("{}"), verdicts)


def gate(name: str, measured: float | None, threshold: float = 0.5) -> Gate:
    """A gate of one check."""
    return Gate(name, [Check("a check", measured, threshold)])


def many(n: int = 100, records: int = 5000) -> list[Run]:
    """n runs of a long reinforcement with journals of 12 metrics, 1.5 MB for 5,000 records; 40 of 100 are finished."""
    runs = [plant("31_quietstar_rl", [], {"episodes": 80_000, "n": i}, "rl/") for i in range(n)]
    for run in runs[: 2 * n // 5]:
        finish(run, "quietstar-rl", gate("Reinforcement", 0.9))
    names = [f"rl/metric_{i}" for i in range(12)]
    lines = [
        {"step": step, "rl/episode": 16 * step, **{name: 1.0 / (step + i + 1) for i, name in enumerate(names)}}
        for step in range(records)
    ]
    runs[0].dir.mkdir(exist_ok=True)
    runs[0].tracker.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for run in runs[1:]:
        shutil.copyfile(runs[0].tracker.path, run.tracker.path)
    return runs


def verdict(correlation: float = 0.6) -> Verdict:
    """A verdict on thoughts that passes while `correlation` is above 0.5."""
    found = Measured(correlation, (correlation - 0.1, correlation + 0.1), {"shuffled": 0.1}, 100)
    tests = Findings(GOOD, GOOD, GOOD, found, GOOD, GOOD, {"own": 0.9})
    nothing = np.zeros((1, 1))
    evidence = Evidence(["a"], ["x"], {}, {}, {}, np.arange(1), nothing, nothing, nothing[0])
    return Verdict(tests, {"chain_of_thought": tests}, Thresholds(), evidence)


def finish_trial(run: Run, found: Verdict):
    """The artifact of a trial, with verdict.json as notebook 32 writes it."""

    def write(folder: Path) -> None:
        (folder / "verdict.json").write_text(json.dumps(found.as_dict(), indent=1))

    return run.publish("quietstar-verdict", write, [found.gate().verdict()])


def chain(episodes: int = 40) -> dict[str, Run]:
    """A small workbook: a finished champion with its data, a finished baking, a reinforcement at work, a trial."""
    data = plant("10_cognate_data", [])
    rows = finish(data, "cognate-data", gate("Data", 1.0))
    search = plant("21_evomerge_evolve", [{"step": 0, "best": 1.1}], {"generations": 10}, parents=[rows])
    champion = finish(search, "evomerge-champion", gate("Champion", 0.2))
    looks = {f"token_usage_{name}": 0.9 for name in ("thinking", "step", "mece")} | {"token_usage_doubt": 0.2}
    baking = plant("30_quietstar_bake", losses(50), {"epochs": 1}, "baking/", parents=[champion])
    baking.tracker.log({"step": 50, "epoch": 0.51, "loss": 0.05, "accuracy_overall": 0.9, **looks})
    baked = finish(baking, "quietstar-baked", gate("Baking", 0.9))
    records = [{"step": i, "episode": 16 * (i + 1), "avg_reward_100": -1 / (i + 1)} for i in range(episodes)]
    rl = plant("31_quietstar_rl", records, {"episodes": 5000}, "rl/", parents=[baked, champion])
    trial = plant("32_quietstar_antitheater", [{"step": 0, "anti_theater_ablation": 0.5}], parents=[baked, champion])
    finish_trial(trial, verdict())
    return {"data": data, "search": search, "baking": baking, "rl": rl, "trial": trial}
