"""Which models no other beats everywhere, and how much a model adds to a population.

Source of the hypervolume gain: activation-informed merging (arXiv 2502.02421). moocore computes the volumes exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import ArrayLike

from merging.errors import InputError


def front(points: ArrayLike, maximise: Sequence[bool]) -> np.ndarray:
    """Which of `points` (n, m) are on the Pareto front: bool (n,).

    `maximise` says of each of the m objectives whether more is better. Equal points are on the front together.
    """
    points = _points(points)
    if not len(points):
        return np.zeros(0, dtype=bool)
    if points.shape[1] != len(maximise):
        raise InputError(f"{points.shape[1]} scores per model, but {len(maximise)} objectives")
    return moocore.is_nondominated(points, maximise=list(maximise), keep_weakly=True)


def unit_scores(points: ArrayLike, maximise: Sequence[bool], bounds: Sequence[float | None]) -> np.ndarray:
    """`points` (n, m) as scores to maximise in [0, 1], as the hypervolume wants them: float64 (n, m).

    An objective to maximise stays as it is. One to minimise, such as a response length, becomes
    `1 - value / bound`: 1 for nothing at all, 0 at its bound (the caller's worst acceptable value) and beyond.
    """
    points = _points(points)
    columns = []
    for column, more_is_better, bound in zip(points.T, maximise, bounds, strict=True):
        if not more_is_better and not (bound and bound > 0):
            raise InputError("an objective to minimise needs a positive bound for the hypervolume")
        columns.append(column if more_is_better else np.clip(1 - column / bound, 0, 1))
    return np.stack(columns, axis=1)


def hypervolume(points: ArrayLike, reference: float | Sequence[float] = 0) -> float:
    """The volume that `points` (n, m), to be maximised, dominate above `reference`; exact, 0 for no points."""
    points = _points(points)
    if not len(points):
        return 0.0
    reference = np.broadcast_to(np.asarray(reference, dtype=float), points.shape[1:])
    return float(moocore.hypervolume(points, ref=reference, maximise=True))


def hypervolume_gain(candidate: ArrayLike, population: ArrayLike) -> float:
    """`(HV(P + m) - HV(P)) ** (1 / n)` of a candidate m (n,) over a population P (k, n) of scores in [0, 1].

    The reference point is the origin; the root makes the gains of studies with different n comparable. 0 for a
    candidate that the population already equals or beats.
    """
    candidate = _points([candidate])
    population = _points(population)
    size = candidate.shape[1]
    if len(population) and population.shape[1] != size:
        raise InputError(f"{size} scores for the candidate, {population.shape[1]} for the population")
    outside = [value for value in [*candidate.flat, *population.flat] if not 0 <= value <= 1]
    if outside:
        raise InputError(f"hypervolume gain: scores must lie between 0 and 1, found {outside[0]:g}")
    if any((member >= candidate[0]).all() for member in population):
        return 0.0
    # Equal to the difference of the two volumes, but subtracts numbers of the gain's own size: the root would
    # make 0.002 of a rounding error of 1e-17.
    covered = hypervolume(np.minimum(population, candidate)) if len(population) else 0.0
    return max(hypervolume(candidate) - covered, 0.0) ** (1 / size)


def _points(points: ArrayLike) -> np.ndarray:
    points = np.asarray(points, dtype=float)
    if not points.size:
        return points.reshape(0, points.shape[-1] if points.ndim == 2 else 0)
    if points.ndim != 2:
        raise ValueError(f"expected one row of scores per model, found an array of shape {points.shape}")
    if not np.isfinite(points).all():
        row, column = np.argwhere(~np.isfinite(points))[0]
        raise InputError(f"score {column + 1} of model {row + 1} is {points[row, column]}: not a number to compare")
    return points
