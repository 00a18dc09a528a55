"""A report of a notebook that was really executed, in Chromium: on a phone, on paper, and without a network."""

import json
import re
import zlib
from pathlib import Path

import nbformat
import pytest

from forgelib.workbook.publish import MIME
from forgelib.workbook.report import Chapter, write_phase
from forgelib.workbook.runner import run_plan

pytestmark = pytest.mark.slow
PHONE = {"width": 390, "height": 844}
#: A4 between the margins of report.css, in CSS pixels.
PAPER = {"width": int((210 - 28) / 25.4 * 96), "height": 1000}
HASH = "0123456789abcdef" * 4
CHECK = {"name": "halting", "measured": 0.41, "threshold": 0.3, "op": ">", "passed": True, "verdict": "passed"}
#: Everything that is wider than a phone: rows of many columns, hashes, formulas, code, output, pictures.
PROSE = "# Wide\n\n" + "| a | b |\n|---|---|\n| " + "word " * 20 + " | `" + HASH + "` |\n\n$$" + "x + " * 16 + "y$$\n"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="800" height="80"><rect width="800" height="80" id="r"/></svg>'


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> Path:
    """The reports of a run of 00_environment at smoke, and a phase of everything that is wide."""
    folder = tmp_path_factory.mktemp("reports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORGE_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        run_plan({"profile": "smoke"}, only="00", reports=folder)
    (folder / "wide").mkdir()
    write_phase(1, [wide_chapter(folder / "wide" / "12.ipynb")], "smoke", folder / "wide")
    return folder


def wide_chapter(path: Path) -> Chapter:
    rows = [{f"column {n}": f"value {n} of a row" for n in range(12)} for _ in range(40)]
    gate = {"kind": "gate", "name": "Diversity", "passed": True, "advice": "", "rows": [{**CHECK, "note": "n " * 40}]}
    grid = {
        "verdict " + name: "passed" for name in ("uncertainty", "self_correction", "orthogonal_wisdom", *"abcdefghi")
    }
    table = "<table><thead><tr>{}</tr></thead><tbody><tr>{}</tr></tbody></table>"
    cells = ("".join(f"<th>{name}</th>" for name in grid), '<td class="passed">passed</td>' * len(grid))
    facts = [
        gate,
        {"kind": "sources", "rows": [{**row, "source": "mirror"} for row in rows]},
        {"kind": "provenance", "notebook": "x", "pairs": [["seed", 0], ["digest", HASH * 3]]},
        {"kind": "artifact", "name": "cognate-memory", "path": "/a/b", "digest": HASH},
    ]
    shown = [{MIME: fact, "text/html": "<p>twin</p>", "text/plain": "twin"} for fact in facts]
    shown += [{"text/html": table.format(*cells)}, {"text/plain": "x" * 400}, {"image/svg+xml": SVG}]
    outputs = [nbformat.v4.new_output("display_data", data) for data in shown]
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_markdown_cell(PROSE), nbformat.v4.new_code_cell("# c\n" + "y" * 300, outputs=outputs)]
    nbformat.write(book, path)
    return Chapter("12_cognate_diversity", path, {"status": "finished", "seconds": 3.0, "sha256": HASH})


PAGES = ("phase1.html", "phase3.html", "index.html", "wide/phase1.html")
each = pytest.mark.parametrize("name", PAGES)


@pytest.fixture
def opened(browser, reports):
    """opened(name, viewport): the page in a browser without network, and the list of what it asked for."""
    contexts = []

    def open_page(name: str, viewport: dict = PHONE, **options):
        contexts.append(browser.new_context(viewport=viewport, offline=True, **options))
        page = contexts[-1].new_page()
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto((reports / name).as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


def width(page) -> int:
    return page.evaluate("document.scrollingElement.scrollWidth")


@each
def test_on_a_phone_nothing_is_wider_than_the_screen(opened, name):
    page = opened(name, is_mobile=True, device_scale_factor=2)
    assert width(page) <= page.evaluate("window.innerWidth") == PHONE["width"]
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true })")
    assert width(page) <= PHONE["width"], "with every fold open, too"


def test_without_boxes_that_scroll_the_wide_page_would_be_seen(opened):
    page = opened("wide/phase1.html")
    page.add_style_tag(content=".scroll, .gate, pre, .formula, figure { overflow: visible !important }")
    assert width(page) > PHONE["width"]


@each
def test_a_report_asks_for_nothing_but_itself(opened, reports, name):
    page = opened(name)
    page.evaluate("document.querySelectorAll('details').forEach(fold => { fold.open = true })")
    assert page.asked == [(reports / name).as_uri()]


def test_code_is_behind_a_fold_and_verdicts_are_not(opened):
    page = opened("phase1.html", {"width": 1000, "height": 900})
    assert page.locator("details.code").count() >= 8
    assert not page.locator("details.code pre").first.is_visible()
    page.locator("details.code summary").first.click()
    assert page.locator("details.code pre").first.is_visible()
    assert page.locator(".gate").first.is_visible() and page.get_by_text("1 of 1 gates passed").is_visible()
    assert page.locator("figure svg").count() >= 1 and page.locator("img").count() == 0


@each
def test_on_paper_folds_are_open_code_is_not_there_and_nothing_is_cut_off(opened, name):
    page = opened(name, PAPER)
    page.emulate_media(media="print")
    assert width(page) <= PAPER["width"]
    beyond = "[...document.querySelectorAll('table, figure, pre, .gate')].filter(e => e.checkVisibility()"
    assert page.evaluate(f"{beyond} && e.getBoundingClientRect().right > {PAPER['width'] + 1}).length") == 0
    hidden = "[...document.querySelectorAll('details:not(.code) > :not(summary)')].filter(e => !e.checkVisibility()"
    assert page.evaluate(f"{hidden} && e.textContent.trim() && !e.closest('details.code')).length") == 0
    assert page.locator("details.code").first.is_visible() is False


def test_printed_it_is_a_pdf_with_its_verdicts(opened):
    page = opened("phase1.html")
    pdf = page.pdf(prefer_css_page_size=True, tagged=True, outline=True)
    assert pdf.startswith(b"%PDF") and 3 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 40
    text = text_of(pdf)
    said = (
        "Verdicts",
        "gates passed",
        "Environment",
        "torch 2, minor version",
        "Provenance",
        "Libraries",
        "safetensors",
    )
    for words in said:
        assert words.replace(" ", "") in text.replace(" ", ""), words


def text_of(pdf: bytes) -> str:
    """What a PDF of Chromium says: its glyphs through the fonts' tables of letters, font by font."""
    objects = {int(n): body for n, body in re.findall(rb"(\d+) 0 obj\b(.*?)\bendobj", pdf, re.S)}
    letters = {n: table_of(objects, body) for n, body in objects.items() if b"/ToUnicode" in body}
    fonts = {
        name: letters.get(int(number))
        for body in objects.values()
        for name, number in re.findall(rb"/(F\d+) (\d+) 0 R", body)
    }
    said = []
    for content in (stream_of(body) for body in objects.values() if b"stream" in body):
        font = None
        for name, shown in re.findall(rb"/(F\d+) [\d.]+ Tf|<([0-9A-Fa-f]+)> Tj", content):
            font = fonts.get(name) if name else font
            codes = [int(shown[i : i + 4], 16) for i in range(0, len(shown), 4)] if shown and font else []
            said += [font.get(code, "") for code in codes]
    return "".join(said)


def table_of(objects: dict[int, bytes], font: bytes) -> dict[int, str]:
    """Glyph -> letter of a font."""
    table = stream_of(objects[int(re.search(rb"/ToUnicode (\d+) 0 R", font)[1])])
    found: dict[int, str] = {}
    for block in re.findall(rb"beginbfchar(.*?)endbfchar", table, re.S):
        found |= {int(a, 16): chr(int(b[:4], 16)) for a, b in re.findall(rb"<(\w+)> <(\w+)>", block)}
    for block in re.findall(rb"beginbfrange(.*?)endbfrange", table, re.S):
        for low, high, letter in re.findall(rb"<(\w+)> <(\w+)> <(\w+)>", block):
            start = int(low, 16)
            found |= {start + n: chr(int(letter[:4], 16) + n) for n in range(int(high, 16) - start + 1)}
    return found


def stream_of(body: bytes) -> bytes:
    content = body.partition(b"stream")[2].lstrip(b"\r\n").rpartition(b"endstream")[0]
    try:
        return zlib.decompress(content) if b"/FlateDecode" in body else content
    except zlib.error:
        return b""


def test_the_index_leads_to_every_report(opened, reports):
    page = opened("index.html")
    links = page.eval_on_selector_all("a[href]", "found => found.map(a => a.getAttribute('href'))")
    assert {f"phase{number}.html" for number in (1, 2, 3, 4)} <= set(links)
    assert all((reports / link).is_file() for link in links)
    assert json.loads(page.evaluate("JSON.stringify(document.title)")) == "Agent Forge"
