"""The kernel is compiled once and kept; where it cannot be, torch multiplies the same numbers and says so."""

import ctypes
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

from forgelib.core import cpp
from forgelib.quant import TernaryLinear, kernel_in_use, native

SOURCE = native.HERE / "ternary_kernel.cpp"

compiled = pytest.mark.skipif(native.kernel() is None, reason=f"no kernel here: {native.why_not()}")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """An empty cache, and a process that has not loaded the kernel yet."""
    monkeypatch.setattr(cpp, "cache_dir", lambda: tmp_path)
    native.load.cache_clear()
    yield tmp_path / "kernels"
    native.load.cache_clear()


def result(x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    return TernaryLinear.from_linear(nn.Linear(40, 70)).pack()(x)


def test_without_a_compiler_torch_multiplies_the_same_numbers(fresh, monkeypatch):
    x = torch.randn(3, 40)
    native.load.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(cpp.shutil, "which", lambda name: None)
        without = result(x)
        assert "torch._int_mm" in kernel_in_use() and "no C++ compiler found" in kernel_in_use()
    native.load.cache_clear()
    monkeypatch.undo()
    assert torch.equal(without, result(x))


@pytest.mark.parametrize(
    "script, told",
    [
        ("echo 'fatal error: no disk' >&2; exit 1", "no disk"),
        ('printf "made for another processor" > "$3"', "made a library that cannot be opened here"),
    ],
)
def test_a_compiler_that_fails_is_no_error_and_is_named(fresh, monkeypatch, tmp_path, script, told):
    broken = tmp_path / "c++"
    broken.write_text(f"#!/bin/sh\n{script}\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert native.kernel() is None
    assert "torch._int_mm" in kernel_in_use() and told in kernel_in_use()
    assert not list(fresh.iterdir()), "nothing half-made stays"


@compiled
def test_without_python_headers_the_kernel_is_called_through_ctypes(monkeypatch):
    x = torch.randn(3, 40)
    quick = result(x)
    native.load.cache_clear()
    try:
        monkeypatch.setattr(cpp.sysconfig, "get_path", lambda name: "/nowhere")
        assert native.kernel().binding is None and "Python.h" in kernel_in_use()
        assert torch.equal(result(x), quick)
    finally:
        native.load.cache_clear()


@compiled
def test_a_damaged_library_is_built_anew_and_a_whole_one_is_kept(fresh, monkeypatch):
    path = cpp.built(SOURCE)
    assert path.parent == fresh
    before = path.stat().st_mtime_ns
    assert cpp.built(SOURCE) == path and path.stat().st_mtime_ns == before
    elsewhere = fresh.parent / "elsewhere"
    (elsewhere / "kernels").mkdir(parents=True)
    monkeypatch.setattr(cpp, "cache_dir", lambda: elsewhere)
    whole = path.read_bytes()
    for damaged in (b"no library", whole[:5000], whole[:8192] + bytes(4096) + whole[12288:]):
        (elsewhere / "kernels" / path.name).unlink(missing_ok=True)  # the one before is open in this process
        (elsewhere / "kernels" / path.name).write_bytes(damaged)
        assert cpp.built(SOURCE).read_bytes() == whole, "opened as it is, the second ends the process"
        assert len(list((elsewhere / "kernels").iterdir())) == 1


@compiled
def test_a_change_of_a_part_or_of_a_shared_header_is_compiled_anew(tmp_path, monkeypatch):
    own, shared = tmp_path / "own", tmp_path / "shared"
    own.mkdir(), shared.mkdir()
    headers = '#include "sum_part.h"\n#include "cpp_all.h"\n'
    (own / "sum.cpp").write_text(headers + 'extern "C" int sum() { return PART + ALL; }')
    (own / "sum_part.h").write_text("#define PART 1\n")
    (shared / "cpp_all.h").write_text("#define ALL 10\n")
    monkeypatch.setattr(cpp, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(cpp, "SHARED", shared)
    assert ctypes.CDLL(str(cpp.built(own / "sum.cpp"))).sum() == 11
    (own / "sum_part.h").write_text("#define PART 2\n")
    assert ctypes.CDLL(str(cpp.built(own / "sum.cpp"))).sum() == 12
    (shared / "cpp_all.h").write_text("#define ALL 20\n")
    assert ctypes.CDLL(str(cpp.built(own / "sum.cpp"))).sum() == 22


@compiled
def test_two_processes_may_build_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from forgelib.core import cpp; from forgelib.quant import native\n"
        "cpp.cache_dir = lambda: Path(sys.argv[1])\n"
        "cpp._flags_for_torch = lambda: (_ for _ in ()).throw(cpp.CannotBuild('not asked here'))\n"
        "assert native.kernel() is not None, native.why_not()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(__file__).resolve().parents[2]
    running = [subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        assert process.wait(timeout=120) == 0, process.stderr.read()
    assert len(list((tmp_path / "kernels").iterdir())) == 1


@compiled
def test_an_output_that_no_memory_holds_is_an_error_of_python():
    """2^24 tokens of 2^22 outputs: 256 TiB, more than a process can address. The process lives on."""
    code = (
        "import torch; from forgelib.quant import Operand, Operands, multiply, multiply_all\n"
        "operand = Operand(torch.full((2**16, 1, 64), 85, dtype=torch.uint8), torch.ones(2**22), None, 2**22, 1)\n"
        "for call in (lambda x: multiply(operand, x), lambda x: multiply_all(Operands([operand] * 2), x)):\n"
        "    try: call(torch.zeros(2**24, 1))\n"
        "    except RuntimeError as error: print('no memory' if 'allocate' in str(error) else error)\n"
        "    print('alive', len(call(torch.zeros(2, 1))))\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "no memory\nalive 2\n" * 2


def test_the_sources_are_in_the_installed_package():
    root = Path(__file__).resolve().parents[2]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["forgelib"]
    sources = [*(root / "forgelib").rglob("*.cpp"), *(root / "forgelib").rglob("*.h")]
    assert len({source.parent for source in sources}) == 3
    for source in sources:
        assert any(source.relative_to(root / "forgelib").match(pattern) for pattern in data), source


def test_the_machines_compiler_is_found_or_its_absence_is_said():
    if any(shutil.which(name) for name in cpp.COMPILERS):
        assert native.kernel() is not None, native.why_not()
    else:
        assert "install" in kernel_in_use()
