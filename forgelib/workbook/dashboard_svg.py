"""Curves and graphs as inline SVG, drawn by hand: quick, small, no library and nothing to fetch.

Every text is escaped. Colours and fonts are those of dashboard.css.
"""

import html
import math
from collections.abc import Mapping, Sequence

from forgelib.workbook.dashboard_store import Lineage
from forgelib.workbook.tables import number

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
Points = Sequence[tuple[float, float]]
#: Room for the labels beside the axes, in pixels: left, right, top, bottom.
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 18
BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y = 112, 50, 26, 14
LETTERS = 16  # of a name's line in a box


def chart(
    series: Mapping[str, Points], width: int = 300, height: int = 120, log: bool = False, points: int = 300
) -> str:
    """One line a series of (step, value); values that are not finite are gaps. `points` are drawn at most, peaks kept.

    log: a logarithmic scale, where every value is above 0; otherwise the scale stays linear.
    """
    finite = [(x, y) for line in series.values() for x, y in line if math.isfinite(y)]
    counted = sum(map(len, series.values()))
    if not finite:
        return (
            f'<p class="soft">not run: {counted} values, none finite</p>' if counted else '<p class="soft">not run</p>'
        )
    log = log and all(y > 0 for _, y in finite)
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    place = _Place(min(xs), max(xs), min(ys), max(ys), width, height, log)
    lines = [
        f'<path d="{_path(thin(line, points), place)}" stroke="{colour}"/>'
        for colour, line in zip(_colours(len(series)), series.values(), strict=True)
    ]
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'data-records="{counted}" data-last-step="{max(xs):g}">{place.axes()}{"".join(lines)}</svg>'
    )


class _Place:
    """From values to pixels."""

    def __init__(self, x0: float, x1: float, y0: float, y1: float, width: int, height: int, log: bool):
        self.x0, self.x1, self.y0, self.y1, self.log = x0, x1, y0, y1, log
        self.left, self.right, self.top, self.bottom = LEFT, width - RIGHT, TOP, height - BOTTOM

    def of(self, x: float, y: float) -> str:
        across = (x - self.x0) / (self.x1 - self.x0) if self.x1 > self.x0 else 0.5
        low, high, here = (math.log(v) for v in (self.y0, self.y1, y)) if self.log else (self.y0, self.y1, y)
        up = (here - low) / (high - low) if high > low else 0.5
        px, py = self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)
        return f"{px:.1f},{py:.1f}"

    def axes(self) -> str:
        """Frame and the extremes: of the values at the left, of the steps below."""
        left, right, top, bottom = self.left, self.right, self.top, self.bottom
        low, high = apart(self.y0, self.y1)
        values = _label(low, left - 4, (top + bottom) // 2 + 3, "end")
        if self.y1 > self.y0:
            values = _label(high, left - 4, top + 7, "end") + _label(low, left - 4, bottom, "end")
        return (
            f'<path class="axis" d="M{left},{top}V{bottom}H{right}"/>{values}'
            f"{_label(short(self.x0), left, bottom + 13, 'start')}{_label(short(self.x1), right, bottom + 13, 'end')}"
        )


def thin(line: Points, points: int) -> Points:
    """About `points` of a line at most: of each stretch first, lowest, highest and last, so that no peak is lost."""
    if len(line) <= points:
        return line
    stretch = math.ceil(4 * len(line) / points)
    kept: dict[int, None] = {}
    for start in range(0, len(line), stretch):
        places = range(start, min(start + stretch, len(line)))
        finite = [i for i in places if math.isfinite(line[i][1])] or [start]
        extremes = {min(finite, key=lambda i: line[i][1]), max(finite, key=lambda i: line[i][1])}
        kept.update(dict.fromkeys(sorted({places[0], places[-1], *extremes})))
    return [line[i] for i in kept]


def _path(line: Points, place: _Place) -> str:
    """A pen that is lifted over what is not finite; a lone point is a dot."""
    strokes: list[list[str]] = [[]]
    for x, y in line:
        if math.isfinite(y):
            strokes[-1].append(place.of(x, y))
        elif strokes[-1]:
            strokes.append([])
    return "".join("M" + " ".join(stroke) + ("h0.01" if len(stroke) == 1 else "") for stroke in strokes if stroke)


def _label(text: str, x: float, y: float, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(text)}</text>'


def apart(low: float, high: float) -> tuple[str, str]:
    """Two numbers in few letters, yet with as many digits as it takes to tell them apart, up to six."""
    pairs = ((short(low, digits), short(high, digits)) for digits in range(3, 7))
    return next((pair for pair in pairs if pair[0] != pair[1]), (short(low), short(high)))


def short(value: float, digits: int = 3) -> str:
    """A number in few letters, for an axis; `digits` of it count."""
    if value == 0 or (float(value).is_integer() and abs(value) < 1e5):
        return number(value)
    text = f"{value:.{digits}g}" if 1e-2 <= abs(value) < 1e5 else f"{value:.{digits - 2}e}"
    return text.replace("e-0", "e-").replace("e+0", "e+")


def _colours(n: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(n)]


def columns(line: Lineage) -> list[list[str]]:
    """Digests by column, parents always left of their children: a node stands one right of its rightmost parent.

    Inside a column a node stands near the middle of its parents.
    """
    parents: dict[str, list[str]] = {digest: [] for digest in line.nodes}
    for parent, child in line.edges:
        parents[child].append(parent)
    depth: dict[str, int] = {}
    waiting = list(line.nodes)
    while waiting:
        ready = [digest for digest in waiting if all(parent in depth for parent in parents[digest])]
        for digest in ready or waiting[:1]:  # hashes cannot go in circles, a damaged registry could
            depth[digest] = max((depth.get(parent, 0) + 1 for parent in parents[digest]), default=0)
        waiting = [digest for digest in waiting if digest not in depth]
    made: list[list[str]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    for digest in line.nodes:
        made[depth[digest]].append(digest)
    row: dict[str, float] = {}
    for column in made:
        middle = {d: sum(row.get(p, 0) for p in parents[d]) / max(len(parents[d]), 1) for d in column}
        column.sort(key=lambda d: (middle[d], line.nodes[d]["name"]))
        row.update({digest: i - (len(column) - 1) / 2 for i, digest in enumerate(column)})
    return made


def graph(line: Lineage) -> str:
    """The lineage from left to right; a box's left edge is green or red by the artifact's gates."""
    made = columns(line)
    if not made:
        return '<p class="soft">not run: there is no artifact yet</p>'
    tallest = max(map(len, made))
    width = len(made) * (BOX_WIDTH + GAP_X) - GAP_X + 2
    height = tallest * (BOX_HEIGHT + GAP_Y) - GAP_Y + 2
    at: dict[str, tuple[float, float]] = {}
    for x, column in enumerate(made):
        empty = (tallest - len(column)) * (BOX_HEIGHT + GAP_Y) / 2
        for y, digest in enumerate(column):
            at[digest] = (1 + x * (BOX_WIDTH + GAP_X), 1 + empty + y * (BOX_HEIGHT + GAP_Y))
    edges = "".join(_edge(at[parent], at[child]) for parent, child in line.edges)
    boxes = "".join(_box(digest, line.nodes[digest], *at[digest]) for digest in at)
    return (
        f'<div class="scroll"><svg class="graph" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img">{edges}{boxes}</svg></div>'
    )


def _edge(parent: tuple[float, float], child: tuple[float, float]) -> str:
    x0, y0 = parent[0] + BOX_WIDTH, parent[1] + BOX_HEIGHT / 2
    x1, y1 = child[0], child[1] + BOX_HEIGHT / 2
    bend = max(GAP_X, (x1 - x0) / 2)
    curve = f"{x0 + bend:.0f},{y0:.1f} {x1 - bend:.0f},{y1:.1f} {x1:.0f},{y1:.1f}"
    return f'<path class="edge" d="M{x0:.0f},{y0:.1f}C{curve}"/>'


def _box(digest: str, node: Mapping[str, str], x: float, y: float) -> str:
    light = node["verdict"] or "none"
    told = f"{node['name']}, made by {node['step']}, sha256 {digest}, gates {node['verdict'] or 'none'}"
    words = [*_two_lines(node["name"]), digest[:8]]
    css = [""] * (len(words) - 1) + [' class="soft"']
    lines = "".join(
        f'<text x="{x + 9:.0f}" y="{y + 15 + 14 * i:.0f}"{soft}>{html.escape(word)}</text>'
        for i, (word, soft) in enumerate(zip(words, css, strict=True))
    )
    return (
        f'<g class="box {light}"><title>{html.escape(told)}</title>'
        f'<rect x="{x:.0f}" y="{y:.1f}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="4"/>'
        f'<rect class="light" x="{x:.0f}" y="{y:.1f}" width="4" height="{BOX_HEIGHT}"/>{lines}</g>'
    )


def _two_lines(name: str) -> list[str]:
    """A name over at most two lines, broken at a hyphen or an underline."""
    if len(name) <= LETTERS:
        return [name]
    cut = max((i + 1 for i, letter in enumerate(name[:LETTERS]) if letter in "-_"), default=LETTERS)
    rest = name[cut:]
    return [name[:cut], rest if len(rest) <= LETTERS else rest[: LETTERS - 1] + "…"]
