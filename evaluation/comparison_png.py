"""Did informing a merge help? The scores side by side, and the differences with their errors, as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from evaluation.comparison import LIMIT, Comparison, Samples, groups, mean, per_question
from evaluation.comparison_page import NAMES, pair_label
from evaluation.front_png import MARKERS
from evaluation.front_view import COLOURS, axes

WAY_COLOURS = {
    "plain": "#333333",
    "aim": "#0072B2",
    "acm": "#D55E00",
    "acm_uniform": "#E69F00",
    "acm_shuffled": "#CC79A7",
}


def scores_png(report: Mapping[str, Any], samples: Samples, path: str | Path) -> None:
    """Draw each objective in a panel: the merges by method and way with a standard error, the inputs as lines."""
    every, found = axes(report["objectives"]), groups(report["rows"])
    figure, panels = _panels(len(every), height=4.6)
    for panel, axis in zip(panels, every, strict=True):
        for place, group in enumerate(found):
            for step, row in enumerate(group.rows):
                across = place + 0.75 * ((step + 0.5) / len(group.rows) - 0.5)
                estimate = mean(per_question(samples[row["name"]][axis.benchmark], axis).values())
                colour = WAY_COLOURS[row["informed"]]
                style = {"color": colour, "marker": MARKERS[row["informed"]], "markersize": 8, "elinewidth": 1.2}
                panel.errorbar(across, estimate.value, estimate.stderr, **style)
        _draw_inputs(panel, {row["name"]: axis.value(row) for row in report["rows"] if row["kind"] != "candidate"})
        panel.set_xticks(range(len(found)), _labels([group.name for group in found], "\n"), fontsize=9)
        panel.set_title(axis.title, fontsize=11)
        panel.grid(axis="y", color="#eeeeee")
    ways = dict.fromkeys(row["informed"] for group in found for row in group.rows)
    handles = [
        Line2D([], [], color=WAY_COLOURS[way], marker=MARKERS[way], linestyle="", markersize=8, label=NAMES[way])
        for way in ways
    ]
    handles.append(Line2D([], [], color="#999999", linestyle=":", label="the models that were merged, and their base"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path)


def differences_png(compared: Sequence[Comparison], path: str | Path) -> None:
    """Draw each objective in a panel: every comparison's difference with LIMIT standard errors about it."""
    every = list(dict.fromkeys(one.axis for one in compared))
    pairs = list(dict.fromkeys(one.pair for one in compared))
    names = list(dict.fromkeys(one.group for one in compared))
    figure, panels = _panels(len(every), height=4.6, sharey=True)
    for panel, axis in zip(panels, every, strict=True):
        for one in (one for one in compared if one.axis == axis):
            step = names.index(one.group)
            up = pairs.index(one.pair) + 0.6 * ((step + 0.5) / len(names) - 0.5)
            estimate, colour = one.estimate, COLOURS[step % len(COLOURS)]
            face = colour if estimate.differs else "white"
            style = {"color": colour, "marker": "o", "markersize": 6, "markerfacecolor": face, "elinewidth": 1.2}
            panel.errorbar(estimate.value, up, xerr=LIMIT * estimate.stderr, **style)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_yticks(range(len(pairs)), [pair_label(pair) for pair in pairs])
        panel.set_xlabel("tokens" if axis.is_length else "points")
        panel.set_title(axis.title, fontsize=11)
        panel.grid(axis="x", color="#eeeeee")
    panels[0].invert_yaxis()
    handles = [
        Line2D([], [], color=COLOURS[place % len(COLOURS)], marker="o", linestyle="", label=label)
        for place, label in enumerate(_labels(names, " "))
    ]
    handles.append(Line2D([], [], color="#555555", label=f"{LIMIT} standard errors to each side"))
    handles.append(Line2D([], [], color="#555555", marker="o", linestyle="", label="filled: differs"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False)
    figure.savefig(path)


def _draw_inputs(panel: Axes, values: Mapping[str, float]) -> None:
    """A dotted line for each input model, named at the right; names that would touch are moved up."""
    for value in values.values():
        panel.axhline(value, color="#999999", linewidth=0.8, linestyle=":", zorder=0)
    low, high = panel.get_ylim()
    free = low
    for name, value in sorted(values.items(), key=lambda item: item[1]):
        free = max(free, value)
        panel.text(1.01, free, name, transform=panel.get_yaxis_transform(), fontsize=8, va="center")
        free += 0.04 * (high - low)


def _panels(count: int, *, height: float, sharey: bool = False) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(4.4 * count, height), dpi=80, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, count, sharey=sharey, squeeze=False)[0]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_axisbelow(True)
    return figure, panels


def _labels(names: Sequence[str], between: str) -> list[str]:
    """Groups by method and parameters, `ties` and `(d=0.5)`; with the experts where these differ, too."""
    several = len({name.rpartition(" ")[2] for name in names}) > 1
    shown = names if several else [name.rpartition(" ")[0] for name in names]
    return [name.replace(" ", between).replace("(", f"{between}(", 1) for name in shown]
