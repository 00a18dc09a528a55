"""The C++ beside this file: compiled on first use with the system's compiler, kept by the hash of source and flags.

ternary_kernel.cpp needs a C++17 compiler, ternary_binding.cpp Python's headers besides (torch brings its own). Without
the binding the kernel is called through ctypes; without a compiler there is no kernel, and torch multiplies int8.
Nothing is raised: `kernel()` is None then, and `why_not()` says why. decoder.cpp is compiled when a model is first
decoded with it, for one path of the kernel.
"""

import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

import torch

from forgelib.core.paths import cache_dir

HERE = Path(__file__).parent
TORCH = Path(torch.__file__).parent
#: Without the last three the paths would round differently, or rounding would not be vectorised.
FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-w", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
COMPILERS = ("c++", "g++", "clang++")
#: What the kernel can run on, in the order of its table.
PATHS = {"portable": "portable C++", "avx2": "AVX2", "vnni": "AVX-512 VNNI"}
#: What the compiler may use on each path, where a whole file is compiled for it.
PATH_FLAGS = {
    "portable": (),
    "avx2": ("-mavx2", "-mf16c"),
    "vnni": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mf16c", "-mprefer-vector-width=512"),
}
#: Below so many multiply-adds a second thread costs more than it brings.
WORTH_THREADS = 2**19
SECONDS = 300


class LayerStruct(ctypes.Structure):
    """`Layer` of the C++ files: addresses and sizes. Who makes one keeps its tensors alive."""

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("outputs", ctypes.c_size_t),
        ("inputs", ctypes.c_size_t),
    )


@dataclass(frozen=True)
class Kernel:
    """The compiled functions.

    linears(layers, n_layers, x, tokens, ys, threads, path): addresses and numbers, through ctypes.
    paths: names of PATHS that this processor can run, the best last. threads: whether it can use torch's threads.
    binding: the module of ternary_binding.cpp, or None, and then why_no_binding says why.
    """

    linears: object
    paths: tuple[str, ...]
    threads: bool
    binding: ModuleType | None
    why_no_binding: str


class CannotBuild(RuntimeError):
    """A source could not be compiled or opened; the text says why."""


def kernel() -> Kernel | None:
    """The compiled kernel, or None where there is none."""
    return load()[0]


def why_not() -> str:
    """Why `kernel()` is None, in words; empty where it is not."""
    return load()[1]


@cache
def load() -> tuple[Kernel | None, str]:
    """The kernel, built now or before, or None and the reason."""
    try:
        library = ctypes.CDLL(str(built("ternary_kernel")))
    except CannotBuild as error:
        return None, str(error)
    address, size = ctypes.c_void_p, ctypes.c_size_t
    library.ternary_linears.argtypes = [address, size, address, size, address, size, ctypes.c_int]
    library.ternary_linears.restype = None
    paths = tuple(PATHS)[: library.ternary_paths()]
    binding, reason = None, ""
    try:
        binding = _import(built("ternary_binding", headers=True))
        binding.use(ctypes.cast(library.ternary_linears, address).value, len(paths) - 1, WORTH_THREADS)
    except (CannotBuild, ImportError) as error:
        binding, reason = None, str(error)
    return Kernel(library.ternary_linears, paths, bool(library.ternary_threads()), binding, reason), ""


@cache
def decoder(path: str) -> object:
    """decoder_step(model, position, token, threads, logits) of decoder.cpp for a path of the kernel, through ctypes.

    Raises CannotBuild, which says why.
    """
    step = ctypes.CDLL(str(built("decoder", flags=PATH_FLAGS[path]))).decoder_step
    address, size = ctypes.c_void_p, ctypes.c_size_t
    step.argtypes, step.restype = [address, size, size, size, address], size
    return step


def find_compiler() -> str:
    """$CXX, else the first of COMPILERS on the path. Raises CannotBuild where there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS
    for name in names:
        if found := shutil.which(name):
            return found
    raise CannotBuild(f"no C++ compiler found ({', '.join(names)}): install g++ or clang for the fast kernel")


def built(name: str, headers: bool = False, flags: Sequence[str] = ()) -> Path:
    """The library compiled from <name>.cpp and its parts <name>_*.h, from the cache or into it; with `headers` against
    Python and torch.

    Two processes may build at once: each into its own folder, and the rename is atomic. Raises CannotBuild.
    """
    source = HERE / f"{name}.cpp"
    flags = [*FLAGS, *flags, *(_flags_for_torch() if headers else ())]
    sources = [part.read_bytes() for part in (source, *sorted(HERE.glob(f"{name}_*.h")))]
    system = (platform.system(), platform.machine(), *((torch.__version__,) if headers else ()))
    key = hashlib.sha256(b"|".join([*sources, *(part.encode() for part in (*flags, *system))]))
    target = _folder() / f"{name}-{key.hexdigest()[:20]}.so"
    if not _opens(target):
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            fresh = Path(folder) / target.name
            _compile([find_compiler(), str(source), "-o", str(fresh), *flags, "-ldl"])
            os.replace(fresh, target)
    return target


def _flags_for_torch() -> list[str]:
    python = sysconfig.get_path("include")
    if not Path(python, "Python.h").is_file():
        raise CannotBuild(f"{python} has no Python.h: install Python's development package")
    return [
        *(f"-I{TORCH / 'include'}", f"-I{python}", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"),
        *(f"-L{TORCH / 'lib'}", "-ltorch_python", "-ltorch_cpu", "-lc10"),
    ]


def _compile(command: Sequence[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.CalledProcessError as error:
        said = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr[:200])
        raise CannotBuild(f"{command[0]} could not compile {Path(command[1]).name}: {said}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotBuild(f"{command[0]} could not be run: {error}") from None


def _folder() -> Path:
    """data/cache/kernels of the checkout; a fresh private folder where there is none or it cannot be written."""
    try:
        folder = cache_dir() / "kernels"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="forge-kernel-"))


def _opens(path: Path) -> bool:
    """Whether a whole library lies there: a damaged one is built anew."""
    try:
        return path.is_file() and bool(ctypes.CDLL(str(path)))
    except OSError:
        return False


def _import(path: Path) -> ModuleType:
    loader = ExtensionFileLoader("ternary_binding", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("ternary_binding", loader))
    loader.exec_module(module)
    return module
