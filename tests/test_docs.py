"""Pages that speak of the code are held to it: what they name is there, and what they quote is still said."""

import ast
import functools
import re
from pathlib import Path

import pytest
import typer

from forgelib.cli import app
from forgelib.workbook.plan import PLAN

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "DECISIONS.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(?:#[^)]*)?\)")
#: What a reader may look up by its name: paper, and the rows that have to be there.
IDEAS = ["Titans, memory as gate", "TRM", "ACT", "Muon", "Grokfast", "QK-Clip", "Model soups (linear)", "SLERP", "DARE"]
IDEAS += ["TIES", "FrankenMerge", "DFS", "CMA-ES", "Quiet-STaR", "REINFORCE leave-one-out", "Prompt baking", "McNemar"]
IDEAS += ["Bootstrap", "BitNet b1.58", "STE", "Distillation"]

each = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)


def definitions(path: Path) -> set[str]:
    """Names of the functions and classes of a Python file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


def rows(page: str) -> list[list[str]]:
    """The cells of every table row of a page of docs/, without heads and rules."""
    lines = [line for line in (ROOT / "docs" / page).read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if row[0] not in ("paper", "message")]


@each
def test_every_link_inside_the_checkout_leads_somewhere(page):
    for label, target in LINK.findall(page.read_text()):
        assert re.match(r"https?://", target) or (page.parent / target).exists(), f"{label} -> {target}"


@each
def test_every_file_named_in_a_page_is_there(page):
    """Paths in code spans; what is written by a run, or stands for a name, begins or holds something else."""
    named = re.findall(r"`((?:forgelib|tests|notebooks|params|docs|bench)/[\w./-]+)`", page.read_text())
    missing = [path for path in named if not (ROOT / path).exists() and "/NN_" not in path]
    assert page.name == "DECISIONS.md" or not missing, f"{page.name} names {missing}"


def test_every_row_of_the_paper_index_has_its_function_and_its_test():
    index = rows("papers.md")
    assert len(index) >= 40
    for paper, equation, computed_by, held_by in index:
        for label, target in (LINK.findall(computed_by)[0], LINK.findall(held_by)[0]):
            file, name = (ROOT / "docs" / target).resolve(), label.strip("`")
            assert name in definitions(file), f"{paper}: {target} defines no {name}"
        assert equation and "](../forgelib/" in computed_by and "](../tests/" in held_by


@pytest.mark.parametrize("idea", IDEAS)
def test_every_idea_of_the_workbook_is_in_the_paper_index(idea):
    assert any(idea in row[0] for row in rows("papers.md"))


@functools.cache
def said() -> list[str]:
    """Every text in the code but docstrings, with … for each value in it; the Makefile as it stands."""
    texts = [" ".join((ROOT / "Makefile").read_text().split())]
    for path in (ROOT / "forgelib").rglob("*.py"):
        tree = ast.parse(path.read_text())
        documented = [n for n in ast.walk(tree) if hasattr(n, "body") and isinstance(n.body, list)]
        skipped = {id(n.body[0].value) for n in documented if n.body and isinstance(n.body[0], ast.Expr)}
        texts += [text for node in ast.walk(tree) if id(node) not in skipped and (text := text_of(node))]
    return texts


def text_of(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    return ""


def quoted(cell: str) -> list[str]:
    """The messages in the first cell of a row; one that holds a code span itself stands in double backticks."""
    return [double or single for double, single in re.findall(r"`` (.+?) ``|`([^`]+)`", cell)]


def test_every_message_of_the_troubleshooting_page_is_still_said():
    texts = said()
    messages = [message for row in rows("troubleshooting.md") for message in quoted(row[0])]
    assert len(messages) >= 50 and all(len(row) == 3 and all(row) for row in rows("troubleshooting.md"))
    gone = [message for message in messages if not any(message in text for text in texts)]
    assert not gone, f"the code no longer says: {gone}"


def test_a_message_that_nobody_says_would_be_seen():
    assert not any("the training needs about … MB" in text for text in said())


def code_in(page: str) -> str:
    """What a page shows as code: its fenced blocks, then its code spans, a line each."""
    fence = re.compile(r"^```.*?\n(.*?)^```", re.S | re.M)
    return "\n".join([*fence.findall(page), *re.findall(r"`([^`\n]+)`", fence.sub("", page))])


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/troubleshooting.md"])
def test_every_command_in_a_page_exists_with_its_options(page):
    """`forge <command> --option` as documented is a command with that option; `make <target>` is a target."""
    code, commands = code_in((ROOT / page).read_text()), typer.main.get_command(app).commands
    for name, line in re.findall(r"\bforge ([a-z][\w-]+)(.*)", code):
        assert name in commands, f"{page}: there is no command forge {name}"
        known = {option for parameter in commands[name].params for option in parameter.opts}
        given = set(re.findall(r"(?<!\S)(--[\w-]+)", line.partition("#")[0]))
        assert given <= known, f"{page}: forge {name} has no {sorted(given - known)}"
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?<![\w/])make ([a-z]+)", code)) <= targets


def test_the_first_screen_of_the_readme_leads_to_a_report():
    """A newcomer who reads 25 lines has the command, what it needs, how long it takes, and which file to open."""
    first = (ROOT / "README.md").read_text().splitlines()[:25]
    commands = [line for line in first if re.match(r"(make|git|cd|\.venv|python|pip|forge)\b", line)]
    assert commands[0].startswith("make run") and len(commands) <= 3
    text = " ".join(first)
    for word in ("reports/index.html", "python3", "GB of memory", "hour", "minutes"):
        assert word in text, word


def test_the_readme_lists_every_notebook_and_every_page():
    text = (ROOT / "README.md").read_text()
    assert {step.notebook for step in PLAN} <= set(re.findall(r"`(\d\d_\w+)`", text))
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in text, f"{page.name} is linked from nowhere"
