"""Where things lie. Every path starts at the repository root, found by its pyproject.toml, so that a notebook run
by hand, by papermill, by nbval or by `forge run` finds the same files.
"""

import os
import tomllib
from pathlib import Path

PROFILES = ("smoke", "laptop", "gpu6gb", "full")


def repo_root() -> Path:
    """The folder whose pyproject.toml names forgelib, upward from the working directory, else from this file.

    Raises FileNotFoundError where there is none: then forgelib was installed without its notebooks.
    """
    for start in (Path.cwd(), Path(__file__).resolve()):
        for folder in (start, *start.parents):
            if _names_forgelib(folder / "pyproject.toml"):
                return folder
    raise FileNotFoundError(
        "the workbook's folder was not found: start from inside the checkout that holds notebooks/ and pyproject.toml"
    )


def _names_forgelib(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project")
    except (tomllib.TOMLDecodeError, OSError, UnicodeDecodeError):
        return False
    return isinstance(project, dict) and project.get("name") == "forgelib"


def runs_dir() -> Path:
    """Runs and artifacts: $FORGE_RUNS, else data/runs of the repository."""
    return _named("FORGE_RUNS") or repo_root() / "data" / "runs"


def cache_dir() -> Path:
    """data/cache of the repository: what can be made again at any time, such as compiled kernels."""
    return repo_root() / "data" / "cache"


def datasets_mirror() -> Path | None:
    """The folder of local rows, $FORGE_DATASETS, or None."""
    return _named("FORGE_DATASETS")


def pin_folders() -> None:
    """Make the folders that the environment names absolute, as they are seen from here: a kernel starts in notebooks/,
    where "../datasets" would be another folder."""
    for name in ("FORGE_RUNS", "FORGE_DATASETS"):
        if (folder := _named(name)) is not None:
            os.environ[name] = str(folder)


def _named(variable: str) -> Path | None:
    """The folder that a variable of the environment names, absolute; None where it is empty or not set."""
    chosen = os.environ.get(variable)
    return Path(chosen).expanduser().resolve() if chosen else None


def default_profile() -> str:
    """$FORGE_PROFILE, else laptop. Not checked here: who uses it says what is allowed."""
    return os.environ.get("FORGE_PROFILE") or "laptop"


def params_dir() -> Path:
    """params/ of the repository."""
    return repo_root() / "params"


def reports_dir() -> Path:
    """reports/ of the repository."""
    return repo_root() / "reports"
