import json
from itertools import combinations
from math import isclose, prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.pareto import front, hypervolume, hypervolume_gain, unit_scores
from merging.errors import InputError

AIM = json.loads((Path(__file__).parents[1] / "published" / "aim.json").read_text())


def inclusion_exclusion(points) -> float:
    """The volume of the union of the boxes between the origin and each point, by its definition."""
    return sum(
        (-1) ** (size + 1) * prod(min(point[axis] for point in chosen) for axis in range(len(points[0])))
        for size in range(1, len(points) + 1)
        for chosen in combinations(points, size)
    )


def populations(objectives, most=5):
    score = st.floats(0, 1, allow_subnormal=False).map(lambda value: round(value, 3))
    return st.lists(st.lists(score, min_size=objectives, max_size=objectives), min_size=1, max_size=most)


def published_gains(population_key: str) -> list[float]:
    return [
        hypervolume_gain(
            np.array(row["scores"]) / 100,
            np.array([AIM["base_models"][name] for name in row[population_key]]) / 100,
        )
        for row in AIM["rows"]
    ]


def agreeing_cells(gains: list[float]) -> int:
    return sum(f"{gain:.2f}" == row["published_hv_gain"] for gain, row in zip(gains, AIM["rows"], strict=True))


def test_the_aim_table_is_reproduced_with_the_fitted_populations():
    assert agreeing_cells(published_gains("fitted_population")) == 40


def test_with_the_populations_on_the_labels_half_of_the_aim_table_agrees():
    assert agreeing_cells(published_gains("stated_population")) == 21


def test_the_percentages_of_the_aim_table_are_reproduced():
    gains = {
        (row["method"], *row["models"], row["aim"]): gain
        for row, gain in zip(AIM["rows"], published_gains("fitted_population"), strict=True)
    }
    published = {(row["method"], *row["models"]): row["published_pct"] for row in AIM["rows"] if row["aim"]}
    found = {merge: percentage(gains[*merge, False], gains[*merge, True]) for merge in published}
    assert len(found) == 20
    assert found == published


def percentage(plain: float, informed: float) -> str:
    return f"{100 * (informed / plain - 1):+.2f}%" if plain else "+inf%"


def test_the_volume_of_one_point_is_the_product_of_its_scores():
    assert hypervolume([[0.5, 0.4, 0.3]]) == pytest.approx(0.06)


def test_the_volume_of_two_points_follows_inclusion_and_exclusion():
    assert hypervolume([[0.5, 0.2], [0.3, 0.8]]) == pytest.approx(0.5 * 0.2 + 0.3 * 0.8 - 0.3 * 0.2)


def test_volumes_count_from_the_reference_point():
    assert hypervolume([[0.5, 0.5]], reference=0.25) == pytest.approx(0.0625)
    assert hypervolume([[0.5, 0.2]], reference=0.25) == 0


def test_no_points_have_no_volume():
    assert hypervolume([]) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6).flatmap(populations))
def test_the_volume_is_exact(points):
    assert isclose(hypervolume(points), inclusion_exclusion(points), abs_tol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6).flatmap(lambda n: st.tuples(populations(n, most=1), populations(n))))
def test_the_gain_is_the_root_of_the_added_volume(drawn):
    (candidate,), population = drawn
    added = inclusion_exclusion([*population, candidate]) - inclusion_exclusion(population)
    assert isclose(hypervolume_gain(candidate, population) ** len(candidate), added, abs_tol=1e-12)


def test_a_candidate_that_is_equalled_or_beaten_gains_exactly_nothing():
    population = [[0.1, 0.7, 0.3], [0.3, 0.3, 0.3]]
    assert hypervolume_gain([0.3, 0.3, 0.3], population) == 0
    assert hypervolume_gain([0.1, 0.6, 0.29], population) == 0


def test_the_first_model_gains_all_of_its_volume():
    assert hypervolume_gain([0.5, 0.32], []) == pytest.approx(0.4)


def test_the_front_keeps_equal_points_and_drops_dominated_ones():
    points = [[1, 2], [2, 1], [1, 2], [1, 1], [0, 0]]
    assert front(points, [True, True]).tolist() == [True, True, True, False, False]


def test_each_objective_of_the_front_has_its_own_direction():
    assert front([[0.5, 120], [0.5, 80], [0.4, 60], [0.3, 90]], [True, False]).tolist() == [False, True, True, False]


def test_the_front_of_one_objective_is_its_best():
    assert front([[0.3], [0.5], [0.5]], [True]).tolist() == [False, True, True]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda n: st.tuples(populations(n, most=8), st.lists(st.booleans(), min_size=n, max_size=n))
    )
)
def test_the_front_is_what_no_other_point_dominates(drawn):
    points, maximise = drawn
    signed = np.array(points) * np.where(maximise, 1, -1)
    expected = [not any((other >= one).all() and (other > one).any() for other in signed) for one in signed]
    assert front(points, maximise).tolist() == expected


def test_an_objective_to_minimise_counts_from_its_bound():
    scores = unit_scores([[0.6, 50], [0.2, 300]], [True, False], [None, 200])
    assert scores.tolist() == [[0.6, 0.75], [0.2, 0.0]]
    with pytest.raises(InputError, match="positive bound"):
        unit_scores([[0.6, 50]], [True, False], [None, None])


def test_what_is_not_a_number_is_refused_and_named():
    with pytest.raises(InputError, match="score 2 of model 3 is nan"):
        front([[1, 1], [2, 2], [3, float("nan")]], [True, True])
    with pytest.raises(InputError, match="score 1 of model 1 is inf"):
        hypervolume([[float("inf"), 1]])


def test_percentages_are_refused_where_scores_are_meant():
    with pytest.raises(InputError, match="between 0 and 1, found 41.5"):
        hypervolume_gain([41.5, 20.0], [[0.3, 0.4]])


def test_a_population_with_other_objectives_is_refused():
    with pytest.raises(InputError, match="2 scores for the candidate, 3 for the population"):
        hypervolume_gain([0.1, 0.2], [[0.1, 0.2, 0.3]])
