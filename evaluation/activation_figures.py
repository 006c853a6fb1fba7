"""What the activations said, as pictures and tables: ACM's lambda by layer, AIM's importance by module."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from merging.layers import in_order, layer_of

Lambdas = Mapping[str, Mapping[str, float]]  # by what was measured against the base, then by module
TICKS = 40  # more modules than this are not all named


def lambda_png(lambdas: Lambdas, path: str | Path) -> None:
    """Draw lambda by module, a line for each model that was measured, and its mean, into a PNG file."""
    modules = in_order(next(iter(lambdas.values())))
    axes = _panel("lambda", "How much of each layer's change ACM keeps; dotted: the mean")
    for name, found in lambdas.items():
        values = [found[module] for module in modules]
        [line] = axes.plot(range(len(modules)), values, marker="o", markersize=4, label=name)
        axes.axhline(fmean(values), color=line.get_color(), linestyle=":", linewidth=1)
    _name_ticks(axes, [_short(module) for module in modules])
    axes.legend()
    axes.figure.savefig(path)


def lambda_table(lambdas: Lambdas, lengths: Mapping[str, float]) -> str:
    """Lambda by module in Markdown, a column for each model that was measured, and the texts' lengths in tokens."""
    modules = in_order(next(iter(lambdas.values())))
    rows = [[module, *(f"{found[module]:.4f}" for found in lambdas.values())] for module in modules]
    rows.append(["mean", *(f"{fmean(found.values()):.4f}" for found in lambdas.values())])
    told = ", ".join(f"{name} {value:.4g}" for name, value in lengths.items())
    return f"{_table(['module', *lambdas], rows)}\n\nTokens of the calibration texts: {told}.\n"


def importance_png(importance: Mapping[str, Sequence[float]], path: str | Path) -> None:
    """Draw each module's mean importance over its layers, a line for each kind (all of a mixture's experts are one),
    into a PNG file.

    `importance` holds a vector in [0, 1] by module, an entry for each input channel.
    """
    axes = _panel("mean importance", "Mean activation of a module's input channels, relative to its largest")
    lines: dict[str, dict[int, list[float]]] = {}
    for module, vector in importance.items():
        if (layer := layer_of(module)) is not None and len(vector):
            kind = re.sub(r"\.\d+\.", ".*.", module.split(f".{layer}.", 1)[1])
            lines.setdefault(kind, {}).setdefault(layer, []).append(fmean(vector))
    for kind, found in sorted(lines.items()):
        layers = sorted(found)
        axes.plot(layers, [fmean(found[layer]) for layer in layers], marker="o", markersize=3, label=kind)
    axes.set_xlabel("layer")
    axes.legend(fontsize=8, ncols=2)
    axes.figure.savefig(path)


def importance_table(importance: Mapping[str, Sequence[float]]) -> str:
    """Each module's channels in Markdown: how many, their mean importance, and the share of at least a half."""
    rows = [
        [module, str(n), f"{fmean(vector):.4f}", f"{sum(value >= 0.5 for value in vector) / n:.2%}"]
        for module in in_order(importance)
        if (n := len(vector := importance[module]))
    ]
    return _table(["module", "channels", "mean importance", "at least half"], rows) + "\n"


def _panel(title: str, heading: str) -> Axes:
    figure = Figure(figsize=(11, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(ylabel=title, title=heading)
    axes.grid(color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _name_ticks(axes: Axes, names: Sequence[str]) -> None:
    step = -(-len(names) // TICKS)
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=90)


def _short(module: str) -> str:
    """A decoder layer by its number, another module by the last part of its name."""
    layer = layer_of(module)
    return module.rpartition(".")[2] if layer is None else str(layer)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
