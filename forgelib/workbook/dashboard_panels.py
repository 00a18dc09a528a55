"""The panels of the dashboard. Each has a widget `box`, takes up what is new with `look()`, and draws itself for a page
without widgets with `twin()`. A widget is sent to the browser only when what it shows has changed.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import ipywidgets as widgets

from forgelib.workbook import dashboard_html as shown
from forgelib.workbook.dashboard_journal import numbers, points
from forgelib.workbook.dashboard_runs import RunFolder
from forgelib.workbook.dashboard_svg import chart, graph
from forgelib.workbook.dashboard_watch import Watch

LATEST = ""
WISHES = ("pause", "resume", "stop")


def frame(body: str) -> str:
    """A panel's HTML, marked for its style."""
    return f'<div class="forge-board">{body}</div>'


class Still:
    """A panel without knobs. `key` tells cheaply whether anything changed; without it every look draws the panel."""

    def __init__(self, draw: Callable[[], str], key: Callable[[], Hashable] | None = None):
        self.draw, self.key, self._drawn = draw, key, object()
        self.box = self.html = widgets.HTML()

    def look(self) -> None:
        key = self.key() if self.key else None
        if key is None or key != self._drawn:
            self._drawn, self.html.value = key, frame(self.draw())

    def twin(self) -> str:
        return self.html.value


class Menu:
    """A list of what is there now, on top `latest` for whatever is newest. A choice outlives new entries."""

    def __init__(self, description: str, latest: str):
        self.latest = latest
        self.widget = widgets.Dropdown(options=[(latest, LATEST)], value=LATEST, description=description)
        self.widget.layout.width, self.widget.layout.max_width = "calc(100% - 4px)", "34rem"

    @property
    def value(self) -> str:
        return self.widget.value or LATEST

    def offer(self, entries: Mapping[str, str]) -> None:
        """entries: value -> label."""
        options = [(self.latest, LATEST), *((label, value) for value, label in entries.items())]
        if tuple(options) != tuple(self.widget.options):
            kept = self.value if self.value in entries else LATEST
            self.widget.options = options
            self.widget.value = kept

    def on_choice(self, act: Callable[[], None]) -> None:
        self.widget.observe(lambda _change: act(), names="value")


def latest_curve(watch: Watch) -> RunFolder | None:
    """The latest run whose journal has more than one step, else the latest."""
    return next(filter(has_curve, watch.runs), None) or next(iter(watch.runs), None)


def has_curve(run: RunFolder) -> bool:
    return bool(run.last and run.last["step"] > 0)


def run_labels(runs: Iterable[RunFolder]) -> dict[str, str]:
    """Folder name -> label of each run."""
    return {run.name: f"{run.short} {run.tags.get('profile', '')}".strip() for run in runs}


class Curves:
    """Every number of one run's journal as a small curve that grows with it."""

    def __init__(self, watch: Watch, most: int):
        self.watch, self.most, self._drawn = watch, most, None
        self.menu, self.html = Menu("run", "the latest run with a curve"), widgets.HTML()
        self.log = widgets.Checkbox(False, description="logarithmic scale", indent=False)
        self.box = widgets.VBox([self.menu.widget, self.log, self.html])
        self.menu.on_choice(self.look)
        self.log.observe(lambda _change: self.look(), names="value")

    def look(self) -> None:
        self.menu.offer(run_labels(filter(has_curve, self.watch.runs)))
        run = self.watch.run(self.menu.value) or latest_curve(self.watch)
        records = self.watch.records(run) if run else []
        drawn = (run and run.name, len(records), records[-1]["step"] if records else None, self.log.value)
        if drawn != self._drawn:
            self._drawn = drawn
            self.html.value = frame(_titled(run, shown.small_charts(records, self.log.value, self.most)))

    def twin(self) -> str:
        return self.html.value


class Compare:
    """Two runs: the curves of one metric over each other, and the parameters that differ."""

    def __init__(self, watch: Watch, most: int):
        self.watch, self.most, self._drawn = watch, most, None
        self.a, self.b = Menu("A", "the latest run with a curve"), Menu("B", "the one before it, of the same step")
        self.metric, self.html = Menu("metric", "the first they share"), widgets.HTML()
        self.box = widgets.VBox([self.a.widget, self.b.widget, self.metric.widget, self.html])
        for menu in (self.a, self.b, self.metric):
            menu.on_choice(self.look)

    def look(self) -> None:
        self.a.offer(run_labels(self.watch.runs))
        self.b.offer(run_labels(self.watch.runs))
        a = self.watch.run(self.a.value) or latest_curve(self.watch)
        b = self.watch.run(self.b.value) or (self.watch.latest(a.step, before=a) if a else None)
        if a is None or b is None:
            self.html.value = frame('<p class="soft">not run: there are no two runs to compare</p>')
            return
        records = {"A": self.watch.records(a), "B": self.watch.records(b)}
        names = {side: numbers(of) for side, of in records.items()}
        shared = [name for name in names["A"] if name in names["B"]]
        self.metric.offer({name: name.replace("_", " ") for name in shared})
        metric = self.metric.value or next(iter(shared), "")
        drawn = (a.name, b.name, metric, *((len(r), r[-1]["step"]) for r in records.values() if r))
        if drawn != self._drawn:
            self._drawn = drawn
            self.html.value = frame(self._draw(a, b, metric, records))

    def _draw(self, a: RunFolder, b: RunFolder, metric: str, records: Mapping[str, list[dict]]) -> str:
        told = "".join(
            f'<p><span class="mark mark-{name}">━</span> <b>{name}</b> {shown.text(run.short)} '
            f'<span class="soft">{shown.text(str(run.tags.get("profile", "")))}</span></p>'
            for name, run in (("A", a), ("B", b))
        )
        lines = {name: points(of, metric) for name, of in records.items()} if metric else {}
        drawn = chart(lines, 500, 190, points=self.most) if lines else '<p class="soft">they share no metric</p>'
        head = f"<figcaption>{shown.text(metric.replace('_', ' '))}</figcaption>"
        return f'{told}<figure class="wide">{head}{drawn}</figure>{shown.difference_table(a, b)}'

    def twin(self) -> str:
        return self.html.value


class Ancestors:
    """One artifact and all it was made from, drawn from left to right."""

    def __init__(self, watch: Watch):
        self.watch, self._drawn = watch, None
        self.menu, self.html = Menu("artifact", "the newest"), widgets.HTML()
        self.box = widgets.VBox([self.menu.widget, self.html])
        self.menu.on_choice(self.look)

    def look(self) -> None:
        rows = self.watch.store.artifacts
        self.menu.offer({row["digest"]: f"{row['manifest']['name']} {row['digest'][:8]}" for row in rows})
        digest = self.menu.value or (rows[0]["digest"] if rows else "")
        if (digest, len(rows)) != self._drawn:
            self._drawn = (digest, len(rows))
            self.html.value = frame(graph(self.watch.store.lineage(digest)))

    def twin(self) -> str:
        return self.html.value


class Brake:
    """Pause, resume and stop a run through its folder; the run looks once a step."""

    def __init__(self, watch: Watch):
        self.watch = watch
        self.menu, self.said = Menu("run", "the latest unfinished run"), widgets.HTML()
        self.buttons = {wish: widgets.Button(description=wish, layout=widgets.Layout(width="6rem")) for wish in WISHES}
        for wish, button in self.buttons.items():
            button.on_click(lambda _button, wish=wish: self.ask(wish))
        row = widgets.HBox(list(self.buttons.values()), layout=widgets.Layout(flex_flow="row wrap"))
        self.box = widgets.VBox([self.menu.widget, row, self.said])
        self.menu.on_choice(self.look)

    def chosen(self) -> RunFolder | None:
        """The run that the buttons act on."""
        unfinished = [run for run in self.watch.runs if not run.finished]
        return next((run for run in unfinished if self.menu.value in (LATEST, run.name)), None)

    def look(self) -> None:
        labels = run_labels(self.watch.runs)
        self.menu.offer({run.name: labels[run.name] for run in self.watch.runs if not run.finished})
        run = self.chosen()
        for button in self.buttons.values():
            button.disabled = run is None
        self.said.value = frame(self._tell(run))

    def ask(self, wish: str) -> None:
        """Ask `wish` of the chosen run."""
        from forgelib.core.loop import Control  # it loads torch: only who presses a button waits for that

        run = self.chosen()
        if run is None or not run.path.is_dir():
            self.said.value = frame('<p class="failed">this run is no longer there</p>')
            return
        Control(run.path).request(wish)
        self.watch.look()
        self.look()

    def _tell(self, run: RunFolder | None) -> str:
        if run is None:
            return '<p class="soft">no run is unfinished: there is nothing to pause or stop</p>'
        state = run.state(self.watch.now)
        waits = {"paused": "it waits until it is resumed", "stopping": "it saves a checkpoint after its step, and ends"}
        told = f": {waits[state]}" if state in waits else ""
        return f"<p>{shown.state_mark(run, self.watch.now)} {shown.text(run.short)}{told}</p>"

    def twin(self) -> str:
        return self.said.value


class Starts:
    """A button for each way to start something: label -> function, which returns what to tell, at once."""

    def __init__(self, actions: Mapping[str, Callable[[], Any]]):
        self.said = widgets.HTML(frame(self._waiting(actions)))
        buttons = []
        for label, act in actions.items():
            button = widgets.Button(description=label, layout=widgets.Layout(width="auto"))
            button.on_click(lambda _button, label=label, act=act: self.start(label, act))
            buttons.append(button)
        self.box = widgets.VBox([widgets.HBox(buttons, layout=widgets.Layout(flex_flow="row wrap")), self.said])

    def start(self, label: str, act: Callable[[], Any]) -> None:
        """Call it, and say what it says; an error is told, not raised: the page stays."""
        try:
            told, css = str(act() or "started"), "soft"
        except Exception as error:
            told, css = str(error) or type(error).__name__, "failed"
        self.said.value = frame(f'<p class="{css}">{shown.text(f"{label}: {told}")}</p>')

    def _waiting(self, actions: Mapping[str, Any]) -> str:
        if actions:
            return ""
        return (
            '<p class="soft">Nothing is started from here: <code>forge run --only 30</code> bakes, 31 reinforces.</p>'
        )

    def look(self) -> None:
        """Nothing on the disk changes these buttons."""

    def twin(self) -> str:
        return self.said.value


def _titled(run: RunFolder | None, body: str) -> str:
    name = f'<p class="soft">{shown.text(run.name)}</p>' if run else ""
    return name + body
