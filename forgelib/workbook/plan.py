"""The order of the notebooks, what each one rests on, and the key that says whether a finished one still holds.

A later phase appends its steps to PLAN; nothing else changes.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from forgelib.core.artifacts import imports_of, sources_of
from forgelib.core.paths import datasets_mirror, repo_root
from forgelib.workbook.dashboard_knobs import PAGE_MODELS
from forgelib.workbook.params import MODELS, ParameterError, Parameters, resolve

PHASES = {1: "Cognate", 2: "EvoMerge", 3: "Quiet-STaR", 4: "BitNet"}
#: Modules and rooms that only show or order results: a change in them makes no finished notebook stale.
BYSTANDERS = ("cli.py", "server/", "workbook/console.py", "workbook/report.py", "workbook/runner.py")
LIBRARIES = ("torch", "transformers", "numpy", "tokenizers", "datasets", "reasoning-gym", "matplotlib")


@dataclass(frozen=True)
class Step:
    """One notebook with the parameters that tell it from its siblings; `needs` are names of earlier steps."""

    notebook: str
    params: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """11_cognate_train-memory."""
        return "-".join([self.notebook, *map(str, self.params.values())])

    @property
    def phase(self) -> int:
        """First digit of the notebook's number; 00_environment opens Phase 1."""
        return max(1, int(self.notebook[0]))

    @property
    def path(self) -> Path:
        return notebook_path(self.notebook)


SPECIALISTS = ("reasoning", "memory", "speed")
PLAN: tuple[Step, ...] = (
    Step("00_environment"),
    Step("10_cognate_data"),
    *(Step("11_cognate_train", {"specialist": name}, needs=("10_cognate_data",)) for name in SPECIALISTS),
    Step("12_cognate_diversity", needs=tuple(f"11_cognate_train-{name}" for name in SPECIALISTS)),
    Step("20_evomerge_methods", needs=("12_cognate_diversity",)),
    Step("21_evomerge_evolve", needs=("12_cognate_diversity",)),
    Step("30_quietstar_bake", needs=("21_evomerge_evolve",)),
    Step("31_quietstar_rl", needs=("30_quietstar_bake",)),
    Step("32_quietstar_antitheater", needs=("31_quietstar_rl",)),
    Step("33_quietstar_abtest", needs=("31_quietstar_rl", "32_quietstar_antitheater")),
    Step("40_bitnet_quantize", needs=("31_quietstar_rl", "32_quietstar_antitheater")),
    Step("41_bitnet_finetune", needs=("40_bitnet_quantize",)),
    Step("42_bitnet_benchmark", needs=("41_bitnet_finetune",)),
)
#: Notebooks that show what lies there now. That rests on the disk, not on a key, so they are never reused; they have no
#: part in a report, and run only when they are named.
PAGES: tuple[Step, ...] = (Step("90_dashboard"),)


def notebook_path(name: str) -> Path:
    """Where a notebook of the workbook lies."""
    return repo_root() / "notebooks" / f"{name}.ipynb"


def available(plan: tuple[Step, ...] = PLAN) -> tuple[Step, ...]:
    """The steps whose notebook is there: a checkout may stop at an earlier phase."""
    return tuple(step for step in plan if step.path.is_file())


def select(only: str, plan: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps whose name begins with `only` ("" takes all). Raises ParameterError listing the names there are."""
    chosen = tuple(step for step in plan if step.name.startswith(only))
    if not chosen:
        raise ParameterError(f"--only {only}: no such step. There are: {', '.join(step.name for step in plan)}")
    return chosen


def parameters(step: Step, asked: Mapping[str, Any]) -> Parameters:
    """The step's full parameters; `asked` (profile, seed, data, wandb_mode) outranks the profile's file."""
    given = asked_of(step, asked)
    return resolve(model_of(step), {**given, "In": [_as_injected(given)]})


def asked_of(step: Step, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked of one step: its own parameters too, and no wandb_mode where the notebook mirrors nothing."""
    takes = model_of(step).model_fields
    return {name: value for name, value in {**asked, **step.params}.items() if name != "wandb_mode" or name in takes}


def model_of(step: Step) -> type[Parameters]:
    """The parameters that a step's notebook takes."""
    return {**MODELS, **PAGE_MODELS}[step.notebook]


def step_keys(plan: tuple[Step, ...], asked: Mapping[str, Any]) -> dict[str, str]:
    """Step name -> sha256 of everything its result rests on: notebook, parameters, code, libraries, rows, upstream.

    Where records are mirrored changes no result."""
    versions, mirror = library_versions(), _mirror_identity()
    keys: dict[str, str] = {}
    for step in plan:
        params = parameters(step, asked)
        facts = {
            "notebook": notebook_digest(step.notebook, prose=True),
            "params": params.model_dump(exclude={"wandb_mode"}),
            "code": _code_digest(step.notebook),
            "versions": versions,
            "rows": [] if params.data == "procedural" else mirror,
            "upstream": [keys.get(name) for name in step.needs],
        }
        keys[step.name] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return keys


def notebook_digest(name: str, prose: bool = False) -> str:
    """sha256 of a notebook's code cells; with `prose` of its text as well. Outputs and counts do not matter."""
    cells = json.loads(notebook_path(name).read_text())["cells"]
    kept = [(c["cell_type"], "".join(c["source"])) for c in cells if prose or c["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()


def _as_injected(values: Mapping[str, Any]) -> str:
    return "\n".join(["# Parameters", *(f"{name} = {value!r}" for name, value in values.items())])


def _code_digest(notebook: str) -> str:
    """sha256 of the modules that a notebook imports, and of those that these import, bystanders left out."""
    package, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sources_of(*_imported_modules(notebook)):
        name = path.relative_to(package).as_posix()
        if not name.startswith(BYSTANDERS):
            digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _imported_modules(notebook: str) -> Iterator[str]:
    for cell in json.loads(notebook_path(notebook).read_text())["cells"]:
        if cell["cell_type"] == "code":
            yield from (".".join(parts) for parts in imports_of("".join(cell["source"])))


def library_versions() -> dict[str, str]:
    """Python and the libraries that a result rests on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}}


def _mirror_identity() -> list[Any]:
    return [os.environ.get("HF_HUB_OFFLINE", ""), *_files(datasets_mirror())]


def _files(mirror: Path | None) -> Iterator[list[Any]]:
    """Name, bytes and time of each file of the mirror: cheap, and any replaced file shows."""
    for path in sorted(mirror.rglob("*.jsonl.gz")) if mirror else ():
        stat = path.stat()
        yield [path.relative_to(mirror).as_posix(), stat.st_size, stat.st_mtime_ns]
