"""The registry is an index over the manifests, and never more than that."""

import json
import shutil
import sqlite3
import subprocess
import sys

import pytest

from forgelib.core import registry as module
from forgelib.core.artifacts import draft
from forgelib.core.registry import Registry


def publish(registry: Registry, name: str, key: str, parents=(), **tags):
    with draft(registry.root / "artifacts", name) as new:
        (new.path / "config.json").write_text("{}")
        made = new.publish(step=f"step-{name}", key=key * 12, params={}, parents=list(parents), seed=0, tags=tags)
    registry.add(made.path, made.manifest, made.digest)
    return made


def family(registry: Registry):
    """trunk -> (memory, speed) -> merged, with a grandchild."""
    trunk = publish(registry, "trunk", "a", seed=0)
    memory = publish(registry, "specialist", "b", [trunk], part="memory", seed=0, profile="laptop")
    speed = publish(registry, "specialist", "c", [trunk], part="speed", seed=0, profile="laptop")
    merged = publish(registry, "merged", "d", [memory, speed])
    return trunk, memory, speed, merged, publish(registry, "baked", "e", [merged, trunk])


def contents(registry: Registry) -> dict:
    database = sqlite3.connect(registry.path)
    tables = {table: sorted(database.execute(f"SELECT * FROM {table}")) for table in ("artifacts", "parents", "tags")}
    database.close()
    return tables


def test_rebuilt_from_the_manifests_it_is_the_same(tmp_path):
    registry = Registry(tmp_path)
    made = family(registry)
    before = contents(registry)
    registry.add(tmp_path / "gone", made[0].manifest, "a digest that no manifest has")
    assert contents(registry) != before
    assert registry.rebuild() == len(made)
    assert contents(registry) == before and len(before["parents"]) == 6 and len(before["tags"]) == 7

    registry.path.unlink()
    fresh = Registry(tmp_path)
    assert fresh.rebuilt and contents(fresh) == before and not Registry(tmp_path).rebuilt


def test_found_by_name_step_key_and_tags_newest_first(tmp_path):
    registry = Registry(tmp_path)
    trunk, memory, speed, _, _ = family(registry)

    def digests(**asked):
        return [found["digest"] for found in registry.find(**asked)]

    assert digests(name="specialist") == [speed.digest, memory.digest]
    assert digests(name="specialist", tags={"part": "memory"}) == [memory.digest]
    assert digests(name="specialist", tags={"part": "memory", "seed": 1}) == []
    assert digests(step="step-trunk") == [trunk.digest] == digests(key="a" * 12)
    assert digests(tags={"seed": 0}) == [speed.digest, memory.digest, trunk.digest]
    assert digests(tags={"seed": "0"}) == [], "a number is not its text"
    assert registry.find(key="a" * 12)[0]["path"] == trunk.path


def test_a_run_folder_that_was_copied_or_moved_holds_its_own_artifacts(tmp_path):
    *_, baked = family(Registry(tmp_path / "first"))
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    copy = Registry(tmp_path / "copy")
    (found,) = copy.find(name="baked")
    assert found["path"] == tmp_path / "copy" / "artifacts" / baked.path.name and not copy.rebuilt
    assert all(str(tmp_path / "copy") in line["path"] for line in copy.lineage(baked.digest))
    (tmp_path / "first").rename(tmp_path / "moved")
    assert Registry(tmp_path / "moved").find(name="baked")[0]["path"].is_relative_to(tmp_path / "moved")


def test_adding_twice_changes_nothing(tmp_path):
    registry = Registry(tmp_path)
    made = publish(registry, "trunk", "a", seed=0)
    before = contents(registry)
    registry.add(made.path, made.manifest, made.digest)
    assert contents(registry) == before


def test_lineage_holds_every_ancestor_once_with_its_distance(tmp_path):
    registry = Registry(tmp_path)
    trunk, memory, speed, merged, baked = family(registry)
    line = [(row["digest"], row["depth"]) for row in registry.lineage(baked.digest)]
    assert line[0] == (baked.digest, 0)
    assert dict(line) == {baked.digest: 0, merged.digest: 1, trunk.digest: 1, memory.digest: 2, speed.digest: 2}
    assert len(line) == 5
    assert [row["digest"] for row in registry.lineage(trunk.digest)] == [trunk.digest]


def test_a_deleted_artifact_is_not_found_but_stays_in_the_lineage(tmp_path):
    registry = Registry(tmp_path)
    trunk, memory, *_ = family(registry)
    shutil.rmtree(trunk.path)
    assert registry.find(name="trunk") == []
    assert [row["name"] for row in registry.lineage(memory.digest)] == ["specialist", "trunk"]


@pytest.mark.parametrize("damage", ["no database", "empty pages", "flipped"])
def test_an_unreadable_file_is_made_anew_and_says_so(tmp_path, damage):
    registry = Registry(tmp_path)
    family(registry)
    before = contents(registry)
    with registry._open() as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(registry.path.read_bytes())
    if damage == "no database":
        content = b"this is a text file, and a long enough one to be read\n" * 100
    else:
        content[4096:] = bytes(len(content) - 4096) if damage == "empty pages" else b"\xff" * (len(content) - 4096)
    registry.path.write_bytes(content)
    again = Registry(tmp_path)
    assert again.rebuilt and contents(again) == before
    assert not Registry(tmp_path).rebuilt


def test_a_locked_registry_is_not_taken_for_a_broken_one(tmp_path, monkeypatch):
    registry = Registry(tmp_path)
    family(registry)
    before = contents(registry)
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    holder = sqlite3.connect(registry.path)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        Registry(tmp_path)
    holder.close()
    assert contents(registry) == before


def test_a_manifest_that_cannot_be_read_is_left_out(tmp_path):
    registry = Registry(tmp_path)
    trunk, memory, *_ = family(registry)
    (trunk.path / "manifest.json").write_text("{")
    manifest = memory.manifest | {"parents": "?"}
    (memory.path / "manifest.json").write_text(json.dumps(manifest))
    assert registry.rebuild() == 3
    assert {found["manifest"]["key"][0] for found in registry.find()} == {"c", "d", "e"}


WRITER = """
import sys
from pathlib import Path

from forgelib.core.registry import Registry

while not Path(sys.argv[2], "go").exists():
    pass
for i in range(10):
    digest = f"{sys.argv[1]}-{i}"
    manifest = {"name": "n", "step": "s", "key": digest, "seed": 0, "parents": [], "tags": {"i": i}}
    for root in sys.argv[3:]:
        Registry(root).add(root, manifest, digest)
"""


def test_processes_write_at_once_and_nothing_is_lost(tmp_path):
    """They also create the files at once, where SQLite does not wait by itself: once in about sixty files."""
    roots = [tmp_path / str(i) for i in range(30)]
    names = "abcdef"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, n, tmp_path, *roots]) for n in names]
    (tmp_path / "go").touch()
    assert [writer.wait() for writer in writers] == [0] * len(names)
    for root in roots:
        assert {row[0] for row in contents(Registry(root))["artifacts"]} == {
            f"{n}-{i}" for n in names for i in range(10)
        }
