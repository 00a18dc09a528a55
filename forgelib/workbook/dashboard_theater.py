"""The lights of the anti-theater trial, and sliders over its thresholds: the verdict follows, nothing is measured anew.

What judges is `forgelib.evaluate.verdict`. It only compares numbers, and is loaded without the rest of its room, which
loads torch: a page that shows runs is there at once and takes little memory.
"""

import functools
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import ipywidgets as widgets

import forgelib
from forgelib.workbook import dashboard_html as shown
from forgelib.workbook import tables
from forgelib.workbook.dashboard_panels import Menu, frame
from forgelib.workbook.dashboard_store import VERDICT_FILE
from forgelib.workbook.dashboard_watch import Watch
from forgelib.workbook.verdict_view import TESTS, turning_rows, verdict_html


@functools.cache
def judging() -> ModuleType:
    """The module `forgelib.evaluate.verdict`, by its file."""
    path = Path(forgelib.__file__).parent / "evaluate" / "verdict.py"
    spec = importlib.util.spec_from_file_location("forgelib_verdict", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_verdict(folder: Path) -> dict:
    """verdict.json of an artifact as plain values."""
    return json.loads((folder / VERDICT_FILE).read_text(encoding="utf-8"))


def verdict_of(stored: Mapping[str, Any]) -> Any:
    """The `Verdict` that `as_dict` stored, without its evidence. KeyError, TypeError where another version wrote it."""
    by = judging()

    def measured(value: Mapping[str, Any]) -> Any:
        interval = value["interval"]
        return by.Measured(**{**value, "interval": None if interval is None else tuple(interval)})

    def findings(value: Mapping[str, Any]) -> Any:
        tests = {name: measured(one) for name, one in value.items() if name != "accuracy"}
        return by.Findings(**tests, accuracy=value["accuracy"])

    by_strategy = {name: findings(one) for name, one in stored["by_strategy"].items()}
    return by.Verdict(findings(stored["overall"]), by_strategy, by.Thresholds(**stored["thresholds"]))


def lights(stored: Mapping[str, Any]) -> str:
    """A light for each check of the trial as it was judged, with its name and value."""
    dots = "".join(
        f"<span class=test>{shown.light(None if row['measured'] is None else row['passed'], row['name'])} "
        f"{shown.text(row['name'])} <b>{tables.number(row['measured'])}</b></span>"
        for row in stored["checks"]
    )
    return f"<p>{shown.light(stored['passed'], 'anti-theater')} <b>{shown.text(stored['outcome'])}</b></p><p>{dots}</p>"


class Theater:
    """One verdict: its lights, and the sliders over its thresholds."""

    def __init__(self, watch: Watch):
        self.watch, self._chosen, self._stored, self._verdict = watch, None, None, None
        self.menu, self.lamps, self.live = Menu("verdict", "the newest"), widgets.HTML(), widgets.HTML()
        self.sliders: dict[str, widgets.FloatSlider] = {}
        self.places = widgets.VBox([])
        self.box = widgets.VBox([self.menu.widget, self.lamps, self.places, self.live])
        self.menu.on_choice(self.look)

    def look(self) -> None:
        rows = self.watch.store.verdicts()
        self.menu.offer({row["digest"]: f"{row['manifest']['name']} {row['digest'][:8]}" for row in rows})
        row = next((row for row in rows if self.menu.value in ("", row["digest"])), None)
        digest = row["digest"] if row else ""
        if digest != self._chosen:
            self._chosen, self._stored = digest, read_verdict(row["path"]) if row else None
            self.lamps.value = frame(lights(self._stored) if row else shown.NOT_RUN)
            self.live.value, self.places.children = frame(""), ()
            if row:
                self._place_sliders()

    def _place_sliders(self) -> None:
        try:
            self._verdict = verdict_of(self._stored)
        except (KeyError, TypeError) as error:
            told = f"this verdict was written by another version ({error}): its thresholds cannot be moved"
            self.live.value = frame(f'<p class="soft">{shown.text(told)}</p>')
            return
        for name in TESTS:
            value, most = self._stored["thresholds"][name], 0.5 if name == "ablation" else 1.0
            limits = {"min": min(0.0, value), "max": max(most, value), "step": 0.01, "readout_format": ".2f"}
            self.sliders[name] = widgets.FloatSlider(value, description=name.replace("_", " "), **limits)
            self.sliders[name].observe(lambda _change: self._judge(), names="value")
        self.places.children = tuple(self.sliders.values())
        self._judge()

    def _judge(self) -> None:
        """The verdict under the thresholds that the sliders say."""
        thresholds = judging().Thresholds(**{name: slider.value for name, slider in self.sliders.items()})
        self.live.value = frame(verdict_html(self._verdict.under(thresholds)))

    def twin(self) -> str:
        if not self._stored:
            return frame(shown.NOT_RUN)
        return frame(lights(self._stored) + tables.table(turning_rows(self._stored["checks"])))
