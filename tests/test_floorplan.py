"""The house keeps its floors: who may import whom, and how big a room's pieces may grow (DESIGN, section 2)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "forgelib"
FLOORS = {
    "core": 0,
    "optim": 1,
    "data": 1,
    "models": 2,
    "thoughts": 2,
    "merge": 2,
    "quant": 2,
    "evaluate": 2,
    "phases": 3,
    "workbook": 4,
    "cli": 4,
    "server": 4,
}
#: Phase 2 is several ideas that rest on each other: genome and ledger, the workshop on them, who measures a population,
#: the race, the two searches, the controls.
EVOMERGE = {"workshop", "population", "ray_population", "racing", "surrogate", "evomerge", "cmaes", "controls"}
#: Inside a room only these files (and `__init__`) import their siblings. In core, `loop` joins what continues a run
#: (random numbers, state), `run` what a run is (artifacts, registry, tracking, loop), and `cpp` keeps what it builds
#: where paths says. In optim the orthogonal factor rests on the Gram matrix, Muon's passes on filter and tiles.
#: In thoughts, `sampling` and `reading` join the two ways of going through a text, and `quietstar` joins these two with
#: the mixing head. In quant each rests on the one before: the product, the layer, the model, its folder, the folders of
#: other engines, its decoder.
JOINING = {
    "core": {"run", "loop", "cpp"},
    "optim": {"mugrokfast", "newton_schulz", "muon_pass"},
    "data": {"prepare", "traces"},
    "models": {"cognate"},
    "thoughts": {"sampling", "reading", "injection", "quietstar"},
    "merge": {"recipe", "check"},
    "quant": {"product", "linear", "convert", "folder", "export_bitnet", "export_gguf", "decoder"},
    "evaluate": {"fitness", "prompt_effect", "reasoning", "text_thinker"},
    "phases": {"cognate", "policy_step", "reinforce", "finetune", *EVOMERGE},
    "workbook": {"runner"},
}
FILE_LINES, FUNCTION_LINES = 400, 60
FILES = sorted(p for p in PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_modules(tree: ast.AST, path: Path) -> list[tuple[str, ...]]:
    """Every forgelib module that the file imports, as parts below `forgelib`, relative imports resolved."""
    package = ("forgelib", *path.relative_to(PACKAGE).parts[:-1])
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = base + tuple((node.module or "").split(".") if node.module else ())
            found += [(*module, alias.name) for alias in node.names]
    return [parts[1:] for parts in found if parts[0] == "forgelib" and len(parts) > 1]


def violations(tree: ast.AST, path: Path) -> list[str]:
    room, name, wrong = room_of(path), path.stem, []
    if path == PACKAGE / "__init__.py":
        return []
    for parts in imported_modules(tree, path):
        target = parts[0]
        if target not in FLOORS:
            wrong.append(f"{path.name} imports forgelib.{target}, which is no room of the house")
        elif target != room and FLOORS[target] >= FLOORS[room] and FLOORS[room] < 4:
            wrong.append(f"{room}/{path.name} (floor {FLOORS[room]}) imports {target} (floor {FLOORS[target]})")
        sibling = target == room and len(parts) > 1 and (PACKAGE / room / f"{parts[1]}.py").exists()
        if sibling and FLOORS[room] < 4 and name not in {"__init__", *JOINING.get(room, set())}:
            wrong.append(f"{room}/{path.name} imports its sibling {parts[1]}; only {JOINING.get(room)} joins")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_respect_the_floors(path):
    assert violations(ast.parse(path.read_text()), path) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    source = path.read_text()
    assert len(source.splitlines()) <= FILE_LINES, f"{path} holds more than one idea"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = (node.end_lineno - body[0].lineno + 1) if body else 0
            assert lines <= FUNCTION_LINES, f"{path}:{node.lineno} {node.name} has {lines} lines"


def test_every_room_has_a_floor():
    for path in FILES:
        if path.parent != PACKAGE or path.stem != "__init__":
            assert room_of(path) in FLOORS, f"{path} stands outside the house"


@pytest.mark.parametrize(
    "where, source",
    [
        ("core/paths.py", "import forgelib.models"),
        ("core/paths.py", "from forgelib.core.artifacts import load_artifact"),
        ("core/paths.py", "from .artifacts import load_artifact"),
        ("optim/grokfast.py", "from forgelib.data import catalogue"),
        ("models/memory.py", "from forgelib.evaluate import suite"),
        ("models/memory.py", "def f():\n    from ..phases import cognate"),
    ],
)
def test_the_check_itself_can_fail(where, source):
    assert violations(ast.parse(source), PACKAGE / where)


def test_forgelib_neither_prints_nor_draws():
    """Floors 0-3 return values; only the workbook and the command line speak to people."""
    for path in FILES:
        if FLOORS.get(room_of(path), 0) >= 4:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not called, f"{path}:{node.lineno} prints"
        assert "matplotlib" not in path.read_text(), f"{path} draws"
