"""Executed notebook cells as plain, self-contained HTML: MathML for LaTeX, inline SVG, code folded away, no script."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import mistune
from latex2mathml.converter import convert
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from forgelib.workbook import tables
from forgelib.workbook.publish import MIME

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
#: Elements that act or fetch; the page's security policy blocks them as well.
ACTIVE = re.compile(r"<(script|iframe|object)\b.*?</\1\s*>|<(script|iframe|link|embed|base|meta)\b[^>]*>", re.S | re.I)
NOTEBOOK = re.compile(r"(\d\d_\w+)\.ipynb")
SVG_ID = re.compile(r'\bid="([^"]+)"')
SVG_REFERENCE = re.compile(r'(url\(#|xlink:href="#|href="#)')
#: What the converter passes through where it does not understand: unknown commands, stray braces, stray columns.
LEFT_OVER = re.compile(r">[^<]*(\\|[{}]|&(?![#\w]+;))[^<]*<")
#: Characters of a code cell's first line that its fold shows.
LABEL = 80
#: Characters from which on a text that is the same in all rows of a table is said once, below it.
SAID_ONCE = 24
CODE_FORMAT = HtmlFormatter(nowrap=True, style="friendly")


class MathError(ValueError):
    """A formula that has no MathML; the text holds the formula."""


class Renderer(mistune.HTMLRenderer):
    """Markdown to HTML with formulas as MathML."""

    def inline_math(self, text: str) -> str:
        return mathml(text, "inline")

    def link(self, text: str, url: str, title: str | None = None) -> str:
        """A link to another notebook leads to its chapter."""
        chapter = NOTEBOOK.fullmatch(url)
        return super().link(text, f"phase{max(1, int(url[0]))}.html#{chapter[1]}" if chapter else url, title)

    def table(self, text: str) -> str:
        """A table scrolls in its own box where the page is narrow."""
        return f'<div class="scroll"><table>{text}</table></div>\n'

    def block_math(self, text: str) -> str:
        return f'<div class="formula">{mathml(text, "block")}</div>'


_markdown = mistune.create_markdown(renderer=Renderer(escape=True), plugins=["table", "math", "strikethrough"])


def markdown(source: str) -> str:
    """HTML of a markdown cell."""
    return _markdown(source)


def mathml(latex: str, display: str) -> str:
    """MathML of one formula; `display` is "inline" or "block"."""
    refused = MathError(f"this formula has no MathML, write it more simply: {latex.strip()}")
    try:
        made = convert(latex.strip(), display=display)
    except Exception as error:
        raise refused from error
    if LEFT_OVER.search(made):
        raise refused
    return made


def code_css() -> str:
    """Colours of the code, without the highlighter's own background."""
    rules = CODE_FORMAT.get_style_defs("details.code").splitlines()
    return "\n".join(rule for rule in rules if not rule.startswith("details.code {"))


def code(source: str) -> str:
    """A code cell, folded; its first comment or line is the fold's label."""
    first = source.strip().splitlines()[0].lstrip("# ")
    label = "code · " + (first if len(first) <= LABEL else first[: LABEL - 1].rstrip() + "…")
    body = highlight(source, PythonLexer(), CODE_FORMAT)
    return f"<details class='code'><summary>{html.escape(label)}</summary><pre><code>{body}</code></pre></details>"


def cells(notebook: Mapping[str, Any], anchor: str) -> str:
    """All cells of an executed notebook; `anchor` keeps the ids of its figures apart from other notebooks'."""
    parts = []
    for place, cell in enumerate(notebook["cells"], start=1):
        tags = cell.get("metadata", {}).get("tags", [])
        if "papermill-error-cell-tag" in tags or not cell["source"].strip():
            continue
        if cell["cell_type"] == "markdown":
            parts.append(markdown(cell["source"]))
        elif cell["cell_type"] == "code":
            shown = [output(out, f"{anchor}-{place}-{n}") for n, out in enumerate(cell.get("outputs", []))]
            parts.append(code(cell["source"]) + "".join(shown))
    return "\n".join(parts)


def output(out: Mapping[str, Any], anchor: str) -> str:
    """One output of a code cell. A live widget is left out: its static twin stands beside it."""
    if out["output_type"] == "stream":
        return _text(out["text"])
    if out["output_type"] == "error":
        return f'<div class="error">{_text(out["ename"] + ": " + out["evalue"])}</div>'
    data = out["data"]
    fact = data.get(MIME, {})
    if "application/vnd.jupyter.widget-view+json" in data:
        return ""
    if fact.get("kind") in SHOWN:
        return SHOWN[fact["kind"]](fact)
    if "image/svg+xml" in data:
        return f"<figure>{svg(data['image/svg+xml'], anchor)}</figure>"
    if "image/png" in data:
        return f'<figure><img alt="" src="data:image/png;base64,{_png(data["image/png"])}"></figure>'
    if "text/html" in data:
        return _caption(fact) + _scrolled(ACTIVE.sub("", data["text/html"]))
    if "text/markdown" in data:
        return markdown(data["text/markdown"])
    return _text(data.get("text/plain", ""))


def _caption(fact: Mapping[str, Any]) -> str:
    """What a published table is of, above it: the name that the notebook published it under."""
    told = "rows" in fact or "pairs" in fact
    return f'<p class="caption">{html.escape(fact["kind"])}</p>' if told else ""


def _scrolled(table: str) -> str:
    return f'<div class="scroll">{table}</div>'


def _sources(fact: Mapping[str, Any]) -> str:
    return _caption(fact) + sources(fact["rows"], fact.get("columns"))


def sources(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Where rows came from, as a table; a long text that is the same in every row is said once, below it."""
    columns = columns or (list(rows[0]) if rows else [])
    same = {name: rows[0][name] for name in columns if len(rows) > 1 and len({str(row[name]) for row in rows}) == 1}
    told = {name: text for name, text in same.items() if isinstance(text, str) and len(text) > SAID_ONCE}
    table = tables.table(rows, [name for name in columns if name not in told])
    notes = "".join(f'<p class="meta">{html.escape(f"{name}, all rows: {text}")}</p>' for name, text in told.items())
    return f'<div class="scroll wide">{table}</div>{notes}'


def _provenance(fact: Mapping[str, Any]) -> str:
    table = tables.pairs(fact.get("pairs", ()))
    return f"<details class='fold'><summary>parameters and provenance</summary>{_scrolled(table)}</details>"


#: Facts that a report shows in its own way; an artifact's folder on this machine is nobody's business.
SHOWN = {
    "gate": tables.gate,
    "progress": lambda fact: f'<p class="progress">{html.escape(fact["line"])}</p>',
    "provenance": _provenance,
    "sources": _sources,
    "artifact": lambda fact: _scrolled(tables.pairs([("artifact", fact["name"]), ("sha256", fact["digest"])])),
}


def svg(source: str, anchor: str) -> str:
    """An SVG for use inside a page: no prolog, and ids of its own, since a page has one space of ids."""
    source = source[source.index("<svg") :]
    source = SVG_ID.sub(lambda match: f'id="{anchor}-{match[1]}"', source)
    return SVG_REFERENCE.sub(lambda match: f"{match[1]}{anchor}-", source)


def _png(data: str) -> str:
    return base64.b64encode(base64.b64decode(data)).decode()


def _text(text: str) -> str:
    lines = [line.rsplit("\r", 1)[-1] for line in ANSI.sub("", text).rstrip().split("\n")]
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>" if any(lines) else ""
