"""The weights of one or several merges over the same inputs, made block by block in one reading.

A block is a few whole rows of a tensor, small enough for a core's cache. Worker threads each map a block of every
input, widen it, merge it, round it and put it in its place in the output files; torch and the kernel release the
interpreter for all of that. What a method must know of a whole tensor it finds in passes of its own before.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from merging import aim
from merging.errors import InputError
from merging.inputs import Model
from merging.methods import Group, Method
from merging.preflight import BLOCK, Output

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
AHEAD = 8  # blocks per worker that may be under way before the first of them must be done
Put = Callable[[str, torch.Tensor, int], None]


@dataclass
class Target:
    """Where a merge's tensors go, `put(name, piece, start)`; those not in `outputs` are there already."""

    outputs: Mapping[str, Output]
    put: Put
    omega: float | None = None
    statistics: Mapping[str, torch.Tensor] | None = None
    squares: dict[str, float] = field(default_factory=dict)


Tensor = tuple[str, str]  # a model's name, and the name of a tensor in it


@dataclass(frozen=True)
class Part:
    """What an output tensor is merged from, and with which parameters."""

    experts: list[Tensor]
    keys: list[str]
    base: Tensor | None
    shared: dict[str, Any]
    settings: list[dict[str, Any]]

    @property
    def inputs(self) -> list[Tensor]:
        return self.experts + ([self.base] if self.base else [])


@dataclass
class Job:
    """One merge of some of the inputs: a part by output tensor. Its targets differ in AIM and in output dtype only."""

    method: Method
    seed: int
    parts: Mapping[str, Part]
    targets: list[Target] = field(default_factory=list)


class Stream:
    """The reading of `models` in blocks, and the making of `jobs`."""

    def __init__(self, models: Mapping[str, Model], frame: str, shapes, jobs: Sequence[Job], dtype, read_as):
        """`frame` names the base, or the first model; `shapes` are the outputs'.

        Inputs are read as the dtype `read_as` (None: as stored) and computed with in `dtype`.
        """
        self.models, self.frame, self.jobs, self.shapes = models, frame, jobs, shapes
        self.dtype, self.read_as = dtype, read_as
        self.checked: set[tuple[str, Tensor]] = set()

    def make(self, names: Sequence[str], every: Sequence[str], finished: Callable[[str], None]) -> None:
        """Make the float tensors `names` of every target that lists them; `every` are all the model has.

        `finished(name)` is called, in this thread, after a tensor's last block.
        """
        count = workers()
        keep_freed_memory()
        with one_thread_each(), ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            self.pool = pool
            whole_model = self.survey_model(every)
            pending: deque[tuple[str, Future]] = deque()
            left: dict[str, int] = {}

            def drain(limit: int) -> None:
                while len(pending) > limit:
                    name, future = pending.popleft()
                    self.add_squares(name, future.result())
                    left[name] -= 1
                    if not left[name]:
                        finished(name)

            try:
                for name in names:
                    facts = [
                        whole if whole is not None else self.survey(job, name)
                        for job, whole in zip(self.jobs, whole_model, strict=True)
                    ]
                    factors = self.factors(name)
                    blocks = row_blocks(self.shapes[name])
                    left[name] = len(blocks)
                    for rows in blocks:
                        pending.append((name, pool.submit(self.make_block, name, rows, facts, factors)))
                        drain(AHEAD * count)
                drain(0)
            finally:
                for _, future in pending:
                    future.cancel()

    def survey_model(self, names: Sequence[str]) -> list:
        """Per job, what its survey finds over all tensors; None where it surveys tensor by tensor, or not at all."""
        total = sum(math.prod(self.shapes[name]) for name in names)
        return [
            job.method.survey(self.over(job, names), total, part.shared, part.settings)
            if job.method.survey and job.method.whole_model(part.shared)
            else None
            for job in self.jobs
            for part in [job.parts[names[0]]]
        ]

    def survey(self, job: Job, name: str):
        """What a job's survey finds over one tensor; None where it has none."""
        if not job.method.survey:
            return None
        part = job.parts[name]
        return job.method.survey(self.over(job, [name]), math.prod(self.shapes[name]), part.shared, part.settings)

    def over(self, job: Job, names: Sequence[str]):
        """Passes over the blocks of some tensors, in the threads, the results in order."""

        def over(function: Callable[[Group], Any], stride: int = 1) -> list:
            def one(block) -> Any:
                name, rows = block
                tensors = self.load(job.parts[name].inputs, name, rows, stride)
                return function(self.group(job, name, rows, tensors, None))

            # a sample is small enough to take from a whole tensor at once
            cut = row_blocks if stride == 1 else whole
            found = list(self.pool.map(one, [(name, rows) for name in names for rows in cut(self.shapes[name])]))
            if stride == 1:
                self.checked.update((name, tensor) for name in names for tensor in job.parts[name].inputs)
            return found

        return over

    def group(self, job: Job, name: str, rows: tuple[int, int], tensors: Mapping[Tensor, torch.Tensor], facts) -> Group:
        part = job.parts[name]
        return Group(
            name=name,
            base=tensors[part.base] if part.base else None,
            experts=[tensors[expert] for expert in part.experts],
            shared=part.shared,
            settings=part.settings,
            keys=part.keys,
            seed=job.seed,
            start=rows[0] * math.prod(self.shapes[name][1:]),
            facts=facts,
        )

    def load(self, wanted, name: str, rows: tuple[int, int], stride: int = 1) -> dict[Tensor, torch.Tensor]:
        """A block of each input in the compute dtype. Raises InputError if one is found not to be finite."""
        found = {}
        for one in wanted:
            if one in found:
                continue
            opened = self.models[one[0]]
            tensor = opened.checkpoint.read(opened.stored(one[1]))
            if tensor.dim():
                tensor = tensor[rows[0] : rows[1]]
            tensor = tensor.reshape(-1)[::stride] if stride > 1 else tensor
            tensor = tensor.to(self.read_as) if self.read_as else tensor
            found[one] = tensor.to(self.dtype)
            if stride == 1 and (name, one) not in self.checked and not is_finite(found[one]):
                raise InputError(
                    f"{opened.checkpoint.folder}: tensor {one[1]} holds NaN or Inf; this checkpoint is damaged"
                )
        return found

    def factors(self, name: str) -> list[list[torch.Tensor | None]]:
        """Per job and target, what AIM multiplies the change by; None where it leaves the tensor alone."""
        return [[self.factor(target, name) for target in job.targets] for job in self.jobs]

    def factor(self, target: Target, name: str) -> torch.Tensor | None:
        module = target.outputs[name].module if name in target.outputs else None
        if target.omega is None or module is None:
            return None
        return aim.factor(target.statistics[module].to(self.dtype), target.omega)

    def make_block(self, name: str, rows: tuple[int, int], facts: list, factors: list) -> list[list[float]]:
        """Merge a block for every job, put it into every target. Sums of squares of the change by job and target."""
        wanted = [tensor for job in self.jobs for tensor in job.parts[name].inputs]
        references = [self.reference(job, name) for job in self.jobs]
        with torch.no_grad():
            tensors = self.load(wanted + [reference for reference in references if reference], name, rows)
            squares = []
            for job, reference, found, by_target in zip(self.jobs, references, facts, factors, strict=True):
                group = self.group(job, name, rows, tensors, found)
                merged, base = job.method.merge(group), tensors[reference] if reference else None
                squares.append(
                    [
                        put(target, name, group.start, base, merged, factor)
                        for target, factor in zip(job.targets, by_target, strict=True)
                    ]
                )
        return squares

    def reference(self, job: Job, name: str) -> Tensor | None:
        """What the change of a tensor is measured from, and AIM relaxes it towards; None where nothing asks for it."""
        if job.parts[name].base or not any(target.omega is not None for target in job.targets):
            return job.parts[name].base
        return self.frame, name

    def add_squares(self, name: str, squares: list[list[float]]) -> None:
        """Add a block's sums to its targets' totals; blocks come in order, so that the totals do not vary."""
        for job, by_target in zip(self.jobs, squares, strict=True):
            for target, value in zip(job.targets, by_target, strict=True):
                if value is not None:
                    target.squares[name] = target.squares.get(name, 0.0) + value


def put(target: Target, name: str, start: int, base, merged: torch.Tensor, factor) -> float | None:
    """Relax a merged block, round it and hand it to its target. The sum of squares of the change, given a base."""
    if name not in target.outputs:
        return None
    if factor is not None:
        merged = aim.scaled(base, merged, factor)
    target.put(name, merged.to(target.outputs[name].dtype), start)
    if base is None:
        return None
    change = merged - base
    return float(torch.dot(change.flatten(), change.flatten()))


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all entries are finite. The sum settles it in one cheap pass, unless it overflows."""
    return math.isfinite(tensor.sum()) or bool(tensor.isfinite().all())


def workers() -> int:
    """How many threads make blocks: one per core this process may use."""
    return len(os.sched_getaffinity(0))


def row_blocks(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """The rows [first, end) of each block of a tensor. A vector is one block: some methods rank the whole of it."""
    if len(shape) < 2 or math.prod(shape) <= BLOCK:
        return whole(shape)
    rows = max(1, BLOCK // math.prod(shape[1:]))
    return [(first, min(first + rows, shape[0])) for first in range(0, shape[0], rows)]


def whole(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """All rows as one block."""
    return [(0, shape[0] if shape else 1)]


def keep_freed_memory() -> None:
    """Have glibc keep what the blocks free for the next ones: it would hand it back and fault it in anew each time."""
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 64 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 256 << 20)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """One torch thread per worker: the blocks are what runs in parallel."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
