"""A notebook fetches nothing from elsewhere, and whatever it shows as a widget it shows once more without one."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOURCES = sorted((ROOT / "forgelib").rglob("*.py"))
#: Panels of the dashboard: `Board._show` publishes the twin of each (tests/workbook/test_dashboard_panels.py).
PANELS = {"dashboard.py", "dashboard_panels.py", "dashboard_theater.py"}
#: What makes a browser fetch: a script, a frame, a sheet, a picture, a module of a content delivery network.
FETCHES = re.compile(
    r"<script|<iframe|<link|<img|<object|<embed|@import|require\.config|jsdelivr|unpkg|cdnjs|[\w.]cdn\.|//cdn", re.I
)


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text())["cells"]


def without_twin(source: str) -> list[str]:
    """Functions that import ipywidgets and publish no twin; the module itself where it imports them at its top."""
    found = []
    for scope in ast.walk(ast.parse(source)):
        if not isinstance(scope, ast.FunctionDef | ast.Module):
            continue
        own = scope.body if isinstance(scope, ast.Module) else [node for one in scope.body for node in ast.walk(one)]
        imports = [alias.name for node in own if isinstance(node, ast.Import) for alias in node.names]
        imports += [node.module for node in own if isinstance(node, ast.ImportFrom)]
        calls = [ast.unparse(node) for node in ast.walk(scope) if isinstance(node, ast.Call)]
        if "ipywidgets" in imports and not any(call.startswith("publish('twin'") for call in calls):
            found.append(getattr(scope, "name", "the module"))
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_fetches_anything_or_makes_a_widget_by_itself(path):
    for cell in cells(path):
        source = "".join(cell["source"])
        assert not FETCHES.search(source + json.dumps(cell.get("outputs", []))), source[:80]
        assert "ipywidgets" not in source, "widgets are made where their twin is published: in forgelib.workbook"


def test_no_source_names_a_content_delivery_network():
    for path in SOURCES:
        found = re.search(r"jsdelivr|unpkg|cdnjs|//cdn|require\.config", path.read_text())
        assert not found, f"{path.name}: {found}"


def test_who_makes_a_widget_publishes_its_twin():
    made = [path for path in SOURCES if "import ipywidgets" in path.read_text()]
    assert len(made) >= 6 and {path.name for path in made} > PANELS
    missing = {path.name: without_twin(path.read_text()) for path in made if path.name not in PANELS}
    assert not any(missing.values()), missing


def test_these_searches_can_find_something():
    assert without_twin("def show():\n    import ipywidgets\n    ipywidgets.HTML()") == ["show"]
    assert without_twin("import ipywidgets as widgets\nwidgets.HTML()") == ["the module"]
    assert without_twin("def show():\n    import ipywidgets\n    publish('twin', {})") == []
    for planted in ('<script src="x">', "https://cdn.jsdelivr.net/x.js", '<img src="x.png">', "@import url(x)"):
        assert FETCHES.search(planted)
