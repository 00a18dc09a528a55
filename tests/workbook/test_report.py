"""A report is one file that asks nothing of the network, with verdicts on top and the chapters below."""

import http.server
import json
import re
import subprocess
import threading

import nbformat
import pytest

from forgelib.workbook import render
from forgelib.workbook.plots import bars
from forgelib.workbook.publish import MIME
from forgelib.workbook.render import MathError, mathml
from forgelib.workbook.report import Chapter, write_index, write_phase
from forgelib.workbook.tables import number, table

CHECK = {"name": "halting", "measured": 0.41, "threshold": 0.3, "op": ">", "passed": True, "verdict": "passed"}
RED = {**CHECK, "name": "latency", "measured": 0.12, "passed": False, "verdict": "failed", "control": {"same mix": 0.1}}
UNSEEN = {**CHECK, "name": "memory", "measured": None, "passed": False, "verdict": "not run"}
SOURCE_COLUMNS = ["dataset", "rows", "source"]
CHAPTERS = '<h2 class="chapters">'
WIDGET = "application/vnd.jupyter.widget-view+json"


def fact(kind: str, **payload) -> dict:
    return {MIME: {"kind": kind, **payload}, "text/plain": "plain twin"}


def shown(data: dict) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("display_data", data)


@pytest.fixture
def chapter(tmp_path):
    """chapter(*outputs, prose=, name=): a Chapter whose one code cell has these outputs."""

    def make(*outputs: dict, prose: str = "# A title", name: str = "12_cognate_diversity", status: str = "finished"):
        book = nbformat.v4.new_notebook()
        code = nbformat.v4.new_code_cell("# measure\nx = 1", outputs=[shown(data) for data in outputs])
        book.cells = [nbformat.v4.new_markdown_cell(prose), code]
        path = tmp_path / f"{name}.ipynb"
        nbformat.write(book, path)
        return Chapter(name, path, {"status": status, "seconds": 65.0, "finished_at": "2026-01-01 10:00:00"})

    return make


def page_of(tmp_path, *chapters) -> str:
    return write_phase(1, list(chapters), "smoke-seed0-procedural", tmp_path).read_text()


def test_gates_stand_on_top_with_measured_needed_control_and_verdict(chapter, tmp_path):
    gate = fact("gate", name="Diversity", passed=False, advice="Train longer.", rows=[CHECK, RED, UNSEEN])
    page = page_of(tmp_path, chapter(gate))
    assert "0 of 1 gates passed" in page
    assert page.index('class="gate failed"') < page.index(CHAPTERS)
    for word in ("halting", "0.41", "&gt; 0.3", "same mix 0.1", "Train longer.", 'class="failed">failed', "not run"):
        assert word in page, word


def test_tables_of_data_artifacts_and_provenance(chapter, tmp_path):
    page = page_of(
        tmp_path,
        chapter(
            fact("sources", rows=[{"rows": 7473, "source": "mirror", "dataset": "gsm8k"}], columns=SOURCE_COLUMNS),
            fact("artifact", name="cognate-memory", path="/somewhere/cognate-memory-1a", digest="abcdef" * 10),
            fact("provenance", notebook="x", pairs=[["code digest", "c0de"], ["data", "1a2b"], ["data", "auto"]]),
        ),
    )
    top = page[: page.index(CHAPTERS)]
    for word in ("gsm8k", "7,473", "mirror", "cognate-memory", "abcdefabcdefabcd", "1a2b", "auto", "c0de"):
        assert word in top, word
    assert "/somewhere" not in page, "a report names no folder of this machine"
    heads = re.findall(r"<th[^>]*>([^<]+)", page[page.index("<h2>Data") : page.index("<h2>Artifacts")])
    assert heads == ["dataset", "rows", "source"], "a stored notebook sorts names; the table keeps the given order"


def test_provenance_names_seed_code_commit_and_hashes_of_every_step(chapter, tmp_path):
    asked = fact(
        "provenance", notebook="x", pairs=[["profile", "smoke"], ["seed", 7], ["data", "1a2b"], ["data", "real"]]
    )
    new, old = chapter(asked, name="12_cognate_diversity"), chapter(asked, name="10_cognate_data")
    noted = {"code": "c0dec0dec0dec0de", "commit": "abc123def456+", "sha256": "5ha" * 20}
    new.record = {**new.record, **noted, "libraries": {"torch": "2.9", "python": "3.11"}}
    page = page_of(tmp_path, old, new)
    part = page[page.index("<h2>Provenance") : page.index(CHAPTERS)]
    row = part[part.index("<td>12_cognate_diversity") :].split("</tr>")[0]
    for word in ("smoke", ">7<", "real", "c0dec0dec0dec0de", "abc123def456+", ("5ha" * 20)[:16]):
        assert word in row, word
    assert "Libraries: torch 2.9, python 3.11" in part and "not recorded" in part


def test_the_code_of_an_older_record_is_that_of_its_artifact(chapter, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "manifest.json").write_text(json.dumps({"code": "feedface" * 8}))
    made = chapter(fact("artifact", name="a", path=str(tmp_path / "made"), digest="d" * 64))
    assert "<td>feedfacefeedface</td>" in page_of(tmp_path, made)


def test_an_artifact_is_listed_once_and_a_note_of_all_rows_is_said_once(chapter, tmp_path):
    trunk = fact("artifact", name="cognate-trunk", path="/x/trunk-1", digest="d" * 64)
    note = "the hub is not reachable, its cache is read"
    rows = [{"dataset": name, "source": "cache", "note": note} for name in ("gsm8k", "svamp")]
    sources = fact("sources", rows=rows, columns=["dataset", "source", "note"])
    steps = [chapter(trunk, sources, name=f"11_cognate_train-{name}") for name in ("memory", "speed")]
    page = page_of(tmp_path, *steps)
    top = page[: page.index(CHAPTERS)]
    assert top.count("trunk-1") == 1 and top.count(note) == 2, "once a table"
    assert "note, all rows" in top and top.count("<td>cache</td>") == 4, "a short word stays in its column"


def test_a_report_holds_no_address_to_fetch_from(chapter, tmp_path):
    hostile = '<script src="https://cdn.example/x.js"></script><link href="https://cdn.example/x.css"><b>kept</b>'
    figure = bars({"a": {"x": 1.0}})._repr_svg_()
    page = page_of(tmp_path, chapter({"text/html": hostile}, {"image/svg+xml": figure}, prose="$x^2$ and\n\n$$y$$"))
    assert "<b>kept</b>" in page and "<script" not in page and "<link" not in page
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?(?!#|data:|index\.html)[^"')\s>]+""", page)
    assert addresses == []
    assert "Content-Security-Policy\" content=\"default-src 'none'" in page


def test_widgets_are_left_to_their_static_twin(chapter, tmp_path):
    widget = {WIDGET: {"model_id": "x"}, "text/plain": "VBox(children=...)"}
    page = page_of(
        tmp_path, chapter(widget, {**fact("twin", of="slider"), "text/html": "<table><td>twin</td></table>"})
    )
    assert "VBox" not in page and "<td>twin</td>" in page


def test_a_failed_step_shows_its_error_and_an_absent_one_says_not_run(chapter, tmp_path):
    failed = chapter(name="11_cognate_train-memory", status="failed")
    failed.record = {**failed.record, "error": "NonFiniteError: step 7, layer memory.2 <nan>"}
    absent = Chapter("12_cognate_diversity", tmp_path / "absent.ipynb", {})
    page = page_of(tmp_path, failed, absent)
    assert "11_cognate_train-memory stopped: NonFiniteError: step 7, layer memory.2 &lt;nan&gt;" in page
    assert '<span class="badge not run">not run</span>' in page


def test_a_notebook_run_three_times_is_open_once(chapter, tmp_path):
    names = [f"11_cognate_train-{name}" for name in ("reasoning", "memory", "speed")]
    page = page_of(tmp_path, *(chapter(name=name) for name in names))
    assert page.count('<details class="chapter"') == 3
    assert len(re.findall(r'<details class="chapter" id="[^"]+" open>', page)) == 1


def test_a_phase_without_data_of_its_own_says_where_the_rows_are_listed(chapter, tmp_path):
    (tmp_path / "two").mkdir()
    later = write_phase(2, [chapter()], "laptop-seed0-auto", tmp_path / "two").read_text()
    assert "The rows are those that the reports of the phases before list." in later
    assert "phases before list" not in page_of(tmp_path, chapter())


def test_a_table_in_prose_scrolls_in_its_own_box():
    page = render.markdown("| a | b |\n|---|---|\n| 1 | 2 |\n")
    assert page.startswith('<div class="scroll"><table>') and "<td>2</td>" in page


def test_the_index_lists_every_step_and_links_its_phase(chapter, tmp_path):
    green = fact("gate", name="Diversity", passed=True, advice="", rows=[CHECK])
    red = fact("gate", name="Latency", passed=False, advice="", rows=[CHECK, RED])
    rows = fact("sources", columns=["source"], rows=[{"source": "mirror"}, {"source": "hub"}, {"source": "mirror"}])
    page = write_index({1: [chapter(green, red, rows)]}, "laptop-seed0-auto", tmp_path).read_text()
    assert "Datasets: 2 mirror, 1 hub" in page and "three specialists" in page
    for word in ('href="phase1.html"', "12_cognate_diversity", "1:05", "2026-01-01", "Diversity", "Latency"):
        assert word in page, word
    assert "1 of 2 gates passed" in page and "latency: 0.12, needed &gt; 0.3" in page and "halting: 0.41" not in page


def test_all_gates_passed_is_green_only_where_no_step_is_missing(chapter, tmp_path):
    green = fact("gate", name="Diversity", passed=True, advice="", rows=[CHECK])
    badge = re.compile(r'<span class="badge ([\w ]+)">(1 of 1 gates passed[^<]*)<')
    whole = [chapter(green), chapter(name="20_evomerge_methods", status="out of date")]
    assert badge.search(page_of(tmp_path, *whole)).groups() == ("passed", "1 of 1 gates passed")
    absent = Chapter("11_cognate_train-speed", tmp_path / "absent.ipynb", {})
    broken = [*whole, absent, chapter(name="10_cognate_data", status="interrupted")]
    assert badge.search(page_of(tmp_path, *broken)).groups() == (
        "not run",
        "1 of 1 gates passed, 2 of 4 steps missing",
    )


def test_the_index_says_whose_rows_a_phase_without_its_own_used(chapter, tmp_path):
    absent = Chapter("40_bitnet_quantize", tmp_path / "absent.ipynb", {})
    page = write_index({2: [chapter()], 4: [absent]}, "laptop", tmp_path).read_text()
    assert page.index("Datasets: those of the phases before") < page.index("Phase 4") < page.index("Datasets: not run")
    assert page.count("No gate has been reached.") == 2 and "no rows" not in page


def test_a_torn_notebook_is_named_damaged(tmp_path):
    (tmp_path / "torn.ipynb").write_text('{"cells": [')
    assert Chapter("12_cognate_diversity", tmp_path / "torn.ipynb", {"status": "finished"}).status == "damaged"


def test_formulas_become_mathml():
    page = render.markdown(r"The gate is $g = \sigma(W[y; m])$:" + "\n\n$$\\frac{1}{1-p}\\sum_{i=1}^{n} x_i$$\n")
    assert page.count("<math") == 2 and 'display="block"' in page and "<mfrac>" in page and "$" not in page


@pytest.mark.parametrize("latex", [r"\unheardof{x}", r"\left( x", "x}", r"\begin{aligned}a&=b\end{aligned}"])
def test_a_formula_that_has_no_mathml_is_an_error_with_the_formula(latex):
    with pytest.raises(MathError) as caught:
        mathml(latex, "inline")
    assert latex in str(caught.value)


def test_formulas_of_the_method_have_mathml():
    for latex in (
        r"S_t = \eta_t S_{t-1} - \theta_t \nabla \ell(M_{t-1}; x_t)",
        r"\lVert w \rVert_2^2 \le \sqrt{\max(1, \tfrac{r}{c})}",
        r"\begin{cases} 1 & x > 0 \\ 0 & \text{else} \end{cases}",
        r"\operatorname{clip}(\mathrm{round}(w / \gamma), -1, 1), \quad \{a, b\}",
    ):
        assert mathml(latex, "block").startswith("<math")


def test_prices_in_prose_are_no_formulas():
    assert "<math" not in render.markdown("It costs \\$5 and then \\$6.")


def test_a_link_to_a_notebook_leads_to_its_chapter(chapter, tmp_path):
    page = page_of(tmp_path, chapter(name="11_cognate_train-memory", prose="# T\n\n[train](11_cognate_train.ipynb)"))
    assert '<a href="phase1.html#11_cognate_train">train</a>' in page and '<a id="11_cognate_train"></a>' in page
    assert 'href="phase3.html#31_quietstar_rl"' in render.markdown("[rl](31_quietstar_rl.ipynb)")
    assert 'href="https://arxiv.org/abs/2501.00663"' in render.markdown("[paper](https://arxiv.org/abs/2501.00663)")


def test_a_table_leaves_out_empty_columns_and_says_not_run():
    made = table([{"a_b": 1, "empty": "", "c": None}, {"a_b": 2.5, "empty": "", "c": True}])
    assert "<th class=number>a b</th>" in made and "empty" not in made
    assert '<td class="not run">not run</td>' in made and "<td>True</td>" in made


def test_a_progress_bar_in_a_stream_leaves_its_last_state():
    out = nbformat.v4.new_output("stream", name="stderr", text="\r 1%\r 50%\r\x1b[32m100%\x1b[0m\nnext\n")
    assert render.output(out, "a") == "<pre>100%\nnext</pre>"


def test_figures_keep_their_ids_apart():
    figure = '<?xml version="1.0"?><svg><clipPath id="c"/><g clip-path="url(#c)"/><use xlink:href="#c"/></svg>'
    assert render.svg(figure, "n1") == (
        '<svg><clipPath id="n1-c"/><g clip-path="url(#n1-c)"/><use xlink:href="#n1-c"/></svg>'
    )


@pytest.mark.parametrize(
    "value, text",
    [(None, "not run"), (0.123456, "0.1235"), (1234567, "1,234,567"), (2.0, "2"), (12345.6, "12,346"), ("x", "x")],
)
def test_numbers_as_people_read_them(value, text):
    assert number(value) == text


@pytest.fixture
def web():
    """A loopback web server; yields its address and the list of paths it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()


@pytest.mark.slow
def test_a_browser_shows_the_report_and_asks_the_network_for_nothing(chapter, tmp_path, chromium, web):
    address, asked = web
    greedy = (
        f'<img src="{address}/image.png"><style>@import url("{address}/style.css");'
        f' @font-face {{font-family: x; src: url("{address}/font.woff")}}</style><p style="font-family: x">text</p>'
    )
    gate = fact("gate", name="Diversity", passed=True, advice="", rows=[CHECK])
    page = write_phase(1, [chapter(gate, {"text/html": greedy}, prose="# T\n\n$a^2$")], "smoke", tmp_path)

    def open_page(path, picture) -> bytes:
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
        command = [chromium, *options, f"--screenshot={picture}", "--window-size=900,1400", path.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        return picture.read_bytes()

    assert len(open_page(page, tmp_path / "report.png")) > 10_000
    assert asked == []

    page.write_text(re.sub(r"<meta http-equiv=[^>]+>", "", page.read_text()))
    open_page(page, tmp_path / "control.png")
    assert "/image.png" in asked, "without the policy the planted picture is fetched: the check can fail"


def test_facts_survive_a_notebook_stored_as_lists_of_lines(tmp_path, chapter):
    made = chapter(fact("artifact", name="a", path="b", digest="c"))
    path = tmp_path / "12_cognate_diversity.ipynb"
    assert isinstance(json.loads(path.read_text())["cells"][0]["source"], list)
    assert made.of_kind("artifact")[0]["name"] == "a" and made.notebook["cells"][0]["source"] == "# A title"
