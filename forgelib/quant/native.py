"""The C++ beside this file, as functions of Python; `core.cpp` compiles it on first use.

ternary_kernel.cpp needs a C++17 compiler, ternary_binding.cpp Python's headers besides (torch brings its own). Without
the binding the kernel is called through ctypes; without a compiler there is no kernel, and torch multiplies int8.
Nothing is raised: `kernel()` is None then, and `why_not()` says why. decoder.cpp is compiled when a model is first
decoded with it, for one path of the kernel.
"""

import ctypes
import importlib.util
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

from forgelib.core.cpp import CannotBuild, built

HERE = Path(__file__).parent
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
        library = ctypes.CDLL(str(built(HERE / "ternary_kernel.cpp")))
    except CannotBuild as error:
        return None, str(error)
    address, size = ctypes.c_void_p, ctypes.c_size_t
    library.ternary_linears.argtypes = [address, size, address, size, address, size, ctypes.c_int]
    library.ternary_linears.restype = None
    paths = tuple(PATHS)[: library.ternary_paths()]
    binding, reason = None, ""
    try:
        binding = _import(built(HERE / "ternary_binding.cpp", headers=True))
        binding.use(ctypes.cast(library.ternary_linears, address).value, len(paths) - 1, WORTH_THREADS)
    except (CannotBuild, ImportError) as error:
        binding, reason = None, str(error)
    return Kernel(library.ternary_linears, paths, bool(library.ternary_threads()), binding, reason), ""


@cache
def decoder(path: str) -> object:
    """decoder_step(model, position, token, threads, logits) of decoder.cpp for a path of the kernel, through ctypes.

    Raises CannotBuild, which says why.
    """
    step = ctypes.CDLL(str(built(HERE / "decoder.cpp", flags=PATH_FLAGS[path]))).decoder_step
    address, size = ctypes.c_void_p, ctypes.c_size_t
    step.argtypes, step.restype = [address, size, size, size, address], size
    return step


def _import(path: Path) -> ModuleType:
    loader = ExtensionFileLoader("ternary_binding", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("ternary_binding", loader))
    loader.exec_module(module)
    return module
