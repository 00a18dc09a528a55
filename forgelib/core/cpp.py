"""C++ sources of the package: compiled on first use with the system compiler, kept by the hash of source and flags."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from forgelib.core.artifacts import fsync
from forgelib.core.paths import cache_dir

TORCH = Path(torch.__file__).parent
#: Where the headers lie that any source may include.
SHARED = Path(__file__).parent
#: Without the last three rounding would differ from one instruction set to the other, or would not be vectorised.
FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-w", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
COMPILERS = ("c++", "g++", "clang++")
SECONDS = 300


class CannotBuild(RuntimeError):
    """A source could not be compiled or opened; the text says why."""


def find_compiler() -> str:
    """$CXX, else the first of COMPILERS on the path. Raises CannotBuild where there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS
    for name in names:
        if found := shutil.which(name):
            return found
    raise CannotBuild(f"no C++ compiler found ({', '.join(names)}): install g++ or clang for the fast kernel")


def built(source: Path, headers: bool = False, flags: Sequence[str] = ()) -> Path:
    """The library compiled from <name>.cpp with its parts <name>_*.h and the shared headers, from the cache or into it.

    With `headers` it is compiled against Python and torch. Two processes may build at once: each into its own folder,
    and the rename is atomic. The name ends with a hash of the library itself. Raises CannotBuild.
    """
    flags = [*FLAGS, *flags, *(_flags_for_torch() if headers else ())]
    parts = sorted(source.parent.glob(f"{source.stem}_*.h")) + sorted(SHARED.glob("cpp_*.h"))
    sources = [part.read_bytes() for part in (source, *parts)]
    system = (platform.system(), platform.machine(), *((torch.__version__,) if headers else ()))
    key = hashlib.sha256(b"|".join([*sources, *(part.encode() for part in (*flags, *system))]))
    name, folder = f"{source.stem}-{key.hexdigest()[:20]}", _folder()
    for path in sorted(folder.glob(f"{name}-*.so")):
        if _whole(path):
            return path
        path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        fresh = Path(own) / f"{name}.so"
        _compile([find_compiler(), str(source), "-o", str(fresh), f"-I{SHARED}", *flags, "-ldl"])
        _try(fresh)
        target = folder / f"{name}-{_content(fresh)}.so"
        fsync(fresh)
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


def _content(path: Path) -> str:
    """The hash that a library's name ends with."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def _whole(path: Path) -> bool:
    """Whether a library is what was built: one that a full disk or a power cut damaged is built anew.

    Its name tells; opening one that is cut short can end the process with a bus error.
    """
    try:
        return path.stem.endswith(_content(path)) and bool(ctypes.CDLL(str(path)))
    except OSError:
        return False


def _try(path: Path) -> None:
    """Raises CannotBuild where a fresh library cannot be opened here: made for another processor, say."""
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        raise CannotBuild(f"{find_compiler()} made a library that cannot be opened here: {error}") from None
