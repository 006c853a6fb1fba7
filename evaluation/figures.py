"""A report's front as an interactive page (plotly) and as a table; `front_png` has the picture."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from evaluation.front_png import front_png
from evaluation.front_view import Axis, Row, axes, axis_pairs, colours, combination, ordered, staircase

__all__ = ["front_figure", "front_html", "front_png", "table_markdown"]

SYMBOLS = {
    "plain": "circle",
    "aim": "diamond",
    "acm": "star",
    "acm_uniform": "hexagon",
    "acm_shuffled": "cross",
}
INPUT_SYMBOLS = {"base": "x", "expert": "triangle-up"}


def front_figure(rows: Sequence[Row], objectives: Sequence[dict[str, str]]) -> go.Figure:
    """One panel for each of the first three pairs of objectives, with standard errors, fronts and hover texts.

    `rows` and `objectives` are those of a study's report.
    """
    rows = ordered(rows)
    pairs = axis_pairs(objectives)
    figure = make_subplots(rows=1, cols=len(pairs), horizontal_spacing=0.06)
    for column, (x, y) in enumerate(pairs, start=1):
        across, up = staircase(rows, x, y)
        line = {"color": "#999999", "width": 1, "dash": "dot"}
        _add(figure, column, "front of the pair", x=across, y=up, mode="lines", line=line, hoverinfo="skip")
        for name, members, style in _groups(rows):
            _add(figure, column, name, **_points(members, x, y, axes(objectives)), **style)
        figure.update_xaxes(title_text=x.title, row=1, col=column)
        figure.update_yaxes(title_text=y.title, row=1, col=column)
    figure.update_layout(
        template="plotly_white",
        height=620,
        title="Scores of candidates, experts and base, with one standard error; filled: on the front of all objectives",
        legend={"orientation": "h", "y": -0.18},
    )
    return figure


def front_html(rows: Sequence[Row], objectives: Sequence[dict[str, str]]) -> str:
    """`front_figure` as a whole HTML page that needs no network."""
    return front_figure(rows, objectives).to_html(include_plotlyjs=True, full_html=True)


def _add(figure: go.Figure, column: int, name: str, **settings) -> None:
    # Only the first panel's traces enter the legend; a click there acts on all panels.
    trace = go.Scatter(name=name, legendgroup=name, showlegend=column == 1, **settings)
    figure.add_trace(trace, row=1, col=column)


def _groups(rows: Sequence[Row]) -> list[tuple[str, list[Row], dict]]:
    """Rows that look alike, with the name and style of their trace."""
    shade = colours(rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        own = f"{combination(row)}, {row['informed']}" if row["kind"] == "candidate" else row["kind"]
        groups.setdefault(own, []).append(row)
    found = []
    for name in sorted(groups, key=lambda name: (name == "base", name == "expert", name)):
        first = groups[name][0]
        candidate = first["kind"] == "candidate"
        symbol = SYMBOLS.get(first["informed"], "square") if candidate else INPUT_SYMBOLS[first["kind"]]
        colour = shade[combination(first)] if candidate else "black"
        symbols = [symbol if not candidate or row["on_front"] else f"{symbol}-open" for row in groups[name]]
        marker = {"color": colour, "size": 12, "symbol": symbols, "line": {"width": 2, "color": colour}}
        found.append((name, groups[name], {"marker": marker, "mode": "markers" if candidate else "markers+text"}))
    return found


def _points(rows: Sequence[Row], x: Axis, y: Axis, every: Sequence[Axis]) -> dict:
    error = {"type": "data", "thickness": 1, "width": 0}
    return {
        "x": [x.value(row) for row in rows],
        "y": [y.value(row) for row in rows],
        "error_x": {**error, "array": [x.error(row) for row in rows]},
        "error_y": {**error, "array": [y.error(row) for row in rows]},
        "text": [row["name"] for row in rows],
        # The base often lies among the experts that a benchmark does not concern: its name goes elsewhere.
        "textposition": "bottom center" if rows[0]["kind"] == "base" else "middle right",
        "cliponaxis": False,
        "hovertext": [_hover(row, every) for row in rows],
        "hoverinfo": "text",
    }


def _hover(row: Row, every: Sequence[Axis]) -> str:
    lines = [f"<b>{row['name']}</b>", *(f"{axis.name}: {axis.text(row)} {axis.unit}" for axis in every)]
    if row.get("hypervolume_gain") is not None:
        lines.append(f"hypervolume gain: {row['hypervolume_gain']:.3f}")
    return "<br>".join([*lines, "on the front" if row["on_front"] else "not on the front"])


def table_markdown(
    rows: Sequence[Row], objectives: Sequence[dict[str, str]], length_reference: str | None = None
) -> str:
    """All models with their scores and standard errors, best first; the best value of each objective in bold.

    `length_reference` names the model that the rows' `length_change` is measured against; None leaves it out.
    """
    rows = ordered(rows)
    every = axes(objectives)
    best = [(max if axis.maximise else min)(axis.value(row) for row in rows) for axis in every]
    change = [f"length change against {length_reference}"] if length_reference else []
    titles = ["#", "model", *(axis.title for axis in every), *change, "on the front", "hypervolume gain"]
    lines = [titles, ["---:", "---", *("---:" for _ in [*every, *change]), ":---:", "---:"]]
    for number, row in enumerate(rows, start=1):
        cells = [
            f"**{axis.text(row)}**" if axis.value(row) == top else axis.text(row)
            for axis, top in zip(every, best, strict=True)
        ]
        cells += [f"{100 * row['length_change']:+.1f} %" for _ in change]
        gain = row.get("hypervolume_gain")
        name = row["name"] if row["kind"] in (row["name"], "candidate") else f"{row['name']} ({row['kind']})"
        number = str(number) if row["kind"] == "candidate" else ""
        lines.append([number, name, *cells, "yes" if row["on_front"] else "", "" if gain is None else f"{gain:.3f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
