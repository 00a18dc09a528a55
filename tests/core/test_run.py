"""A run is what its facts say: the same facts find the same folder and result, any other fact starts anew."""

import json
import math
import shutil

import pytest

from forgelib.core import run as module
from forgelib.core.artifacts import Artifact, ArtifactError
from forgelib.core.gates import Check, Gate
from forgelib.core.registry import Registry
from forgelib.core.run import MissingInput, Run, latest_artifact, open_run

FACTS = {"step": "11_cognate_train", "params": {"lr": 0.1, "layers": [1, 2]}, "seed": 3}


def opened(**changes) -> Run:
    return open_run(**{**FACTS, **changes})


def made(name: str = "trunk", content: str = "weights", **changes) -> Artifact:
    return opened(**changes).publish(name, lambda folder: (folder / "config.json").write_text(content))


def test_the_same_facts_are_the_same_run():
    first, again = opened(), opened(params={"layers": (1, 2), "lr": 0.1})
    assert first.key == again.key and first.dir == again.dir
    assert json.loads((first.dir / "run.json").read_text())["params"] == FACTS["params"]
    first.tracker.log({"step": 0, "loss": 1.0})
    assert opened().tracker.records() == [{"step": 0, "loss": 1.0}]


def test_what_only_shows_or_names_does_not_change_the_key():
    keys = {opened().key, opened(tags={"part": "x"}).key, opened(label="laptop-trunk").key, opened(run_name="r").key}
    assert len(keys) == 1
    assert opened(label="laptop-trunk").dir.name == f"11_cognate_train-laptop-trunk-{opened().key[:12]}"


def test_every_fact_changes_the_key(monkeypatch):
    one, two = made("one", step="a"), made("two", step="b")
    changes = [
        {},
        {"step": "12"},
        {"seed": 4},
        {"params": {"lr": 0.2, "layers": [1, 2]}},
        {"params": {**FACTS["params"], "more": None}},
        {"parents": [one]},
        {"parents": [one, two]},
        {"parents": [two, one]},
    ]
    keys = [opened(**change).key for change in changes]
    monkeypatch.setattr(module, "code_digest", lambda *modules: "other code")
    assert len({*keys, opened().key}) == len(changes) + 1


def test_a_number_that_is_none_is_no_parameter():
    with pytest.raises(ValueError, match="JSON"):
        opened(params={"lr": math.nan})


def test_from_the_first_step_to_the_artifact():
    parent = made("data", step="10")
    run = opened(parents=[parent], tags={"part": "trunk", "seed": 3})
    assert run.finished() is None
    for step in range(3):
        run.tracker.log({"step": step, "loss": 1.0 / (step + 1)})
    run.checkpointer(every_steps=1).save(3, {"parts": {}})
    gate = Gate("Gate", [Check("speed", math.nan, 1.0)]).verdict()
    artifact = run.publish("trunk", lambda folder: (folder / "config.json").write_text("{}"), [gate])
    assert artifact.path.parent == run.root / "artifacts" and artifact.manifest["key"] == run.key
    assert artifact.manifest["verdicts"][0]["passed"] is False and artifact.manifest["seed"] == 3
    assert (artifact.path / "metrics.jsonl").read_bytes() == (run.dir / "metrics.jsonl").read_bytes()
    assert not (run.dir / "checkpoints").exists(), "checkpoints of a finished run only take space"
    again = opened(parents=[parent])
    assert again.finished() == artifact == latest_artifact("trunk", {"part": "trunk"}, "")
    line = Registry(run.root).lineage(artifact.digest)
    assert [ancestor["name"] for ancestor in line] == ["trunk", "data"]


def test_checkpoints_can_be_kept():
    run = opened()
    run.checkpointer(every_steps=1).save(1, {"parts": {}})
    run.publish("trunk", lambda folder: None, keep_checkpoints=True)
    assert run.checkpointer().latest()["step"] == 1


def test_a_damaged_result_is_said_a_deleted_one_is_made_again():
    artifact = made()
    (artifact.path / "config.json").write_text("rotten")
    with pytest.raises(ArtifactError, match=r"config\.json is damaged"):
        opened().finished()
    with pytest.raises(ArtifactError, match=r"config\.json is damaged"):
        latest_artifact("trunk", {}, "")
    shutil.rmtree(artifact.path)
    assert opened().finished() is None
    assert made() == opened().finished()


def test_an_error_while_writing_publishes_nothing_and_keeps_the_checkpoints():
    def fails(folder):
        (folder / "half").write_text("half")
        raise OSError(28, "No space left on device")

    run = opened()
    run.checkpointer(every_steps=1).save(5, {"parts": {}})
    with pytest.raises(OSError, match="No space left"):
        run.publish("trunk", fails)
    assert list((run.root / "artifacts").iterdir()) == [] and run.finished() is None
    assert run.checkpointer().latest()["step"] == 5


def test_killed_between_publishing_and_registering_it_is_published_once(monkeypatch):
    def killed(*facts):
        raise KeyboardInterrupt

    assert opened().finished() is None
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Registry, "add", killed)
        made(content="first")
    assert opened().finished() is None
    second = made(content="second")
    assert (second.path / "config.json").read_text() == "first" and opened().finished() == second
    assert len(list((opened().root / "artifacts").iterdir())) == 1


def test_what_is_missing_names_the_way_to_make_it():
    made(tags={"part": "trunk", "seed": 0})
    maker = "papermill 11_cognate_train.ipynb out.ipynb"
    with pytest.raises(MissingInput, match="there is no trunk for part trunk, seed 1 below") as caught:
        latest_artifact("trunk", {"part": "trunk", "seed": 1}, maker)
    assert str(caught.value).endswith(f"Make it:  {maker}")


def test_the_newest_of_several_counts():
    older, newer = made(seed=1, tags={"profile": "smoke"}), made(seed=2, tags={"profile": "smoke"})
    assert latest_artifact("trunk", {"profile": "smoke"}, "") == newer != older


def test_what_was_made_from_another_parent_than_the_one_run_last_is_not_taken():
    tags = {"profile": "smoke"}
    first = made(seed=1, tags=tags)
    child = made("merged", step="12", parents=[first], tags=tags)
    made(seed=1, tags={"profile": "laptop"})
    assert latest_artifact("merged", tags, "") == child, "a parent of another profile is none of its own"
    variant = made(seed=2, tags=tags)
    told = f"made from the trunk {first.digest[:12]}, and the one run last is {variant.digest[:12]}.* papermill 12"
    with pytest.raises(MissingInput, match=told):
        latest_artifact("merged", tags, "papermill 12")
    assert opened(seed=1, tags=tags).finished() == first
    assert latest_artifact("merged", tags, "") == child, "the former once more"


def test_a_step_that_is_run_again_counts_before_a_newer_variant():
    """Defaults, a variant, the defaults again: the next step goes on with the defaults."""
    tags = {"profile": "smoke"}
    first, variant = made(seed=1, tags=tags), made(seed=2, tags=tags)
    assert opened(seed=1, tags=tags).finished() == first == latest_artifact("trunk", tags, "") != variant
    Registry(opened().root).rebuild()
    assert latest_artifact("trunk", tags, "") == first, "which is no news to a registry made anew"
    third = made(seed=3, tags=tags)
    assert latest_artifact("trunk", tags, "") == third


def test_a_journal_that_ran_ahead_of_its_checkpoint_is_cut_back():
    """As a procedure that was killed two steps after its checkpoint, and then left alone."""

    def procedure(start):
        yield from ({"step": step, "from": start} for step in range(start, 6))

    run = opened()
    for record in run.tracker.follow(procedure(0)):
        if record["step"] == 4:
            break
    assert len(list(opened().tracker.follow(procedure(3)))) == 3
    records = opened().tracker.records()
    assert [(record["step"], record["from"]) for record in records] == [(0, 0), (1, 0), (2, 0), (3, 3), (4, 3), (5, 3)]
