"""The ledger: what it was told is on disk, and what was damaged since is not believed."""

import json
import os
import random

import pytest

from forgelib.phases.ledger import Ledger

RESULTS = {f"key-{i}": {"fitness": 1 + i / 8, "seconds": 0.5, "replaced": "", "genome": {"t": i / 3}} for i in range(4)}


def filled(path) -> Ledger:
    ledger = Ledger(path)
    for key, result in RESULTS.items():
        ledger.write(key, result)
    return ledger


def content(ledger: Ledger) -> dict:
    return {key: ledger[key] for key in ledger}


def test_what_was_written_is_read_back_in_its_order(tmp_path):
    ledger = filled(tmp_path / "l.jsonl")
    again = Ledger(tmp_path / "l.jsonl")
    assert content(again) == content(ledger) == RESULTS and list(again) == list(RESULTS)
    assert len(again) == 4 and "key-2" in again and "key-9" not in again
    assert again.seconds() == 2.0


def test_a_result_is_in_the_file_when_write_returns(tmp_path):
    ledger = Ledger(tmp_path / "l.jsonl")
    for n, (key, result) in enumerate(RESULTS.items(), start=1):
        ledger.write(key, result)
        assert len(Ledger(tmp_path / "l.jsonl")) == n


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert content(filled(None)) == RESULTS and not list(tmp_path.iterdir())


def test_an_intact_file_is_only_read(tmp_path):
    path = tmp_path / "l.jsonl"
    filled(path)
    before = path.stat()
    path.chmod(0o400)
    tmp_path.chmod(0o500)  # as in a published artifact
    try:
        assert len(Ledger(path)) == 4
    finally:
        tmp_path.chmod(0o700)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_cut_at_any_byte_the_whole_lines_are_believed_and_the_rest_can_be_written_anew(tmp_path):
    path = tmp_path / "l.jsonl"
    filled(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        ledger = Ledger(path)
        assert content(ledger) == dict(list(RESULTS.items())[: len(ledger)])
        assert len(ledger) >= whole[:length].count(b"\n")
        for key, result in RESULTS.items():
            if key not in ledger:
                ledger.write(key, result)
        assert path.read_bytes() == whole, "a torn line must not swallow the next one"


def test_a_flipped_byte_costs_one_line_and_never_changes_a_result(tmp_path):
    path = tmp_path / "l.jsonl"
    filled(path)
    whole = path.read_bytes()
    dice = random.Random(0)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(bytes(damaged))
        found = content(Ledger(path))
        assert found.items() <= RESULTS.items() and len(found) >= 2, f"byte {place}"
        assert len(found) == (2 if whole[place : place + 1] == b"\n" and place < len(whole) - 1 else len(found))


def test_a_line_without_its_hash_is_not_believed(tmp_path):
    path = tmp_path / "l.jsonl"
    filled(path)
    with path.open("a") as lines:
        lines.write(json.dumps(["forged", {"fitness": 99.0, "seconds": 0}]) + "\n")
    assert content(Ledger(path)) == RESULTS


def test_the_first_of_two_results_counts(tmp_path):
    path = tmp_path / "l.jsonl"
    filled(path)
    other = Ledger(tmp_path / "other.jsonl")
    other.write("key-1", {**RESULTS["key-1"], "fitness": 7.0})
    path.write_bytes(path.read_bytes() + other.path.read_bytes())
    assert Ledger(path)["key-1"] == RESULTS["key-1"]


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        Ledger(tmp_path / "l.jsonl").write("key", {"fitness": float("nan"), "seconds": 0.0})
    assert not os.path.exists(tmp_path / "l.jsonl") or not (tmp_path / "l.jsonl").read_text()
