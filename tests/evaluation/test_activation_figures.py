"""Pictures and tables of lambda and importance."""

import pytest
from matplotlib.figure import Figure

from evaluation.activation_figures import importance_png, importance_table, lambda_png, lambda_table

LAYERS = [f"model.layers.{i}.mlp.down_proj" for i in range(12)]
MODULES = ["lm_head", *sorted(LAYERS), "model.embed_tokens", "model.norm"]
LAMBDAS = {name: {module: 0.5 + i / 100 for i, module in enumerate(MODULES)} for name in ("math", "code")}
IMPORTANCE = {"lm_head": [1.0, 0.5, 0.0], **{f"model.layers.{i}.{k}": [1.0, i / 10] for i in (2, 10) for k in "qk"}}


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the pictures that were drawn."""
    found = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda one, path: (found.append(one.axes[0]), save(one, path)))
    return found


def test_lambda_is_drawn_in_the_order_of_the_layers(drawn, tmp_path):
    lambda_png(LAMBDAS, tmp_path / "lambda.png")
    assert (tmp_path / "lambda.png").read_bytes().startswith(b"\x89PNG")
    [axes] = drawn
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["embed_tokens", *map(str, range(12)), "norm", "lm_head"]
    first = axes.get_lines()[0].get_ydata()
    assert list(first[1:13]) == [LAMBDAS["math"][module] for module in LAYERS]


def test_the_table_of_lambda_has_means_and_lengths():
    lines = lambda_table(LAMBDAS, {"samples": 4, "mean": 12.25}).splitlines()
    assert lines[0] == "| module | math | code |"
    assert lines[2] == "| model.embed_tokens | 0.6300 | 0.6300 |"
    assert lines[-4] == "| lm_head | 0.5000 | 0.5000 |"
    assert lines[-3] == "| mean | 0.5700 | 0.5700 |"
    assert lines[-1] == "Tokens of the calibration texts: samples 4, mean 12.25."


def test_importance_is_drawn_by_kind_and_listed_by_module(drawn, tmp_path):
    importance_png(IMPORTANCE, tmp_path / "importance.png")
    [axes] = drawn
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == {"q", "k"}
    assert list(lines["q"].get_xdata()) == [2, 10]
    assert list(lines["q"].get_ydata()) == [0.6, 1.0]
    table = importance_table(IMPORTANCE).splitlines()
    assert table[2] == "| model.layers.2.k | 2 | 0.6000 | 50.00% |"
    assert table[-1] == "| lm_head | 3 | 0.5000 | 66.67% |"


def test_a_mixtures_experts_are_one_line(drawn, tmp_path):
    experts = {f"model.layers.0.mlp.experts.{i}.up_proj": [1.0, i / 10] for i in range(3)}
    importance_png(experts, tmp_path / "importance.png")
    [line] = drawn[0].get_lines()
    assert line.get_label() == "mlp.experts.*.up_proj"
    assert list(line.get_ydata()) == [pytest.approx(0.55)]


def test_a_deep_model_has_no_more_names_than_fit(drawn, tmp_path):
    deep = {"merged": {f"model.layers.{i}.mlp": 0.5 for i in range(100)}}
    lambda_png(deep, tmp_path / "lambda.png")
    assert len(drawn[0].get_xticks()) <= 40
