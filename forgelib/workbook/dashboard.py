"""Notebook 90 joined: one look at the runs folder feeds every panel, again and again while the page is open.

    board = Board(runs_dir(), p)
    board.overview()
    board.curves()
    board.keep_fresh()

The refresh is a task of the kernel's own event loop: it runs between cells and between clicks, never beside them, and
ends when the board is closed or another one is kept fresh in its place.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from IPython.display import HTML, display

from forgelib.workbook import dashboard_html as shown
from forgelib.workbook.dashboard_knobs import Dashboard
from forgelib.workbook.dashboard_panels import Ancestors, Brake, Compare, Curves, Starts, Still, frame
from forgelib.workbook.dashboard_theater import Theater
from forgelib.workbook.dashboard_watch import Watch
from forgelib.workbook.publish import publish

CSS = Path(__file__).with_name("dashboard.css")
TASK = "forge dashboard"


class Board:
    """The panels over one runs folder. Every method shows one: live, and below it, folded, its static twin."""

    def __init__(self, root: Path, p: Dashboard):
        self.watch, self.p = Watch(root), p
        self.panels: dict[str, Any] = {}
        self.clock = widgets.HTML()
        self.watch.look()

    def overview(self) -> None:
        """The style of all panels, the clock, a card for each phase and the table of runs."""
        display(HTML(f"<style>{CSS.read_text()}</style>"))
        self._tell_time()
        display(self.clock)
        self._show("overview", Still(self._overview))

    def brake(self) -> None:
        """Pause, resume and stop."""
        self._show("brake", Brake(self.watch))

    def starts(self, actions: Mapping[str, Callable[[], Any]]) -> None:
        """Buttons that start something: label -> function; none where nothing can be started."""
        self._show("starts", Starts(actions))

    def curves(self) -> None:
        """One run's numbers as small curves."""
        self._show("curves", Curves(self.watch, self.p.points))

    def phase3(self) -> None:
        """Baking and reinforcement side by side."""
        self._show("phase 3", Still(self._phase3))

    def token_usage(self) -> None:
        """How often the newest baking uses each thinking token."""
        self._show("token usage", Still(self._token_usage))

    def theater(self) -> None:
        """The lights of the trial, with sliders over its thresholds."""
        self._show("theater", Theater(self.watch))

    def gates(self) -> None:
        """Every gate that was reached."""
        store = self.watch.store
        self._show("gates", Still(lambda: shown.gate_list(store.gates()), key=store.gates_stamp))

    def ancestors(self) -> None:
        """The lineage of an artifact."""
        self._show("lineage", Ancestors(self.watch))

    def compare(self) -> None:
        """Any two runs over each other."""
        self._show("compare", Compare(self.watch, self.p.points))

    def machine(self) -> None:
        """Checkpoints, disk and memory."""
        self._show("machine", Still(self._machine))

    def look(self) -> None:
        """See what is new, in every panel that is shown."""
        self.watch.look()
        for panel in self.panels.values():
            panel.look()
        self._tell_time()

    def keep_fresh(self) -> None:
        """Look again every few seconds, until the board is closed. Without an event loop nothing is started."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        for task in asyncio.all_tasks(loop):
            if task.get_name() == TASK:
                task.cancel()
        self._task = loop.create_task(self._keep_fresh(), name=TASK)

    def close(self) -> None:
        """Take the widgets off the page; the refresh then ends."""
        for panel in self.panels.values():
            panel.box.close()
        self.clock.close()

    async def _keep_fresh(self) -> None:
        while self.clock.comm is not None:
            await asyncio.sleep(self.p.refresh_seconds)
            try:
                self.look()
            except Exception as error:  # a folder that vanishes, a full disk: told on the page, and looked at again
                self.clock.value = frame(f'<p class="failed">{shown.text(f"{type(error).__name__}: {error}")}</p>')

    def _show(self, name: str, panel: Any) -> None:
        panel.look()
        with contextlib.suppress(KeyError):
            self.panels.pop(name).box.close()  # a cell that is run again
        self.panels[name] = panel
        display(panel.box)
        told = f"{name} without widgets, as it was at {shown.clock(self.watch.now)}"
        twin = f'<details class="forge-twin"><summary>{shown.text(told)}</summary>{panel.twin()}</details>'
        publish("twin", {"of": name}, twin)

    def _tell_time(self) -> None:
        n = len(self.watch.runs)
        told = f"{n} run{'s' * (n != 1)} · {self.watch.root.name} · as of {shown.clock(self.watch.now)}"
        self.clock.value = frame(f'<p class="soft clock">{shown.text(told)}</p>')

    def _overview(self) -> str:
        watch = self.watch
        cards = shown.phase_cards(watch.runs, watch.store.gates(), watch.now)
        return cards + shown.runs_table(watch.runs, watch.pace, watch.now, self.p.runs_shown)

    def _phase3(self) -> str:
        runs = {step: self.watch.latest(step) for step in shown.STEPS_OF_PHASE_3}
        latest = {step: run and (run, self.watch.records(run)) for step, run in runs.items()}
        return shown.phase3_cards(latest, self.watch.pace, self.watch.now)

    def _token_usage(self) -> str:
        run = self.watch.latest("30_quietstar_bake")
        return shown.usage_bars(run, self.watch.records(run) if run else [])

    def _machine(self) -> str:
        rows = shown.checkpoint_table(self.watch.checkpoints(), self.watch.now)
        return f"<h4>Disk and memory</h4>{shown.space_bars(self.watch.space())}<h4>Checkpoints</h4>{rows}"
