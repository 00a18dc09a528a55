"""The dashboard's buttons do what the API does, and say what it says."""

import pytest

from forgelib.server import jobs
from forgelib.server.buttons import COMPLETE, LABELS, starts
from forgelib.server.tasks import TASKS
from forgelib.workbook.dashboard_knobs import Dashboard


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setenv("FORGE_RUNS", str(tmp_path))
    return Dashboard(profile="smoke", seed=3, data="procedural")


def test_there_is_a_button_for_every_task_of_the_api(page):
    assert set(LABELS) == set(TASKS) and set(starts(page)) == {*LABELS.values(), COMPLETE}


@pytest.mark.parametrize("task", TASKS)
def test_a_button_starts_its_task_with_what_the_page_was_opened_with(page, task, monkeypatch):
    asked = []
    monkeypatch.setattr(jobs, "start", lambda *given: asked.append(given) or {"notebook": "30_x", "id": "some-job"})
    assert "some-job" in starts(page)[LABELS[task]]()
    assert asked == [(TASKS[task], {"profile": "smoke", "seed": 3, "data": "procedural"})]


@pytest.mark.parametrize(
    "label, maker", [("start baking", "21_evomerge_evolve"), (COMPLETE, "31_quietstar_rl")], ids=["start", "complete"]
)
def test_a_refusal_is_a_sentence_that_names_what_to_do(page, label, maker):
    with pytest.raises(ValueError, match=f"there is no .* for profile smoke, seed 3.*forge run --only {maker}"):
        starts(page)[label]()
