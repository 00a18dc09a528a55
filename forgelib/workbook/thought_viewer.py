"""Thoughts to look at: each problem with its thoughts, coloured by coherence, and what each added to the right answer.

An entry: {"question", "answer", "without": P(answer) with no thought, "thoughts": [{"text", "times": how often
it was drawn, "coherence", "answer", "added": P(answer | thought) - P(answer)}]}.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from forgelib.workbook.publish import publish

LEGEND = (
    "Background: coherence of the thought, from 0 (red) to 1 (green). Added: P(true answer | thought) − P(true answer)."
)


def show(entries: Sequence[Mapping[str, Any]]) -> None:
    """A menu of the problems with the chosen one below it, then all of them as the static twin."""
    import ipywidgets
    from IPython.display import display

    menu = ipywidgets.Dropdown(options=[(_question(e), i) for i, e in enumerate(entries)], description="problem")
    live = ipywidgets.HTML(entry_html(entries[0]))
    menu.observe(lambda change: setattr(live, "value", entry_html(entries[change["new"]])), names="value")
    display(ipywidgets.VBox([menu, live]))
    twin = "".join(map(entry_html, entries))
    publish("twin", {"of": "thought viewer", "entries": list(entries)}, f"<div>{twin}<p>{LEGEND}</p></div>")


def entry_html(entry: Mapping[str, Any]) -> str:
    """One problem as HTML: whatever a model wrote is escaped."""
    rows = "".join(_thought(one, entry["answer"]) for one in entry["thoughts"])
    heads = "".join(f"<th>{name}</th>" for name in ("thought", "drawn", "coherence", "answer", "added"))
    return (
        f"<div><p><b>{html.escape(_question(entry))}</b> true answer {html.escape(entry['answer'])}, without a thought "
        f"its probability is {entry['without']:.2f}</p>"
        f'<div class="scroll"><table><tr>{heads}</tr>{rows}</table></div></div>'
    )


def _thought(one: Mapping[str, Any], answer: str) -> str:
    hue = round(120 * max(0.0, min(1.0, one["coherence"])))
    mark = "right" if one["answer"] == answer else "wrong"
    colour, text = f"background:hsl({hue} 60% 50% / 0.25);text-align:left", html.escape(one["text"])
    told = f"{html.escape(one['answer'])} ({mark})"
    cells = (f"{one['times']} x", f"{one['coherence']:.2f}", told, f"{one['added']:+.2f}")
    return f'<tr><td style="{colour}"><code>{text}</code></td>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _question(entry: Mapping[str, Any]) -> str:
    return entry["question"].removeprefix("Question: ").removesuffix("\nAnswer:")
