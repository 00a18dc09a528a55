"""Tables in a report's chapters: each has its name above it, and a text that is the same in all rows is said once."""

import json

import nbformat
import pytest

from forgelib.core.artifacts import Artifact
from forgelib.core.gates import Check, Gate
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
    artifact = Artifact("x", {"name": "trunk", "verdicts": None}, "ab")
    assert "caption" not in shown(publish.artifact, artifact), "what says its own name needs none"


def test_an_artifact_of_an_earlier_run_says_which_verdict_it_keeps(monkeypatch):
    def gate(limit, name="Ternary"):
        return Gate(name, [Check("zeros", 0.4, limit)])

    def told(artifact):
        said = []
        monkeypatch.setattr(publish, "publish", lambda kind, payload, *shown: said.append((kind, payload)))
        publish.artifact(artifact)
        return dict(said).get("published earlier")

    earlier = Artifact("x", {"name": "bitnet-ternary", "verdicts": [json.loads(json.dumps(gate(0.3).verdict()))]}, "ab")
    publish.gate(gate(0.5))
    assert told(earlier)["pairs"] == [
        ["Ternary, as this artifact keeps it and hands it on", "passed"],
        ["zeros", "0.4 (needed > 0.3): passed"],
    ]
    publish.gate(gate(0.3))
    assert told(earlier) is None, "the same verdict"
    monkeypatch.setattr(publish, "_shown", {"Another": gate(0.9, "Another").verdict()})
    assert told(earlier) is None, "no gate of this name was shown here"


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
