"""What the dashboard draws: curves that keep their peaks, parents left of children, "not run" where nothing was
measured, and sliders and buttons that do what they say.
"""

import asyncio
import json
import math
import re
from dataclasses import fields, replace

import ipywidgets
import pytest
from planted_runs import chain, finish, finish_trial, gate, losses, plant, verdict

from forgelib.core.loop import Control
from forgelib.core.paths import runs_dir
from forgelib.evaluate.verdict import Thresholds
from forgelib.workbook import dashboard, dashboard_html, dashboard_theater
from forgelib.workbook.dashboard_panels import LATEST
from forgelib.workbook.dashboard_runs import Pace, RunFolder
from forgelib.workbook.dashboard_store import Lineage
from forgelib.workbook.dashboard_svg import apart, chart, columns, graph, thin
from forgelib.workbook.verdict_view import TESTS, turning_rows


@pytest.fixture
def shown(monkeypatch) -> list:
    """What the notebook would display: widgets, and the facts of the twins."""
    found = []
    monkeypatch.setattr(dashboard, "display", lambda *things, **_: found.extend(things))
    monkeypatch.setattr(dashboard, "publish", lambda kind, facts, table: found.append((kind, facts, table)))
    return found


@pytest.fixture
def board(shown):
    """board(): a board over the runs folder as it is now, every panel shown."""

    def make(**knobs) -> dashboard.Board:
        made = dashboard.Board(runs_dir(), dashboard.Dashboard(**knobs))
        for panel in (made.overview, made.brake, made.curves, made.phase3, made.token_usage, made.theater):
            panel()
        for panel in (made.gates, made.ancestors, made.compare, made.machine):
            panel()
        return made

    return make


def drawn_points(svg: str) -> list[tuple[float, float]]:
    """The points of all lines of a chart, in pixels."""
    lines = re.findall(r'<path d="([^"]+)" stroke', svg)
    return [(float(x), float(y)) for line in lines for x, y in re.findall(r"([\d.]+),([\d.]+)", line)]


def test_a_curve_goes_through_its_points_left_to_right_and_up():
    points = drawn_points(chart({"loss": [(0, 4.0), (1, 2.0), (2, 3.0)]}))
    assert [x for x, _ in points] == sorted(x for x, _ in points) and len(points) == 3
    assert points[0][1] < points[2][1] < points[1][1], "pixels grow downwards"


def test_a_long_curve_is_thinned_and_keeps_every_peak():
    line = [(i, math.sin(i)) for i in range(5000)]
    line[2222], line[3333] = (2222, 99.0), (3333, -99.0)
    kept = thin(line, 200)
    assert len(kept) <= 200 + 4 and kept == sorted(kept)
    assert {(2222, 99.0), (3333, -99.0), line[0], line[-1]} <= set(kept)
    assert thin(line[:200], 200) == line[:200]


def test_what_is_not_finite_is_a_gap_and_says_so_where_there_is_nothing_else():
    nan, inf = float("nan"), float("inf")
    svg = chart({"a": [(0, 1.0), (1, 2.0), (2, nan), (3, 3.0), (4, inf), (5, -inf), (6, 1.0)]})
    assert svg.count("M") - svg.count('class="axis" d="M') == 3 and "nan" not in svg and "inf" not in svg
    assert "3 values, none finite" in chart({"a": [(0, nan), (1, inf), (2, -inf)]})
    assert chart({}).endswith("not run</p>")


def test_a_logarithmic_scale_is_for_what_is_above_zero():
    falling = [(0, 100.0), (1, 10.0), (2, 1.0)]
    (_, a), (_, b), (_, c) = drawn_points(chart({"a": falling}, log=True))
    assert b - a == pytest.approx(c - b, abs=0.2), "equal ratios, equal steps"
    linear = [(0, 1.0), (1, 0.0), (2, -1.0)]
    assert chart({"a": linear}, log=True) == chart({"a": linear}, log=False)


@pytest.mark.parametrize(
    "low, high, told",
    [
        (1.0991, 1.1018, ("1.099", "1.102")),
        (0.0, 306.0, ("0", "306")),
        (0.131, 0.96, ("0.131", "0.96")),
        (100000.1, 100000.4, ("1.0e+5", "1.0e+5")),
        (3.0, 3.0, ("3", "3")),
    ],
)
def test_the_ends_of_an_axis_are_told_apart_in_as_few_digits_as_that_takes(low, high, told):
    assert apart(low, high) == told


def test_a_run_that_ended_before_its_limit_says_so_and_shows_no_bar():
    run = RunFolder(runs_dir(), "21_evomerge_evolve", "k", {"generations": 50}, {}, {"step": 9}, 0.0, "run", True)
    assert dashboard_html.progress_bar(run, Pace()) == "ended at 10 of 50 generations"
    assert "20% · 10 of 50 generations" in dashboard_html.progress_bar(replace(run, finished=False), Pace())


def test_two_lines_share_one_scale():
    svg = chart({"A": [(0, 0.0), (10, 1.0)], "B": [(5, 0.5)]})
    (_, a0), (_, a1), (_, by) = drawn_points(svg)
    assert by == pytest.approx((a0 + a1) / 2, abs=0.1) and svg.count("stroke=") == 2
    assert 'data-records="3"' in svg and 'data-last-step="10"' in svg


def node(name: str, light: str = "") -> dict:
    return {"name": name, "step": "a step", "verdict": light}


DIAMOND = Lineage(
    {"d4": node("rl"), "d2": node("memory"), "d3": node("speed"), "d1": node("data", "passed"), "d0": node("gone")},
    [("d0", "d1"), ("d1", "d2"), ("d1", "d3"), ("d2", "d4"), ("d3", "d4"), ("d1", "d4")],
)


def test_parents_stand_left_of_their_children():
    made = columns(DIAMOND)
    assert made == [["d0"], ["d1"], ["d2", "d3"], ["d4"]]
    place = {digest: i for i, column in enumerate(made) for digest in column}
    assert all(place[parent] < place[child] for parent, child in DIAMOND.edges)
    svg = graph(DIAMOND)
    assert svg.count('class="edge"') == len(DIAMOND.edges) and svg.count("<rect x=") == len(DIAMOND.nodes)
    assert svg.count('class="box passed"') == 1 and svg.count('class="box none"') == 4


def test_a_damaged_registry_that_goes_in_circles_is_drawn_all_the_same():
    circle = Lineage({"a": node("a"), "b": node("b")}, [("a", "b"), ("b", "a")])
    assert sorted(digest for column in columns(circle) for digest in column) == ["a", "b"]
    assert "not run" in graph(Lineage())


HOSTILE = "<script>alert(1)</script>"


def test_whatever_a_run_is_called_stays_text(board):
    run = plant("30_quietstar_bake", [{"step": i, HOSTILE: i, "text": HOSTILE} for i in range(2)], {"a": HOSTILE})
    finish(plant("30_quietstar_bake", losses(2), {"a": 1}, tags={"part": HOSTILE}), "x", gate(HOSTILE, 1.0))
    pages = [panel.twin() for panel in board().panels.values()]
    assert run.dir.is_dir() and any("&lt;script&gt;" in page for page in pages)
    assert not any("<script" in page for page in pages)
    assert "<script" not in graph(Lineage({"a": node(HOSTILE, "")}))


def test_without_runs_every_panel_says_that_nothing_was_run(board, shown):
    made = board()
    for name, panel in made.panels.items():
        twin = panel.twin()
        assert re.search(r"not run|no run|none", twin), name
    numbers = re.sub(r"<[^>]+>|METHOD|target above \d+%|Phase \d", "", made.panels["token usage"].twin())
    assert not re.search(r"\d", numbers), "no invented number"
    assert not (runs_dir() / "runs").exists()
    twins = [facts["of"] for kind, facts, _ in (one for one in shown if isinstance(one, tuple)) if kind == "twin"]
    assert twins == list(made.panels), "every widget has a static twin"


def test_the_first_view_of_a_small_workbook(board):
    planted = chain()
    made = board()
    overview = made.panels["overview"].twin()
    assert '<span class="state running">' in overview and '<span class="state finished">' in overview
    assert "13% · 640 of 5,000 episodes" in overview
    assert "2 of 2 gates passed" in overview, "Phase 3: the baking and the trial"
    both = made.panels["phase 3"].twin()
    assert both.index("Step 1 · baking") < both.index("Step 2 · reinforcement")
    assert 'data-records="51"' in both and 'data-records="40"' in both
    assert planted["rl"].dir.name in made.panels["curves"].twin()
    assert "quietstar-" in made.panels["lineage"].twin()


def test_token_usage_stands_beside_the_targets_of_the_method(board):
    from forgelib.evaluate.reasoning import USAGE_TARGETS

    assert dashboard_html.USAGE_TARGETS == USAGE_TARGETS
    chain()
    rows = re.findall(r"<tr>.*?</tr>", board().panels["token usage"].twin())
    words = {re.search(r"<code>(\w+)", row)[1]: re.findall(r">(passed|failed|not run)<", row)[-1] for row in rows}
    expected = {"thinking": "passed", "step": "passed", "mece": "passed", "falsify": "not run", "doubt": "failed"}
    assert words == expected


def test_a_curve_grows_with_its_journal_and_only_then_is_sent(board):
    run = plant("31_quietstar_rl", [{"step": i, "reward": i / 10} for i in range(5)], {"episodes": 100})
    made = board()
    curves, sent = made.panels["curves"], []
    curves.html.observe(lambda change: sent.append(change["new"]), names="value")
    made.look()
    assert sent == [] and 'data-records="5"' in curves.twin()
    run.tracker.log({"step": 5, "reward": 0.5})
    with run.tracker.path.open("ab") as journal:
        journal.write(b'{"step": 6, "rew')
    made.look()
    assert len(sent) == 1 and 'data-records="6" data-last-step="5"' in curves.twin()


def test_a_menu_keeps_its_choice_and_falls_back_when_it_is_gone(board):
    import shutil

    first = plant("31_quietstar_rl", losses(3), {"episodes": 1})
    made = board()
    menu = made.panels["curves"].menu
    menu.widget.value = first.dir.name
    second = plant("31_quietstar_rl", losses(4), {"episodes": 2})
    made.look()
    assert menu.value == first.dir.name and second.dir.name in dict(menu.widget.options).values()
    shutil.rmtree(first.dir)
    made.look()
    assert menu.value == LATEST and 'data-records="4"' in made.panels["curves"].twin()


def test_curves_are_offered_of_runs_that_have_one(board):
    drawn, point = plant("31_quietstar_rl", losses(3)), plant("12_cognate_diversity", losses(1))
    offered = dict(board().panels["curves"].menu.widget.options).values()
    assert drawn.dir.name in offered and point.dir.name not in offered


def test_two_runs_are_compared_by_a_metric_they_share_and_by_what_differs(board):
    plant("31_quietstar_rl", losses(5), {"episodes": 100, "reward": "binary", "same": 1})
    plant("31_quietstar_rl", [{"step": 0, "loss": 1.0, "own": 2.0}], {"episodes": 200, "same": 1, "added": True})
    plant("30_quietstar_bake", losses(9), {"epochs": 3})
    made = board()
    panel = made.panels["compare"]
    by_params = {run.params.get("episodes"): run.name for run in made.watch.runs}
    panel.a.widget.value, panel.b.widget.value = by_params[100], by_params[200]
    twin = panel.twin()
    assert 'data-records="6"' in twin and "<figcaption>loss</figcaption>" in twin
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", twin)]
    rows = [row for row in cells if row]
    assert rows == [["episodes", "100", "200"], ["reward", "binary", "absent"], ["added", "absent", "True"]]
    assert list(dict(panel.metric.widget.options).values()) == [LATEST, "loss"], "only what both have"
    panel.b.widget.value = by_params[100]
    assert "Their parameters are the same" in panel.twin()


def test_a_slider_turns_the_verdict_and_leaves_the_gate_alone(board):
    finish_trial(plant("32_quietstar_antitheater", []), verdict(correlation=0.6))
    made = board()
    panel = made.panels["theater"]
    assert "passed" in panel.lamps.value
    assert [s.description for s in panel.places.children] == ["divergence", "ablation", "correlation", "causal use"]
    assert "<b>passed</b>" in panel.live.value
    panel.sliders["correlation"].value = 0.65
    assert "<b>failed</b>" in panel.live.value and "must exceed 0.65" in panel.live.value
    made.look()
    assert "<b>failed</b>" in panel.live.value, "a refresh leaves the sliders where they are"
    panel.sliders["correlation"].value = 0.5
    assert "<b>passed</b>" in panel.live.value and "<b>passed</b>" in panel.lamps.value


def test_a_stored_verdict_comes_back_as_it_was_and_its_twin_turns_where_it_turns():
    for correlation in (0.6, 0.4, None):
        found = verdict() if correlation is None else verdict(correlation)
        if correlation is None:
            unmeasured = replace(found.overall.correlation, value=None, interval=None, note="too few errors")
            tests = replace(found.overall, correlation=unmeasured)
            found = replace(found, overall=tests, by_strategy={"chain_of_thought": tests})
        stored = json.loads(json.dumps(found.as_dict()))
        again = dashboard_theater.verdict_of(stored)
        assert again.as_dict() == found.as_dict()
        for moved in (0.0, 0.3, 0.99):
            thresholds = dict.fromkeys(TESTS, moved)
            by_page = again.under(dashboard_theater.judging().Thresholds(**thresholds))
            assert by_page.as_dict() == found.under(Thresholds(**thresholds)).as_dict()
        assert [one.name for one in fields(Thresholds)] == list(TESTS)
        assert turning_rows(stored["checks"]) == turning_rows(found.gate().rows())


def test_a_verdict_of_another_version_keeps_its_lights(board):
    artifact = finish_trial(plant("32_quietstar_antitheater", []), verdict())
    stored = json.loads((artifact.path / "verdict.json").read_text())
    del stored["overall"]["causal_use"]
    (artifact.path / "verdict.json").write_text(json.dumps(stored))
    panel = board().panels["theater"]
    assert "another version" in panel.live.value and "●" in panel.lamps.value and panel.places.children == ()


def test_the_buttons_ask_what_they_say_of_the_chosen_run_alone(board):
    done = plant("30_quietstar_bake", losses(2), {"epochs": 1})
    finish(done, "quietstar-baked")
    older, newer = (plant("31_quietstar_rl", losses(2), {"episodes": n}) for n in (1, 2))
    panel = board().panels["brake"]
    offered = list(dict(panel.menu.widget.options).values())
    assert set(offered) == {LATEST, older.dir.name, newer.dir.name}, "a finished run cannot be paused"
    panel.menu.widget.value = older.dir.name
    told = (("pause", "pause", "paused"), ("stop", "stop", "stopping"), ("resume", "run", "running"))
    for wish, action, state in told:
        panel.buttons[wish].click()
        assert Control(older.dir).read() == action and f">{state}<" in panel.said.value
    assert Control(newer.dir).read() == "run" and not (newer.dir / "control.json").exists()


def test_a_run_that_vanished_is_not_made_anew_by_a_button(board):
    import shutil

    run = plant("31_quietstar_rl", losses(2))
    panel = board().panels["brake"]
    shutil.rmtree(run.dir)
    panel.buttons["pause"].click()
    assert not run.dir.exists() and "no longer there" in panel.said.value
    panel.watch.look()
    panel.look()
    assert all(button.disabled for button in panel.buttons.values())


def test_start_buttons_call_what_they_are_given_and_tell_what_happened(board):
    made, called = board(), []

    def refuse():
        raise RuntimeError("a baking is <running> already")

    made.starts({"start baking": lambda: called.append(1) or "job 7", "start RL": refuse})
    panel = made.panels["starts"]
    bake, rl = panel.box.children[0].children
    assert isinstance(bake, ipywidgets.Button) and called == []
    bake.click()
    assert called == [1] and "start baking: job 7" in panel.twin()
    rl.click()
    assert "start RL: a baking is &lt;running&gt; already" in panel.twin() and 'class="failed"' in panel.twin()
    made.starts({})
    assert "forge run --only 30" in made.panels["starts"].twin()


def test_the_page_keeps_itself_fresh_until_it_is_closed_or_replaced(board):
    run = plant("31_quietstar_rl", losses(3), {"episodes": 9})

    async def live() -> None:
        first = board(refresh_seconds=0.2)
        first.keep_fresh()
        second = board(refresh_seconds=0.2)
        second.keep_fresh()
        run.tracker.log({"step": 3, "loss": 0.1})
        for _ in range(100):
            await asyncio.sleep(0.05)
            if 'data-records="4"' in second.panels["curves"].twin():
                break
        assert 'data-records="4"' in second.panels["curves"].twin()
        await asyncio.sleep(0.5)
        assert 'data-records="4"' not in first.panels["curves"].twin(), "one board is fresh, the last one"
        assert "as of" in second.clock.value
        second.close()
        await asyncio.wait_for(second._task, timeout=10)

    asyncio.run(live())


def test_a_look_that_fails_is_told_and_tried_again(board, monkeypatch):
    plant("31_quietstar_rl", losses(3))

    async def live() -> None:
        made = board(refresh_seconds=0.2)
        whole = made.watch.look
        monkeypatch.setattr(made.watch, "look", lambda: 1 / 0)
        made.keep_fresh()
        await asyncio.sleep(0.5)
        assert "ZeroDivisionError" in made.clock.value
        monkeypatch.setattr(made.watch, "look", whole)
        await asyncio.sleep(0.5)
        assert "1 run ·" in made.clock.value
        made.close()
        await made._task

    asyncio.run(live())


def test_without_an_event_loop_the_board_is_a_still_picture(board):
    made = board()
    made.keep_fresh()
    assert not hasattr(made, "_task")


@pytest.mark.parametrize(
    "seconds, told",
    [(3, "under a minute"), (61, "1 min"), (3599, "59 min"), (7300, "2 h"), (172799, "47 h"), (172801, "2 d")],
)
def test_ages_change_rarely(seconds, told):
    assert dashboard_html.ago(seconds) == told


def test_sizes_and_a_run_without_progress():
    sizes = {0: "0 B", 999: "999 B", 1500: "2 kB", 2_500_000: "2.5 MB", 3e12: "3.0 TB"}
    assert {n: dashboard_html.size(n) for n in sizes} == sizes
    run = RunFolder(runs_dir(), "10_cognate_data", "k" * 64, {}, {}, None, 0.0, "run", False)
    assert "no record" in dashboard_html.progress_bar(run, Pace())
