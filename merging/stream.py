"""The weights of one or several merges over the same inputs, made block by block in one reading.

A block is a few whole rows of a tensor, small enough for a core's cache. Worker threads each take a block of every
input, merge it and put it in its place in the output files; what they call releases the interpreter. What a method must
know of a whole tensor it finds in passes of its own before.
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
from pkgutil import resolve_name
from typing import Any

import torch

from merging.finishing import Target
from merging.inputs import Model
from merging.methods import Group, Method
from merging.preflight import BLOCK
from merging.reading import Reader, Rows, Tensor

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
AHEAD = 8  # blocks per worker that may be under way before the first of them must be done
FETCH_AHEAD = 256 << 20  # bytes of the inputs that are read from disk before they are needed
DEVICE_BLOCK = 1 << 24  # elements of a block on an accelerator: a launch costs as much as a small block
SMALL = 1 << 25  # elements of a model below which compiling the kernels takes longer than they save


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
    """One merge of some of the inputs: a part by output tensor. Its targets differ in relaxation and dtype only."""

    method: Method
    seed: int
    parts: Mapping[str, Part]
    targets: list[Target] = field(default_factory=list)


class Stream:
    """The reading of `models` in blocks, and the making of `jobs`."""

    def __init__(
        self, models: Mapping[str, Model], frame: str, shapes, jobs: Sequence[Job], dtype, read_as, device="cpu"
    ):
        """`frame` names the base, or the first model; `shapes` are the outputs'.

        Inputs are read as the dtype `read_as` (None: as stored) and computed with in `dtype` on `device`.
        """
        self.reader = Reader(models, dtype, read_as, device)
        self.frame, self.jobs, self.shapes = frame, jobs, shapes
        large = sum(map(math.prod, shapes.values())) >= SMALL
        self.compiled = large and device == "cpu" and dtype == torch.float32
        self.block = BLOCK if device == "cpu" else DEVICE_BLOCK

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
                for name in self.fetching_ahead(names):
                    facts = [
                        whole if whole is not None else self.survey(job, name)
                        for job, whole in zip(self.jobs, whole_model, strict=True)
                    ]
                    factors = self.factors(name)
                    blocks = row_blocks(self.shapes[name], self.block)
                    left[name] = len(blocks)
                    for rows in blocks:
                        pending.append((name, pool.submit(self.make_block, name, rows, facts, factors)))
                        drain(AHEAD * count)
                drain(0)
            finally:
                for _, future in pending:
                    future.cancel()

    def fetching_ahead(self, names: Sequence[str]) -> Iterator[str]:
        """The names, the inputs of the next ones on their way from disk."""
        coming, under_way, sizes = iter(names), 0, {}
        for name in names:
            while under_way < FETCH_AHEAD and (another := next(coming, None)) is not None:
                sizes[another] = self.reader.fetch_ahead(self.wanted(self.jobs, another))
                under_way += sizes[another]
            yield name
            under_way -= sizes[name]

    def survey_model(self, names: Sequence[str]) -> list:
        """Per job, what its survey finds over all tensors; None where it surveys tensor by tensor, or not at all."""
        total = sum(math.prod(self.shapes[name]) for name in names)
        return [
            job.method.survey(Passes(self, job, names), total, part.shared, part.settings)
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
        return job.method.survey(Passes(self, job, [name]), math.prod(self.shapes[name]), part.shared, part.settings)

    def has_kernel(self, job: Job, name: str) -> bool:
        return self.compiled and job.method.kernel is not None and len(self.shapes[name]) > 1

    def group(self, job: Job, name: str, rows: Rows, tensors: Mapping, facts) -> Group:
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

    def compute(self, function: Callable[[Group], Any], job: Job, group: Group) -> Any:
        """A kernel's result. Raises InputError if it met NaN or Inf."""
        from merging.kernels.tiles import NotFinite

        try:
            return function(group)
        except NotFinite as error:
            raise self.reader.not_finite(job.parts[group.name].inputs[error.index]) from None

    def factors(self, name: str) -> list[list[torch.Tensor | None]]:
        """Per job and target, what the change of a tensor is multiplied by; None where it is left alone."""
        reader = self.reader
        return [[target.factor_of(name, reader.dtype, reader.device) for target in job.targets] for job in self.jobs]

    def make_block(self, name: str, rows: Rows, facts: list, factors: list) -> list[list[float]]:
        """Merge a block for every job, put it into every target. Sums of squares of the change by job and target."""
        plain = [job for job in self.jobs if not self.has_kernel(job, name)]
        fused = [job for job in self.jobs if self.has_kernel(job, name)]
        squares = []
        with torch.no_grad():
            tensors = self.reader.wide(self.wanted(plain, name), rows)
            arrays = self.reader.arrays(self.wanted(fused, name), rows)
            for job, found, by_target in zip(self.jobs, facts, factors, strict=True):
                reference = self.reference(job, name)
                if self.has_kernel(job, name):
                    group = self.group(job, name, rows, arrays, found)
                    merged = self.compute(resolve_name(job.method.kernel), job, group)
                    base, takers = arrays.get(reference), [target.take_array for target in job.targets]
                else:
                    group = self.group(job, name, rows, tensors, found)
                    merged = job.method.merge(group)
                    base, takers = tensors.get(reference), [target.take for target in job.targets]
                pairs = zip(takers, by_target, strict=True)
                squares.append([take(name, group.start, base, merged, factor) for take, factor in pairs])
        return squares

    def wanted(self, jobs: Sequence[Job], name: str) -> list[Tensor]:
        """The tensors that a block of an output tensor takes, each once."""
        references = [self.reference(job, name) for job in jobs]
        inputs = [tensor for job in jobs for tensor in job.parts[name].inputs]
        return list(dict.fromkeys(inputs + [reference for reference in references if reference]))

    def reference(self, job: Job, name: str) -> Tensor | None:
        """What the change of a tensor is measured from and relaxed towards; None where nothing asks for it."""
        if job.parts[name].base or not any(target.factor for target in job.targets):
            return job.parts[name].base
        return self.frame, name

    def add_squares(self, name: str, squares: list[list[float]]) -> None:
        """Add a block's sums to its targets' totals; blocks come in order, so that the totals do not vary."""
        for job, by_target in zip(self.jobs, squares, strict=True):
            for target, value in zip(job.targets, by_target, strict=True):
                if value is not None:
                    target.squares[name] = target.squares.get(name, 0.0) + value


class Passes:
    """Passes over the blocks of some tensors for a job's survey, in the threads, the results in order."""

    def __init__(self, stream: Stream, job: Job, names: Sequence[str]):
        self.stream, self.job, self.names = stream, job, names
        # vectors have no kernel for merging, but are counted with the rest of a model
        if stream.compiled and (len(names) > 1 or stream.has_kernel(job, names[0])):
            self.stored = self._stored

    stored: Callable | None = None

    def __call__(self, function: Callable[[Group], Any], stride: int = 1) -> list:
        stream, job = self.stream, self.job

        def one(block: tuple[str, Rows]) -> Any:
            name, rows = block
            inputs = job.parts[name].inputs
            tensors = stream.reader.wide(inputs, rows) if stride == 1 else stream.reader.sample(inputs, rows, stride)
            return function(stream.group(job, name, rows, tensors, None))

        # a sample is small enough to take from a whole tensor at once
        return self._over(one, stream.block if stride == 1 else None)

    def _stored(self, function: Callable[[Group], Any], only: int | None = None) -> list:
        stream, job = self.stream, self.job

        def one(block: tuple[str, Rows]) -> Any:
            name, rows = block
            arrays = stream.reader.arrays(job.parts[name].inputs, rows)
            return stream.compute(function, job, stream.group(job, name, rows, arrays, None))

        return self._over(one, stream.block, only)

    def _over(self, one: Callable, block: int | None, only: int | None = None) -> list:
        shapes = self.stream.shapes
        blocks = [
            (name, rows)
            for name in self.names
            for rows in (row_blocks(shapes[name], block) if block else whole(shapes[name]))
        ]
        return list(self.stream.pool.map(one, blocks if only is None else [blocks[only]]))


def workers() -> int:
    """How many threads make blocks: one per core this process may use."""
    return len(os.sched_getaffinity(0))


def row_blocks(shape: tuple[int, ...], block: int) -> list[Rows]:
    """The rows [first, end) of each block of a tensor. A vector is one block: some methods rank the whole of it."""
    if len(shape) < 2 or math.prod(shape) <= block:
        return whole(shape)
    rows = max(1, block // math.prod(shape[1:]))
    return [(first, min(first + rows, shape[0])) for first in range(0, shape[0], rows)]


def whole(shape: tuple[int, ...]) -> list[Rows]:
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
