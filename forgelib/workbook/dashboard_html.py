"""What was read, as HTML: small tables, lights and bars. What is not there reads "not run"; every text is escaped."""

import html
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from forgelib.workbook import tables
from forgelib.workbook.dashboard_journal import numbers, points
from forgelib.workbook.dashboard_runs import Pace, RunFolder
from forgelib.workbook.dashboard_store import GateSeen
from forgelib.workbook.dashboard_svg import chart, short
from forgelib.workbook.plan import PHASES
from forgelib.workbook.progress import duration

#: METHOD's targets for the use of thinking tokens; `evaluate.reasoning` holds them too, behind libraries that are slow
#: to load, and a test compares the two.
USAGE_TARGETS = {"thinking": 0.8, "step": 0.7, "mece": 0.6, "falsify": 0.6, "doubt": 0.5}
#: Step of Phase 3 -> title, and what a reader looks for in its journal.
STEPS_OF_PHASE_3 = {
    "30_quietstar_bake": ("Step 1 · baking", ("loss", "accuracy_overall", "convergence_progress")),
    "31_quietstar_rl": ("Step 2 · reinforcement", ("avg_reward_100", "right", "kl_divergence")),
}
NOT_RUN = '<p class="soft">not run</p>'


def text(value: Any) -> str:
    """Any value as text inside HTML."""
    return html.escape(str(value))


def phase_cards(runs: Sequence[RunFolder], gates: Sequence[GateSeen], now: float) -> str:
    """One card a phase: how many runs, how many at work, and a light for each of its latest gates."""
    cards = []
    for phase, name in PHASES.items():
        of_phase = [run for run in runs if run.phase == phase]
        working = sum(run.state(now) in ("running", "paused", "stopping") for run in of_phase)
        latest = [gate for gate in gates if gate.latest and _phase(gate.step) == phase]
        passed = sum(gate.passed for gate in latest)
        told = f"{len(of_phase)} runs, {working} at work" if of_phase else "not run"
        tally = f"{passed} of {len(latest)} gates passed" if latest else "no gate reached"
        lights = "".join(light(gate.passed, f"{gate.name}, {gate.of}") for gate in reversed(latest))
        cards.append(
            f'<div class="card"><b>{phase} · {name}</b><p>{lights}</p><p class="soft">{told}<br>{tally}</p></div>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def light(passed: bool | None, told: str) -> str:
    """A dot, green, red or grey (not run), that says what it is of."""
    word = "not run" if passed is None else "passed" if passed else "failed"
    css = word.replace(" ", "-")
    return f'<span class="light {css}" title="{text(told)}: {word}">●</span>'


def state_mark(run: RunFolder, now: float) -> str:
    """The run's state as a coloured word."""
    return f'<span class="state {run.state(now)}">{run.state(now)}</span>'


def runs_table(runs: Sequence[RunFolder], pace: Pace, now: float, shown: int) -> str:
    """The latest runs: state, progress, rate and time left as seen by this page, and the value that says most."""
    if not runs:
        return '<p class="soft">not run: there is no run folder yet. Start one with <code>forge run</code>.</p>'
    heads = "".join(f"<th>{head}</th>" for head in ("state", "run", "progress", "last value", "last sign"))
    lines = "".join(_run_line(run, pace, now) for run in runs[:shown])
    rest = len(runs) - shown
    more = f'<p class="soft">and {rest} earlier runs</p>' if rest > 0 else ""
    table = f'<table class="forge runs"><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>'
    return f'<div class="scroll">{table}</div>{more}'


def _run_line(run: RunFolder, pace: Pace, now: float) -> str:
    value = run.shown()
    told = f"{value[0].replace('_', ' ')}: {tables.number(value[1])}" if value else ""
    profile = f"{run.tags['profile']}, seed {run.tags['seed']}" if {"profile", "seed"} <= set(run.tags) else ""
    return (
        f"<tr><td>{state_mark(run, now)}</td>"
        f'<td>{text(run.short)} <span class="soft">{text(profile)}</span></td>'
        f"<td>{progress_bar(run, pace)}</td><td>{text(told)}</td><td>{ago(now - run.changed)}</td></tr>"
    )


def progress_bar(run: RunFolder, pace: Pace) -> str:
    """A bar with the count; rate and time left once this page has seen the run go on."""
    progress = run.progress()
    if progress is None:
        return f"step {run.last['step']}" if run.last else '<span class="soft">no record</span>'
    done, total, unit = progress
    if run.finished and done < total:
        return f"ended at {tables.number(round(done, 2))} of {tables.number(total)} {text(unit)}"
    share = max(0.0, min(1.0, done / total))
    told = f"{share:.0%} · {tables.number(round(done, 2))} of {tables.number(total)} {unit}"
    if left := pace.left(run):
        rate, seconds = left
        told += f" · {rate:.2g}/s" if rate >= 0.1 else f" · {1 / rate:.0f} s each"
        told += f" · {duration(seconds)} left"
    return f'<span class="bar"><span style="width:{100 * share:.1f}%"></span></span> {text(told)}'


def ago(seconds: float) -> str:
    """How long ago, in one rough unit, so that a page does not change every second."""
    if seconds < 60:
        return "under a minute"
    for unit, size in (("min", 60), ("h", 3600)):
        if seconds < size * (60 if unit == "min" else 48):
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds // 86400:.0f} d"


def small_charts(records: Sequence[dict], log: bool, most: int) -> str:
    """A small curve for every number in the journal that was written more than once, and the others as a table."""
    names = numbers(records)
    if not names:
        return NOT_RUN
    drawn, single = [], {}
    for name in names:
        line = points(records, name)
        if len(line) < 2:
            single[name] = line[-1][1]
            continue
        head = f"<figcaption>{text(name.replace('_', ' '))} <b>{text(_value(line[-1][1]))}</b></figcaption>"
        drawn.append(f'<figure data-metric="{text(name)}">{head}{chart({name: line}, 226, 92, log, most)}</figure>')
    rest = tables.pairs(single.items()) if single else ""
    return f'<div class="charts">{"".join(drawn)}</div>{rest}'


def phase3_cards(latest: Mapping[str, tuple[RunFolder, Sequence[dict]] | None], pace: Pace, now: float) -> str:
    """Baking and reinforcement side by side: how far each is, and what a reader looks for."""
    cards = []
    for step, (title, wanted) in STEPS_OF_PHASE_3.items():
        found = latest.get(step)
        if found is None:
            cards.append(f'<div class="card wide"><b>{title}</b>{NOT_RUN}</div>')
            continue
        run, records = found
        figures = "".join(_figure(records, name) for name in wanted)
        head = f"<p>{state_mark(run, now)} {text(run.short)}</p><p>{progress_bar(run, pace)}</p>"
        cards.append(f'<div class="card wide"><b>{title}</b>{head}{figures}</div>')
    return f'<div class="cards">{"".join(cards)}</div>'


def _figure(records: Sequence[dict], name: str) -> str:
    line = points(records, name)
    told = _value(line[-1][1]) if line else "not run"
    drawn = chart({name: line}, 400, 92) if len(line) > 1 else ""
    head = f"<figcaption>{name.replace('_', ' ')} <b>{text(told)}</b></figcaption>"
    return f'<figure class="wide" data-metric="{name}">{head}{drawn}</figure>'


def usage_bars(run: RunFolder | None, records: Sequence[dict]) -> str:
    """How often the model used each thinking token where its strategy asks for it, beside the given target."""
    lines = []
    for name, target in USAGE_TARGETS.items():
        line = points(records, f"token_usage_{name}")
        value = line[-1][1] if line else None
        word = "not run" if value is None else "passed" if value > target else "failed"
        told = "not run" if value is None else f"{value:.0%}"
        lines.append(
            f'<tr><td><code>{name}</code></td><td>{marked_bar(value, target, word)}</td><td class="number">{told}</td>'
            f'<td class="soft">target above {target:.0%}</td><td class="{word}">{word}</td></tr>'
        )
    of = f'<p class="soft">{text(run.short)}, at its last look</p>' if run else ""
    return f'{of}<div class="scroll"><table class="forge bars"><tbody>{"".join(lines)}</tbody></table></div>'


def marked_bar(value: float | None, mark: float, word: str) -> str:
    """A bar from 0 to 1 with a line at `mark`, coloured by the word passed, failed or not run."""
    width, left = (100 * max(0.0, min(1.0, share)) for share in (value or 0.0, mark))
    css = word.replace(" ", "-")
    return (
        f'<span class="bar usage {css}"><span style="width:{width:.1f}%"></span><i style="left:{left:.1f}%"></i></span>'
    )


def gate_list(gates: Sequence[GateSeen]) -> str:
    """The latest measurement of every gate, each folded over its checks; earlier ones below them, folded away."""
    if not gates:
        return '<p class="soft">not run: no gate was reached yet</p>'
    latest = sorted((gate for gate in gates if gate.latest), key=lambda gate: (gate.of, gate.step, gate.when))
    earlier = [gate for gate in gates if not gate.latest]
    folded = f"<details><summary>{len(earlier)} earlier measurements</summary>{_gates(earlier)}</details>"
    return _gates(latest) + (folded if earlier else "")


def _gates(gates: Iterable[GateSeen]) -> str:
    parts = []
    for gate in gates:
        wrong = [row["name"] for row in gate.checks if row["verdict"] != "passed"]
        told = f"{gate.source}, {gate.of}, {gate.when[:19].replace('T', ' ')} UTC"
        missed = f" · not passed: {text(', '.join(wrong))}" if wrong else ""
        facts = f"{len(gate.checks)} checks · {gate.step} · {gate.of}"
        table = tables.gate({"name": gate.name, "passed": gate.passed, "advice": "", "rows": gate.checks})
        parts.append(
            f'<details class="fold"><summary>{light(gate.passed, gate.name)} <b>{text(gate.name)}</b> '
            f'<span class="soft">{text(facts)}</span>{missed}</summary>'
            f'<p class="soft">{text(told)}</p><div class="scroll">{table}</div></details>'
        )
    return "".join(parts)


def checkpoint_table(rows: Sequence[Mapping[str, Any]], now: float) -> str:
    """The checkpoints that lie there."""
    if not rows:
        return '<p class="soft">none: a finished run keeps its artifact, not its checkpoints</p>'
    shown = [
        {
            "run": row["run"],
            "folder": row["folder"],
            "step": row["step"],
            "size": size(row["bytes"]),
            "age": ago(now - row["written"]),
        }
        for row in rows
    ]
    return f'<div class="scroll">{tables.table(shown)}</div>'


def space_bars(found: Mapping[str, int]) -> str:
    """Disk and memory in use, and what the runs folder holds."""
    bars = []
    for name in ("disk", "memory"):
        used, total = found[name] - found[f"{name} free"], found[name]
        told = f"{name}: {size(found[f'{name} free'])} free of {size(total)}"
        bars.append(f'<p><span class="bar"><span style="width:{100 * used / total:.1f}%"></span></span> {told}</p>')
    held = ", ".join(f"{name} {size(found[name])}" for name in ("runs", "artifacts", "executed"))
    return f'{"".join(bars)}<p class="soft">in the runs folder: {held}</p>'


def difference_table(a: RunFolder, b: RunFolder) -> str:
    """The parameters that differ between two runs; one that a run does not have is "absent"."""
    rows = [
        {"parameter": name, "A": _given(a.params, name), "B": _given(b.params, name)}
        for name in dict.fromkeys([*a.params, *b.params])
        if _given(a.params, name) != _given(b.params, name)
    ]
    if not rows:
        return "<p>Their parameters are the same: what differs is the code or what they started from.</p>"
    return f'<div class="scroll">{tables.table(rows)}</div>'


def size(n: float) -> str:
    """Bytes in a readable unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit in ("B", "kB") else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def clock(seconds: float) -> str:
    """Time of the day."""
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def _given(params: Mapping[str, Any], name: str) -> str:
    return str(params[name]) if name in params else "absent"


def _value(value: float) -> str:
    return short(value) if value == value and abs(value) != float("inf") else str(value)


def _phase(step: str) -> int:
    return max(1, int(step[0])) if step[:1].isdigit() else 0
