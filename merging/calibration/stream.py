"""Run a model over samples and look at its activations: one decoder layer in memory at a time, or the whole model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from merging.calibration.parts import NotStreamable, Run
from merging.calibration.watch import Seen, Watch


@dataclass(frozen=True)
class Step:
    """One sample's way through one part of a model, of `parts`, and what was seen there, in the order of the calls."""

    part: int
    parts: int
    sample: int
    inputs: Seen
    outputs: Seen


@dataclass
class States:
    """How far a run has come: the hidden states of every sample, (1, length, width), about to enter `part`."""

    part: int = 0
    hidden: list[Tensor] = field(default_factory=list)


def stream(
    folder: str | Path,
    samples: Sequence[Tensor],
    *,
    inputs: Watch | None = None,
    outputs: Watch | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    states: States | None = None,
) -> Iterator[Step]:
    """Run a model over samples with one decoder layer in memory at a time: every sample through it, then the next.

    `samples` are int64 token ids, each (length,), of any lengths; each runs alone, unpadded. Yields a Step for each
    part and sample: first every sample through part 0, the embedding; then through parts 1 to L, the decoder layers;
    then through the last, the final norm and the head. Two streams in lockstep compare two models with nothing stored.

    `inputs(name, module)` is asked once for each module with a weight, and returns what to keep of its first input (a
    function of that tensor, called at once) or None; `outputs` likewise for every module's output. Modules go by the
    names of the checkpoint's tensors without `.weight` (a tied head: by its own); the modules of a mixture's experts,
    which see the rows routed to them, are watched at their inputs alone. The head is computed only if its output is
    watched.

    Memory: a decoder layer, the hidden states (on `device`), and the embedding while part 0 runs. `states`, if given,
    is where the run begins, and is kept up to date; it may be saved at the last sample of a part.

    Raises InputError for a checkpoint that does not fit its configuration; NotStreamable, no later than in part 1, for
    an architecture that cannot be run so.
    """
    run = Run(folder, inputs, outputs, dtype, device)
    states = States() if states is None else states
    parts, last = len(run.layers) + 2, len(samples) - 1
    if not run.layers:
        raise NotStreamable(f"{folder}: its decoder layers cannot be told")
    run.mapped.load(run.always)
    if states.part == 0:
        run.mapped.load(run.embedding)
        for sample, ids in enumerate(samples):
            states.hidden.append(run.enter(ids, check=sample == 0))
            if sample == last:
                run.mapped.drop(run.embedding)
                states.part = 1
            yield Step(0, parts, sample, *run.taps.take(run.is_outside))
    for part in range(states.part, parts - 1):
        names = run.mapped.within(run.mapped.layers[part - 1])
        run.mapped.load(names)
        for sample, hidden in enumerate(states.hidden):
            run.through(part - 1, hidden)
            if sample == last:
                run.mapped.drop(names)
                states.part = part + 1
            yield Step(part, parts, sample, *run.taps.take(run.is_within(part - 1)))
    run.load_head()
    for sample, hidden in enumerate(states.hidden):
        run.leave(hidden)
        yield Step(parts - 1, parts, sample, *run.taps.take(run.is_tail))


def whole(
    folder: str | Path,
    samples: Sequence[Tensor],
    *,
    inputs: Watch | None = None,
    outputs: Watch | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Iterator[Step]:
    """As `stream`, with the whole model in memory: one Step for each sample."""
    run = Run(folder, inputs, outputs, dtype, device)
    run.mapped.load_all()
    for sample, ids in enumerate(samples):
        run.forward(input_ids=ids[None].to(device))
        yield Step(0, 1, sample, *run.taps.take(lambda _: True))
