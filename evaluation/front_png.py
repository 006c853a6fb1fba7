"""A report's front as a picture: numbered candidates, a key to the numbers, and no browser needed to draw it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import cos, pi, sin
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from evaluation.front_view import Axis, Row, axis_pairs, colours, combination, ordered, staircase

MARKERS = {"plain": "o", "aim": "D", "acm": "*", "acm_uniform": "h", "acm_shuffled": "P"}
INPUT_MARKERS = {"base": "X", "expert": "^"}
NUMBERED = 30
"""More candidates than this are drawn without a number and left out of the key."""
LABEL_DISTANCES = (14, 22, 34, 48, 64)
"""Pixels from a point to its label, tried in turn; beyond the first a line leads there."""


def front_png(rows: Sequence[Row], objectives: Sequence[dict[str, str]], path: str | Path) -> None:
    """Draw the first three pairs of objectives, with standard errors and fronts, into a PNG file."""
    rows = ordered(rows)
    pairs = axis_pairs(objectives)
    figure = Figure(figsize=(13, 6.5) if len(pairs) == 1 else (13, 12), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.15)
    cells = figure.subplots(1 if len(pairs) == 1 else 2, 2).flatten()
    for cell, (x, y) in zip(cells, pairs, strict=False):
        _draw_panel(cell, rows, x, y)
    for cell in cells[len(pairs) :]:
        cell.axis("off")
    _draw_key(cells[len(pairs)], rows)
    figure.legend(handles=_legend(rows), loc="outside lower center", ncols=4, frameon=False)
    # Labels keep clear of each other in pixels, so the layout must be final before they are placed.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for cell, (x, y) in zip(cells, pairs, strict=False):
        _place_labels(cell, rows, x, y)
    figure.savefig(path)


def _draw_panel(cell: Axes, rows: Sequence[Row], x: Axis, y: Axis) -> None:
    shade = colours(rows)
    cell.plot(*staircase(rows, x, y), color="#999999", linewidth=1, linestyle=":", zorder=1)
    for row in rows:
        marker, colour, filled = _look(row, shade)
        across, up = x.value(row), y.value(row)
        cell.errorbar(across, up, y.error(row), x.error(row), ecolor=colour, elinewidth=0.8, alpha=0.35, zorder=2)
        face = colour if filled else "white"
        cell.plot(across, up, marker, markersize=9, markeredgecolor=colour, markerfacecolor=face, zorder=3)
    cell.set(xlabel=x.title, ylabel=y.title)
    cell.grid(color="#eeeeee")
    cell.set_axisbelow(True)
    cell.margins(0.09)
    cell.spines[["top", "right"]].set_visible(False)


def _look(row: Row, shade: dict[str, str]) -> tuple[str, str, bool]:
    """Marker, colour, and whether it is filled."""
    if row["kind"] != "candidate":
        return INPUT_MARKERS[row["kind"]], "black", True
    return MARKERS.get(row["informed"], "s"), shade[combination(row)], row["on_front"]


def _label(row: Row, number: int) -> str:
    if row["kind"] != "candidate":
        return row["name"]
    return str(number) if number <= NUMBERED else ""


def _place_labels(cell: Axes, rows: Sequence[Row], x: Axis, y: Axis) -> None:
    """Put each label where it covers least: nearest first, on eight sides of its point, further out if need be."""
    points = cell.transData.transform([(x.value(row), y.value(row)) for row in rows])
    taken = np.array([(across - 8, up - 8, across + 8, up + 8) for across, up in points])
    renderer = cell.figure.canvas.get_renderer()
    inside = cell.get_window_extent(renderer)
    for number, (row, point) in enumerate(zip(rows, points, strict=True), start=1):
        weight = "bold" if row["on_front"] or row["kind"] != "candidate" else "normal"
        text = cell.text(0, 0, _label(row, number), ha="center", va="center", transform=None, fontsize=9, weight=weight)
        size = text.get_window_extent(renderer)
        if not text.get_text():
            continue
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        spots = []
        for distance, turn in product(LABEL_DISTANCES, range(8)):
            # The label's edge, not its centre, keeps this distance.
            across = point[0] + cos(turn * pi / 4) * (distance + size.width / 2)
            up = point[1] + sin(turn * pi / 4) * (distance + size.height / 4)
            box = Bbox.from_bounds(across - size.width / 2, up - size.height / 2, size.width, size.height).padded(4)
            outside = not (inside.contains(*box.min) and inside.contains(*box.max))
            spots.append((_overlap(box, taken) + 1000 * outside, distance, turn, across, up, box))
        _, distance, _, across, up, box = min(spots, key=lambda spot: spot[:3])
        text.set_position((across, up))
        taken = np.vstack([taken, box.extents])
        if distance > LABEL_DISTANCES[0]:
            cell.add_artist(
                Line2D([point[0], across], [point[1], up], color="#777777", linewidth=0.6, zorder=1, transform=None)
            )


def _overlap(box: Bbox, taken: np.ndarray) -> float:
    """The area in pixels that `box` shares with what stands already: rows of (left, bottom, right, top)."""
    shared = np.minimum(taken[:, 2:], box.extents[2:]) - np.maximum(taken[:, :2], box.extents[:2])
    return float(shared.clip(min=0).prod(axis=1).sum())


def _draw_key(cell: Axes, rows: Sequence[Row]) -> None:
    shade = colours(rows)
    candidates = [row for row in rows if row["kind"] == "candidate"]
    shown = candidates[:NUMBERED]
    step = min(0.06, 0.92 / (len(shown) + 2))
    size = min(10.5, 190 * step)
    cell.set(xlim=(0, 1), ylim=(0, 1))
    cell.text(0.0, 0.97, "Candidates by hypervolume gain", weight="bold", fontsize=size + 1)
    for place, row in enumerate(shown, start=1):
        up = 0.97 - place * step
        marker, colour, filled = _look(row, shade)
        weight = "bold" if row["on_front"] else "normal"
        cell.text(0.05, up, str(place), ha="right", va="center", fontsize=size, weight=weight)
        face = colour if filled else "white"
        cell.plot(0.09, up, marker, markersize=size * 0.75, markeredgecolor=colour, markerfacecolor=face, clip_on=False)
        cell.text(0.13, up, row["name"], va="center", fontsize=size, weight=weight)
        gain = row.get("hypervolume_gain")
        cell.text(1.0, up, "" if gain is None else f"{gain:.3f}", ha="right", va="center", fontsize=size)
    if len(candidates) > len(shown):
        up = 0.97 - (len(shown) + 1) * step
        cell.text(0.13, up, f"and {len(candidates) - len(shown)} more", va="center", fontsize=size, style="italic")


def _legend(rows: Sequence[Row]) -> list[Line2D]:
    def entry(marker: str, label: str, colour: str = "#555555", face: str | None = None) -> Line2D:
        return Line2D(
            [], [], marker=marker, linestyle="", markersize=8, color=colour, markerfacecolor=face or colour, label=label
        )

    informed = dict.fromkeys(row["informed"] for row in rows if row["kind"] == "candidate")
    names = {
        "plain": "plain merge",
        "aim": "with AIM",
        "acm": "with ACM",
        "acm_uniform": "with ACM's mean lambda",
        "acm_shuffled": "with ACM's lambdas shuffled",
    }
    return [
        *(entry("o", name, colour) for name, colour in colours(rows).items()),
        *(entry(MARKERS.get(one, "s"), names.get(one, one)) for one in sorted(informed, reverse=True)),
        entry("s", "filled: on the front of all objectives"),
        entry("s", "open: not on it", face="white"),
        entry("^", "expert", "black"),
        entry("X", "base", "black"),
        Line2D([], [], color="#999999", linestyle=":", label="front of the pair"),
        Line2D([], [], color="#555555", alpha=0.5, linewidth=0.8, label="one standard error"),
    ]
