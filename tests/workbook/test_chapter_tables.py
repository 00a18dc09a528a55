"""Tables in a report's chapters: each has its name above it, and a text that is the same in all rows is said once."""

import nbformat
import pytest

from forgelib.workbook import publish, render

MIRROR = "mirror: none is set (FORGE_DATASETS); hub: not reachable"


@pytest.fixture
def shown(monkeypatch):
    """shown(call, *args): the HTML that a report makes of what a notebook publishes by `call`."""

    def make(call, *args, **kwargs) -> str:
        outputs = []
        monkeypatch.setattr("IPython.display.display", lambda data, raw: outputs.append(data))
        call(*args, **kwargs)
        return render.output(nbformat.v4.new_output("display_data", outputs[0]), "a")

    return make


def test_a_table_stands_under_the_name_it_was_published_by(shown):
    made = shown(publish.pairs, "right answers <before>", {"share": 0.03})
    assert made.startswith('<p class="caption">right answers &lt;before&gt;</p><div class="scroll"><table')
    assert '<p class="caption">skipped lines</p>' in shown(publish.rows, "skipped lines", [])
    artifact = type("Artifact", (), {"name": "trunk", "digest": "ab", "path": "x"})
    assert "caption" not in shown(publish.artifact, artifact), "what says its own name needs none"


def test_a_long_text_that_is_the_same_in_all_rows_is_said_once_below(shown):
    rows = [{"dataset": name, "source": "procedural", "note": MIRROR} for name in ("gsm8k", "svamp")]
    made = shown(publish.sources, rows)
    assert made.count(MIRROR) == 1 and f"note, all rows: {MIRROR}" in made
    assert made.count("procedural") == 2, "a short one stays in its column"
    rows[1]["note"] = "from the mirror, one file of two"
    assert "all rows" not in shown(publish.sources, rows), "where rows differ each says its own"
    assert "no rows" in shown(publish.sources, [])


def test_a_fold_that_shows_a_part_of_a_line_says_so():
    whole, long = "x" * render.LABEL, "x" * (render.LABEL + 1)
    assert f"code · {whole}</summary>" in render.code(whole)
    assert f"code · {'x' * (render.LABEL - 1)}…</summary>" in render.code(long)
