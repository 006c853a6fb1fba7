"""Rows of a model's embedding and head in the order of the output's tokens; a token it lacks has the mean row."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import torch

FOLD = 1 << 20  # elements of a table that are summed at a time, in float64


class TokenRows:
    """Which of a model's rows each row of the output is taken from. May be used from several threads."""

    def __init__(self, index: torch.Tensor):
        """`index` (n,) int64: a row of the model by row of the output; -1, or a row beyond a table, is its mean."""
        self.index = index
        moved = (index != torch.arange(len(index))).nonzero()
        self._unmoved = int(moved[0]) if len(moved) else len(index)
        self._means: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()

    def take(self, name: str, table: torch.Tensor, first: int, end: int) -> torch.Tensor:
        """The output's rows [first, end) of the table `name` (rows, ...), contiguous, in the table's dtype.

        Where they lie as the output has them they are not copied: do not write to them.
        """
        if end <= min(self._unmoved, len(table)):
            return table[first:end]
        wanted = self.index[first:end]
        lacking = (wanted < 0) | (wanted >= len(table))
        found = table[wanted.masked_fill(lacking, 0)]
        if bool(lacking.any()):
            found[lacking] = self._mean(name, table)
        return found

    def _mean(self, name: str, table: torch.Tensor) -> torch.Tensor:
        with self._lock:
            if name not in self._means:
                self._means[name] = mean_row(table)
            return self._means[name]


def row_index(ids: Mapping[str, int], rows: int, own: Mapping[str, int], table: int) -> torch.Tensor:
    """`TokenRows`' index for a model with the tokens `own` and `table` rows, the output having `ids` and `rows`.

    Rows are matched by token. A row that is padding in both, no token's, keeps its place.
    """
    index = list(range(min(rows, table))) + [-1] * (rows - table)
    for id in (*ids.values(), *own.values()):
        if id < rows:
            index[id] = -1
    for token, id in ids.items():
        if id < rows:
            index[id] = own.get(token, -1)
    return torch.tensor(index, dtype=torch.int64)


def mean_row(table: torch.Tensor) -> torch.Tensor:
    """The mean of the rows of a table (rows, ...), in its dtype: summed in float64, rounded once.

    Only whole rows are added, in an order that the shape alone decides: the same bits with any number of threads.
    """
    rows = max(1, FOLD // max(1, table[:1].numel()))
    total = torch.zeros(table.shape[1:], dtype=torch.float64)
    for first in range(0, len(table), rows):
        block = table[first : first + rows].to(torch.float64, copy=True)
        while len(block) > 1:
            half = len(block) // 2
            block[:half] += block[len(block) - half :]
            block = block[: len(block) - half]
        total += block[0]
    return (total / len(table)).to(table.dtype)
