"""An artifact is there whole or not at all, and believed only as far as its hashes agree."""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from forgelib.core import artifacts
from forgelib.core.artifacts import Artifact, ArtifactError, code_digest, draft, load_artifact

FILES = ("model.safetensors", "config.json", "tokenizer/vocab.json", "manifest.json", "manifest.sha256")


def write(folder: Path) -> None:
    (folder / "tokenizer").mkdir()
    save_file({"weight": torch.arange(6.0)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"d_model": 8}')
    (folder / "tokenizer/vocab.json").write_text('{"a": 0}')


def publish(root: Path, key: str = "k" * 64, **more) -> Artifact:
    with draft(root, "trunk") as new:
        write(new.path)
        facts = {"step": "11_cognate_train", "key": key, "params": {"lr": 0.1}, "seed": 3, **more}
        return new.publish(**facts)


@pytest.fixture
def artifact(tmp_path) -> Artifact:
    return publish(tmp_path / "artifacts")


def refused(path: Path, naming: str) -> str:
    """The error's text: it names the file and says what to do."""
    with pytest.raises(ArtifactError) as caught:
        load_artifact(path)
    text = str(caught.value)
    assert naming in text
    assert "Delete" in text or "Store weights as .safetensors" in text or "Copy the file" in text
    return text


def test_what_was_published_is_loaded_and_says_where_it_comes_from(artifact, tmp_path):
    loaded = load_artifact(artifact.path)
    assert loaded == artifact and loaded.name == "trunk"
    assert set(loaded.manifest["files"]) == set(FILES[:3])
    assert loaded.manifest["seed"] == 3 and loaded.manifest["params"] == {"lr": 0.1}
    assert loaded.manifest["libraries"]["torch"].startswith("2.") and len(loaded.manifest["code"]) == 64
    child = publish(
        tmp_path / "artifacts", "c" * 64, parents=[loaded], tags={"part": "memory"}, verdicts=[{"gate": "x"}]
    )
    assert child.manifest["parents"] == [{"name": "trunk", "digest": loaded.digest}]
    assert child.manifest["tags"] == {"part": "memory"} and child.manifest["verdicts"] == [{"gate": "x"}]


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found(artifact, name):
    file = artifact.path / name
    good = file.read_bytes()
    for position in {0, len(good) // 2, len(good) - 1, *random.Random(0).sample(range(len(good)), min(40, len(good)))}:
        for bit in (0, 7):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            file.write_bytes(bad)
            refused(artifact.path, str(artifact.path))
    file.write_bytes(good)
    assert load_artifact(artifact.path) == artifact


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(artifact, name):
    (artifact.path / name).unlink()
    assert "is missing" in refused(artifact.path, name)


def test_an_added_file_is_named(artifact):
    (artifact.path / "tokenizer/extra.txt").write_text("hello")
    refused(artifact.path, "extra.txt")


@pytest.mark.parametrize("text", ["", "not json", "[]", "7", "null", '{"schema": 1}', "\xff\x00", '{"files": 3}'])
def test_a_manifest_that_is_none_is_named(artifact, text):
    (artifact.path / "manifest.json").write_text(text, encoding="latin-1")
    refused(artifact.path, "manifest.json")


def test_a_folder_that_is_no_artifact_is_named(tmp_path):
    refused(tmp_path / "nowhere", "nowhere")


def reseal(path: Path, **changes) -> None:
    """Change the manifest as somebody would who also knows the seal."""
    manifest = json.loads((path / "manifest.json").read_text()) | changes
    (path / "manifest.json").write_text(json.dumps(manifest))
    digest = artifacts.file_sha256(path / "manifest.json")
    (path / "manifest.sha256").write_text(f"{digest}  manifest.json\n")


@pytest.mark.parametrize("schema", [0, 2, 99, "1", None])
def test_another_schema_is_not_taken_for_ours(artifact, schema):
    reseal(artifact.path, schema=schema)
    assert "schema" in refused(artifact.path, "manifest.json")


@pytest.mark.parametrize("name", ["../../secret.txt", "/etc/hostname", "nul\0byte", "."])
def test_a_manifest_that_names_what_lies_outside_is_refused(artifact, tmp_path, name):
    (tmp_path / "secret.txt").write_text("secret")
    reseal(artifact.path, files=artifact.manifest["files"] | {name: "0" * 64})
    refused(artifact.path, "manifest.json" if name != "." else str(artifact.path))


def test_a_number_that_is_not_finite_does_not_cost_the_training(tmp_path):
    made = publish(tmp_path / "artifacts", verdicts=[{"checks": [{"measured": float("nan"), "at": (float("inf"), 1)}]}])
    assert load_artifact(made.path).manifest["verdicts"] == [{"checks": [{"measured": "nan", "at": ["inf", 1]}]}]
    json.loads((made.path / "manifest.json").read_text(), parse_constant=pytest.fail)


class Trap:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def pickles(mark: Path) -> dict[str, bytes]:
    torch_file = mark.with_suffix(".zip")
    torch.save({"w": torch.zeros(2)}, torch_file)
    old_torch_file = mark.with_suffix(".old")
    torch.save({"w": torch.zeros(2)}, old_torch_file, _use_new_zipfile_serialization=False)
    found = {f"protocol {p}": pickle.dumps(Trap(mark), protocol=p) for p in range(6)}
    return found | {"torch": torch_file.read_bytes(), "old torch": old_torch_file.read_bytes()}


KINDS = [*(f"protocol {p}" for p in range(6)), "torch", "old torch"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "weights.pt", "optimizer.pkl"])
def test_a_pickle_is_refused_under_any_name_and_not_run(artifact, tmp_path, kind, name):
    mark = tmp_path / "mark"
    content = pickles(mark)[kind]
    (artifact.path / name).write_bytes(content)
    assert "pickle" in refused(artifact.path, name)
    with draft(tmp_path / "artifacts", "other") as new:
        (new.path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match="pickle"):
            new.publish(step="s", key="p" * 64, params={}, seed=0)
    assert not mark.exists()
    pickle.loads(pickles(mark)["protocol 4"])
    assert mark.exists(), "the trap itself works"


@pytest.mark.parametrize("kind", [*(f"protocol {p}" for p in range(2, 6)), "torch", "old torch"])
def test_a_pickle_in_a_text_file_is_refused_too(artifact, tmp_path, kind):
    (artifact.path / "config.json").write_bytes(pickles(tmp_path / "mark")[kind])
    assert "pickle" in refused(artifact.path, "config.json")


def test_a_sound_safetensors_file_whose_first_bytes_look_like_a_pickle_is_taken(tmp_path):
    """Its header is 640 = 0x0280 bytes long, so the file begins with the two bytes of pickle protocol 2."""
    for length in range(400, 700):
        file = tmp_path / "model.safetensors"
        save_file({"weight": torch.zeros(1)}, file, metadata={"note": "x" * length})
        if file.read_bytes()[:2] == b"\x80\x02":
            break
    assert file.read_bytes()[:2] == b"\x80\x02"
    with draft(tmp_path / "artifacts", "odd") as new:
        shutil.copy(file, new.path)
        made = new.publish(step="s", key="o" * 64, params={}, seed=0)
    assert load_artifact(made.path) == made


def test_a_link_and_a_path_outside_are_refused(artifact, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (artifact.path / "link.txt").symlink_to(secret)
    assert "is a link" in refused(artifact.path, "link.txt")
    (artifact.path / "link.txt").unlink()
    with draft(tmp_path / "artifacts", "linked") as new:
        (new.path / "model.safetensors").symlink_to(artifact.path / "model.safetensors")
        with pytest.raises(ArtifactError, match="is a link"):
            new.publish(step="s", key="l" * 64, params={}, seed=0)

    reseal(artifact.path, files=artifact.manifest["files"] | {"../../secret.txt": artifacts.file_sha256(secret)})
    assert "outside" in refused(artifact.path, "secret.txt")


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "two words"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name"), draft(tmp_path, name):
        pass


def test_sha256sum_agrees(artifact):
    done = subprocess.run(["sha256sum", "-c", "manifest.sha256"], cwd=artifact.path, capture_output=True)
    assert done.returncode == 0


def test_an_error_while_writing_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="boom"), draft(tmp_path, "trunk") as new:
        write(new.path)
        raise RuntimeError("boom")
    assert list(tmp_path.iterdir()) == []


def test_the_first_to_publish_wins_and_a_damaged_winner_is_reported(artifact):
    root = artifact.path.parent
    again = publish(root, params={"lr": 0.2})
    assert again == artifact
    assert [p.name for p in root.iterdir()] == [artifact.path.name]
    (artifact.path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"config\.json"):
        publish(root)


PUBLISHER = """
import sys
from pathlib import Path
from forgelib.core.artifacts import draft

root, first = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
for i in range(first, first + 1000):
    with draft(root, "trunk") as new:
        for j in range(20):
            (new.path / f"{j}.json").write_text(str(i) * 2000)
        print(new.publish(step="s", key=f"{i:064d}"[::-1], params={}, seed=0).digest, flush=True)
"""


def publisher(root: Path, first: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PUBLISHER, str(root), str(first)], stdout=subprocess.PIPE, text=True)


def test_killed_in_the_middle_of_publishing_leaves_only_whole_artifacts(tmp_path):
    dice, left_drafts = random.Random(1), 0
    for attempt in range(40):
        process, n_files = publisher(tmp_path, attempt * 1000), dice.randrange(21)
        assert [process.stdout.readline() for _ in range(2)][1], "one is published"
        while process.poll() is None and len(list(tmp_path.glob(".draft-*/*"))) < n_files:
            time.sleep(0.0001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        left_drafts += bool(list(tmp_path.glob(".draft-*")))
        for folder in tmp_path.glob("trunk-*"):
            load_artifact(folder)
        if left_drafts == 4:
            break
    assert left_drafts == 4, "too few kills fell into a draft: the test tested nothing"
    with draft(tmp_path, "next"):
        assert len(list(tmp_path.glob(".draft-*"))) == 1, "drafts of the dead are cleaned up"


def test_the_draft_of_a_living_process_stays(tmp_path):
    with draft(tmp_path, "one") as one:
        code = f"from forgelib.core.artifacts import draft\nwith draft({str(tmp_path)!r}, 'two'): pass"
        subprocess.run([sys.executable, "-c", code], check=True)
        assert one.path.is_dir()


def test_two_processes_publish_the_same_key_and_get_the_same_artifact(tmp_path):
    processes = [publisher(tmp_path, 0) for _ in range(2)]
    lines = [[process.stdout.readline() for _ in range(11)] for process in processes]
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()
    assert lines[0][1:] == lines[1][1:] and len(set(lines[0])) == 11


def test_the_code_digest_follows_floors_0_to_3_only(tmp_path, monkeypatch):
    package = tmp_path / "forgelib"
    shutil.copytree(Path(artifacts.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(artifacts, "__file__", str(package / "core/artifacts.py"))
    before = code_digest()
    (package / "workbook/plots.py").write_text("# another colour")
    (package / "cli.py").write_text("# another word")
    assert code_digest() == before
    with (package / "core/rng.py").open("a") as file:
        file.write("# changed")
    assert code_digest() != before


def test_the_foundation_imports_without_torch():
    code = (
        "import sys, time; start = time.process_time()\n"
        "import forgelib.core.paths; took = time.process_time() - start\n"
        "from forgelib.core import artifacts, gates, registry, sizing, tracking\n"
        "heavy = {'torch', 'transformers', 'datasets', 'wandb', 'accelerate', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert took < 0.5, took"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_code_of_a_step_is_what_it_imports(tmp_path, monkeypatch):
    package = tmp_path / "forgelib"
    files = {
        "__init__.py": "",
        "core/__init__.py": "",
        "core/artifacts.py": "",
        "core/rng.py": "from . import seeds\nSOURCE = 'fast.cpp'",
        "core/fast.cpp": "",
        "core/fast_parts.h": "",
        "core/rng_shared.h": "",
        "core/other.cpp": "",
        "core/other_parts.h": "",
        "core/seeds.py": "",
        "phases/__init__.py": "",
        "phases/early.py": "import forgelib.core.rng",
        "phases/late.py": "def f():\n    from forgelib.phases import early",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(exist_ok=True, parents=True)
        (package / name).write_text(text)
    monkeypatch.setattr(artifacts, "__file__", str(package / "core" / "artifacts.py"))
    named = {name.relative_to(package).as_posix() for name in artifacts.sources_of("forgelib.phases.early")}
    assert named == {
        "__init__.py",
        "core/__init__.py",
        "core/fast.cpp",
        "core/fast_parts.h",
        "core/rng.py",
        "core/rng_shared.h",
        "core/seeds.py",
        "phases/__init__.py",
        "phases/early.py",
    }
    early, late = code_digest("forgelib.phases.early"), code_digest("forgelib.phases.late")
    (package / "phases" / "late.py").write_text("from forgelib.phases import early")
    assert code_digest("forgelib.phases.early") == early and code_digest("forgelib.phases.late") != late
    for name in ("seeds.py", "fast_parts.h", "rng_shared.h"):
        early = code_digest("forgelib.phases.early")
        (package / "core" / name).write_text("START = 1;")
        assert code_digest("forgelib.phases.early") != early
