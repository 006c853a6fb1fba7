import random

import pytest

from evaluation.figures import SYMBOLS, front_figure, front_html, front_png, table_markdown
from evaluation.front_png import MARKERS
from evaluation.front_view import axes, axis_pairs, colours, staircase
from evaluation.informed import WAYS

MATH, CODE, TALK = ({"name": name, "goal": "maximise"} for name in ("math", "code", "talk"))
LENGTH = {"name": "math.response_tokens", "goal": "minimise"}


def row(name, kind="candidate", gain=None, on_front=False, informed="plain", tokens=10.0, **scores):
    return {
        "name": name,
        "kind": kind,
        **({"informed": informed} if kind == "candidate" else {}),
        "scores": {key: {"value": value, "stderr": 0.03, "response_tokens": tokens} for key, value in scores.items()},
        "on_front": on_front,
        "hypervolume_gain": gain,
    }


ROWS = [
    row("base", "base", math=0.05, code=0.08, tokens=20.0),
    row("math", "expert", on_front=True, math=0.7, code=0.1, tokens=12.0),
    row("linear math+code", gain=0.1, math=0.3, code=0.3, tokens=11.0),
    row("ties(d=0.5)+aim(w=0.4) math+code", "candidate", 0.25, True, "aim", math=0.4, code=0.5, tokens=9.0),
]


def test_the_table_has_the_best_candidate_first_and_every_score_with_its_error():
    assert table_markdown(ROWS, [MATH, CODE, LENGTH]).splitlines() == [
        "| # | model | math (%) | code (%) | math response length (tokens), less is better | on the front "
        "| hypervolume gain |",
        "| ---: | --- | ---: | ---: | ---: | :---: | ---: |",
        "| 1 | ties(d=0.5)+aim(w=0.4) math+code | 40.0 ± 3.0 | **50.0 ± 3.0** | **9.0** | yes | 0.250 |",
        "| 2 | linear math+code | 30.0 ± 3.0 | 30.0 ± 3.0 | 11.0 |  | 0.100 |",
        "|  | math (expert) | **70.0 ± 3.0** | 10.0 ± 3.0 | 12.0 | yes |  |",
        "|  | base | 5.0 ± 3.0 | 8.0 ± 3.0 | 20.0 |  |  |",
    ]


def test_the_table_says_what_the_length_change_is_measured_against():
    rows = [{**row, "length_change": row["scores"]["math"]["response_tokens"] / 12 - 1} for row in ROWS]
    header, _, best, *_, base = table_markdown(rows, [MATH], "math").splitlines()
    assert "| math (%) | length change against math | on the front |" in header
    assert "| 40.0 ± 3.0 | -25.0 % | yes |" in best
    assert "| 5.0 ± 3.0 | +66.7 % |  |" in base


def test_the_first_three_pairs_of_objectives_are_drawn():
    names = [(x.name, y.name) for x, y in axis_pairs([MATH, CODE, TALK, LENGTH])]
    assert names == [("math", "code"), ("math", "talk"), ("math", "math.response_tokens")]
    assert [(x.name, y.name) for x, y in axis_pairs([MATH])] == [("math", "math")]


def test_the_front_line_turns_where_two_of_its_points_meet():
    assert staircase(ROWS, *axes([MATH, CODE])) == ([40, 40, 70], [50, 10, 10])
    # Shorter is better: the best of one score and the best of the other, and the worse of both between them.
    assert staircase(ROWS, *axes([MATH, LENGTH])) == ([40, 40, 70], [9, 12, 12])


def test_each_combination_has_a_colour_of_its_own():
    found = colours([row(f"linear {experts}") for experts in ("a+b", "a+c", "b+c", "a+b+c")])
    assert list(found) == ["a+b+c", "a+b", "a+c", "b+c"]
    assert len(set(found.values())) == 4


def test_the_page_shows_every_model_with_all_its_scores():
    figure = front_figure(ROWS, [MATH, CODE, LENGTH])
    hover = [text for trace in figure.data if trace.hovertext for text in trace.hovertext]
    assert len(hover) == 3 * len(ROWS)
    best = next(text for text in hover if "ties" in text)
    assert best == (
        "<b>ties(d=0.5)+aim(w=0.4) math+code</b><br>math: 40.0 ± 3.0 %<br>code: 50.0 ± 3.0 %<br>"
        "math.response_tokens: 9.0 tokens<br>hypervolume gain: 0.250<br>on the front"
    )
    names = [trace.name for trace in figure.data if trace.showlegend]
    assert names == ["front of the pair", "math+code, aim", "math+code, plain", "expert", "base"]


def test_plain_and_informed_merges_and_the_front_look_different():
    traces = {trace.name: trace for trace in front_figure(ROWS, [MATH, CODE]).data}
    assert traces["math+code, aim"].marker.symbol == ("diamond",)
    assert traces["math+code, plain"].marker.symbol == ("circle-open",)
    assert traces["math+code, aim"].error_x.array == (3.0,)


@pytest.mark.parametrize("looks", [SYMBOLS, MARKERS])
def test_every_way_to_inform_a_merge_has_a_look_of_its_own(looks):
    assert set(looks) == set(WAYS)
    assert len(set(looks.values())) == len(WAYS)


def test_the_page_needs_no_network():
    page = front_html(ROWS, [MATH, CODE])
    assert "<script src=" not in page
    assert page.startswith("<!doctype html>")


@pytest.mark.parametrize("objectives", [[MATH], [MATH, CODE], [MATH, LENGTH], [MATH, CODE, LENGTH]])
def test_the_picture_is_drawn_for_any_number_of_objectives(objectives, tmp_path):
    front_png(ROWS, objectives, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_labels_of_a_crowded_picture_keep_clear_of_each_other(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, _path: drawn.append(figure))
    draw = random.Random(1)
    crowd = [
        row(f"linear(n={n}) math+code", gain=draw.random(), math=draw.gauss(0.4, 0.04), code=draw.gauss(0.4, 0.04))
        for n in range(15)
    ]
    front_png(crowd + ROWS[:2], [MATH, CODE], tmp_path / "front.png")
    panel = drawn[0].axes[0]
    boxes = [text.get_window_extent() for text in panel.texts if text.get_text()]
    assert len(boxes) == 17
    assert not any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n])
