"""A run: one execution of a step, with its folder, journal, brake and checkpoints, and the artifact it ends in.

The key of a run is a hash of its step, parameters, parents and code. Same key, same folder: an interrupted run goes on
from its checkpoint, a finished one is reused, and any change of what could change the result starts a new one.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from forgelib.core.artifacts import Artifact, code_digest, draft, load_artifact
from forgelib.core.loop import Checkpointer, Control
from forgelib.core.paths import runs_dir
from forgelib.core.registry import Registry
from forgelib.core.tracking import JOURNAL, Tracker


class MissingInput(RuntimeError):
    """Something that an earlier step makes is not there; the text names the notebook or command that makes it."""


@dataclass
class Run:
    """An open run. `tags` (profile, seed, data, part ...) are how later steps find its artifact."""

    step: str
    key: str
    dir: Path
    root: Path
    params: dict
    parents: list[Artifact]
    seed: int
    tags: dict
    tracker: Tracker

    @property
    def control(self) -> Control:
        """Pause, resume and stop from outside."""
        return Control(self.dir)

    def checkpointer(self, every_steps: int | None = None, every_seconds: float | None = None) -> Checkpointer:
        """Checkpoints of this run, below its folder."""
        return Checkpointer(self.dir / "checkpoints", every_steps, every_seconds)

    def finished(self) -> Artifact | None:
        """The artifact of an earlier run with the same key, its hashes verified, or None. Later steps that ask for the
        newest one get this one from now on.

        Raises ArtifactError when it is there but damaged: a damaged result is not silently made anew.
        """
        registry = Registry(self.root)
        found = registry.find(key=self.key)
        if not found:
            return None
        artifact = load_artifact(found[0]["path"])
        registry.take_up(artifact.digest)
        return artifact

    def publish(
        self,
        name: str,
        write: Callable[[Path], object],
        verdicts: list[dict] | None = None,
        keep_checkpoints: bool = False,
    ) -> Artifact:
        """Publish what `write(folder)` writes, with the journal beside it, and register it. Checkpoints then go."""
        with draft(self.root / "artifacts", name) as new:
            write(new.path)
            if (self.dir / JOURNAL).is_file():
                shutil.copyfile(self.dir / JOURNAL, new.path / JOURNAL)
            artifact = new.publish(
                step=self.step,
                key=self.key,
                params=self.params,
                parents=self.parents,
                seed=self.seed,
                verdicts=verdicts,
                tags=self.tags,
            )
        Registry(self.root).add(artifact.path, artifact.manifest, artifact.digest)
        self.tracker.save_artifact(artifact.path, name, "model")
        self.tracker.finish()
        if not keep_checkpoints:
            shutil.rmtree(self.dir / "checkpoints", ignore_errors=True)
        return artifact


def run_key(step: str, params: dict, parents: list[Artifact], seed: int, code: tuple[str, ...] = ()) -> str:
    """sha256 over step, parameters, parents' digests in their order, seed and the code of forgelib that `code` names:
    modules and what they import, or all of it."""
    facts = [step, params, [parent.digest for parent in parents], seed, code_digest(*code)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, allow_nan=False).encode()).hexdigest()


def open_run(
    step: str,
    params: dict,
    *,
    parents: list[Artifact] | tuple[Artifact, ...] = (),
    seed: int,
    tags: dict | None = None,
    label: str = "",
    wandb_mode: str = "disabled",
    run_name: str | None = None,
    metrics_prefix: str = "",
    code: tuple[str, ...] = (),
) -> Run:
    """The run of these facts, new or continued. `label` makes its folder readable: <step>-<label>-<key>.

    `code` names the modules that the step runs ("forgelib.workbook.phase1"): a change of what they do not import leaves
    its key as it is. Without it every module of forgelib counts.
    """
    parents, tags = list(parents), dict(tags or {})
    key = run_key(step, params, parents, seed, code)
    root = runs_dir()
    folder = root / "runs" / "-".join(part for part in (step, label, key[:12]) if part)
    tracker = Tracker(
        folder,
        run_name=run_name or folder.name,
        config=params,
        wandb_mode=wandb_mode,
        job_type=step,
        metrics_prefix=metrics_prefix,
    )
    facts = {"step": step, "key": key, "params": params, "seed": seed, "tags": tags}
    (folder / "run.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    return Run(step, key, folder, root, params, parents, seed, tags, tracker)


def latest_artifact(name: str, tags: dict, maker: str) -> Artifact:
    """The artifact of this name and these tags whose step was run last, its hashes verified.

    Raises MissingInput, ending with the command that makes it, `maker`, where there is none, and where it was made from
    other parents than their steps made last: what is joined is of one descent.
    """
    registry = Registry(runs_dir())
    found = registry.find(name=name, tags=tags)
    if not found:
        asked = ", ".join(f"{tag} {value}" for tag, value in tags.items())
        raise MissingInput(f"there is no {name} for {asked} below {registry.root}. Make it:  {maker}")
    for parent in found[0]["manifest"]["parents"]:
        if newer := _newer(registry, parent):
            raise MissingInput(
                f"{name} was made from the {parent['name']} {parent['digest'][:12]}, and the one run last is "
                f"{newer[:12]}: run what made the former once more, or make {name} anew:  {maker}"
            )
    return load_artifact(found[0]["path"])


def _newer(registry: Registry, parent: dict) -> str | None:
    """The digest of the artifact of a parent's name and tags that was run last, where it is another one."""
    for own in registry.find(digest=parent["digest"]):
        alike = registry.find(name=parent["name"], tags=own["manifest"]["tags"])
        return None if alike[0]["digest"] == parent["digest"] else alike[0]["digest"]
    return None
