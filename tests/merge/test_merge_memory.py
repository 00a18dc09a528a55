"""Peak memory of a merge from files, as the kernel counts it, and what is read when."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_weights import weights

from forgelib.merge import RECIPES, MergeRefused, dare, dfs, frankenmerge, linear, read_lazily, recipe, slerp, ties

#: 10M float32 numbers, half of them in one tensor: as in a small model with a large vocabulary.
BIG = {"model.embed_tokens.weight": (10_000, 512), **{f"model.layers.{i}.w": (480, 512) for i in range(20)}}

#: Each merge in a process of its own: memory that the allocator keeps from another merge would count as its.
MEASURE = """
import os, sys, torch
from forgelib.merge import RECIPES, dare, dfs, frankenmerge, linear, read_lazily, recipe, slerp, ties
torch.set_num_threads(1)
*m, base = map(read_lazily, sys.argv[1:])
merges = {
    "linear": lambda: linear(m), "slerp": lambda: slerp(m[0], m[1], 0.5), "dare": lambda: dare(m, base, 0.9, 0),
    "ties": lambda: ties(m, base, 0.2), "frankenmerge": lambda: frankenmerge(m, "ABC"), "dfs": lambda: dfs(m),
    **{bits: lambda bits=bits: recipe(bits).merge(m, base) for bits in RECIPES},
}
def kilobytes(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field))
linear([{"w": torch.ones(9)}] * 2)
for name, merge in merges.items():
    if os.fork() == 0:
        open("/proc/self/clear_refs", "w").write("5")
        before = kilobytes("VmRSS")
        child = merge()
        print(name, (kilobytes("VmHWM") - before) * 1024, flush=True)
        os._exit(0)
    os.wait()
"""


def resettable() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


@pytest.mark.skipif(not resettable(), reason="the kernel's high-water mark cannot be reset here")
def test_three_parents_are_merged_in_less_memory_than_four_models(tmp_path):
    """Parents, trunk and child together: read a tensor at a time, the child is the only whole model in memory."""
    g = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=g) for name, shape in BIG.items()}
    for i in range(4):
        save_file({name: t + 0.1 * i * t.roll(i, 0) for name, t in base.items()}, tmp_path / f"{i}.safetensors")
    size = sum(t.nbytes for t in base.values())
    del base
    files = [str(tmp_path / f"{i}.safetensors") for i in (1, 2, 3, 0)]
    done = subprocess.run([sys.executable, "-c", MEASURE, *files], capture_output=True, text=True, check=True)
    peaks = {name: int(peak) for name, peak in map(str.split, done.stdout.splitlines())}
    assert len(peaks) == 6 + 8
    for name, peak in peaks.items():
        assert size < peak < 4 * size, f"{name}: {peak / size:.2f} models"


class Counted(Mapping):
    """Weights that count how often each tensor is read, and give a new one each time."""

    def __init__(self, inner):
        self.inner, self.reads = inner, Counter()

    def __getitem__(self, name):
        self.reads[name] += 1
        return self.inner[name].clone()

    def __iter__(self):
        return iter(self.inner)

    def __len__(self):
        return len(self.inner)


@pytest.mark.parametrize(
    "merge, parent_reads, trunk_reads",
    [
        (lambda m, base: linear(m), 1, 0),
        (lambda m, base: dare(m, base, 0.9, 0), 1, 1),
        (lambda m, base: recipe("101").merge(m, base), 1, 1),
        (lambda m, base: ties(m, base, 0.2), 2, 1 + 3 + 1),
    ],
    ids=["linear", "dare", "recipe", "ties"],
)
def test_each_tensor_is_read_once_and_by_ties_again_for_sizes_and_thresholds(merge, parent_reads, trunk_reads):
    models = [Counted(weights(seed)) for seed in range(4)]
    lazy, whole = merge(models[:3], models[3]), merge([m.inner for m in models[:3]], models[3].inner)
    assert all(torch.equal(lazy[name], whole[name]) for name in whole)
    for model, reads in zip(models, (*[parent_reads] * 3, trunk_reads), strict=True):
        assert sum(model.reads.values()) == len(model) * reads


def test_files_shards_and_folders_read_as_the_weights_that_were_saved(tmp_path):
    whole = {**weights(1), "steps": torch.arange(3), "half": torch.ones(2, 3, dtype=torch.bfloat16)}
    save_file(whole, tmp_path / "model.safetensors")
    names = list(whole)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, part in parts.items():
        save_file({name: whole[name] for name in part}, sharded / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in (tmp_path, str(tmp_path / "model.safetensors"), sharded):
        lazy = read_lazily(path)
        assert set(lazy) == set(whole) and len(lazy) == len(whole) and "no such tensor" not in lazy
        assert all(torch.equal(lazy[name], whole[name]) and lazy[name].dtype == whole[name].dtype for name in whole)
        assert lazy.header("half") == ((2, 3), "BF16")


def test_weights_tied_in_memory_and_not_in_a_file_are_refused():
    tied, filed = weights(1), weights(2)
    tied["lm_head.weight"] = tied["model.embed_tokens.weight"]
    filed["lm_head.weight"] = filed["model.embed_tokens.weight"].clone()
    child = linear([Counted(filed), tied])
    assert child["lm_head.weight"] is child["model.embed_tokens.weight"]
    filed["lm_head.weight"][0] += 1
    with pytest.raises(MergeRefused, match=r"lm_head\.weight.*tied in one model"):
        linear([Counted(filed), tied])


def test_a_child_from_files_outlives_them(tmp_path):
    """Tensors read from a file may be views of it; a child's are its own."""
    for i in range(4):
        save_file(weights(i), tmp_path / f"{i}.safetensors")
    *models, base = (read_lazily(tmp_path / f"{i}.safetensors") for i in range(4))
    merges = [lambda: linear(models[:1]), lambda: slerp(models[0], models[1], 0.5), lambda: frankenmerge(models, "AB")]
    merges += [lambda: dfs(models), *(lambda bits=bits: recipe(bits).merge(models, base) for bits in RECIPES)]
    children = [merge() for merge in merges]
    before = [{name: t.clone() for name, t in child.items()} for child in children]
    for i in range(4):
        with open(tmp_path / f"{i}.safetensors", "r+b") as file:
            file.seek(4000)
            file.write(b"\xff" * 200)
    for old, new in zip(before, children, strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_damaged_and_missing_files_are_refused_by_name(tmp_path):
    with pytest.raises(MergeRefused, match=r"holds no model\.safetensors"):
        read_lazily(tmp_path)
    save_file(weights(1), tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    for broken in (content[:-50], content[:100], b"", b"no tensors here" * 100):
        (tmp_path / "model.safetensors").write_bytes(broken)
        with pytest.raises(MergeRefused, match=r"model\.safetensors is damaged or cut short"):
            read_lazily(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "gone.safetensors"}}')
    with pytest.raises(MergeRefused, match=r"gone\.safetensors is missing"):
        read_lazily(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(MergeRefused, match="is no index of shards"):
        read_lazily(tmp_path)
