"""Activation statistics of a base model on a calibration set (AIM, arXiv 2502.02421)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from merging.calibration.partial import Partial
from merging.calibration.stream import NotStreamable, States, Step, stream, whole
from merging.checkpoint import Checkpoint
from merging.digest import CALIBRATION_VERSION, json_digest, model_digest, model_files
from merging.errors import InputError

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]


class MeanAbsolute:
    """The mean over rows of `|x|` for each channel, fp32, and the number of rows.

    Modules side by side (q, k and v) get the very same tensor, which is looked at once.
    """

    def __init__(self):
        self._last: tuple[Tensor, tuple[Tensor, int]] | None = None

    def __call__(self, x: Tensor) -> tuple[Tensor, int]:
        if self._last is None or self._last[0] is not x:
            rows = x.detach().flatten(0, -2)
            self._last = x, (rows.abs().mean(0, dtype=torch.float32), len(rows))
        return self._last[1]


class Sums:
    """Means summed over the blocks, and the rows they rest on, by module."""

    def __init__(self):
        self.vectors: dict[str, Tensor] = {}
        self.rows: dict[str, int] = {}
        self._look = MeanAbsolute()

    def watch(self, name: str, module: nn.Module) -> MeanAbsolute | None:
        """How to look at a module's input; what goes into an embedding is no activation."""
        if isinstance(module, nn.Embedding):
            return None
        self.rows.setdefault(name, 0)
        return self._look

    def add(self, step: Step) -> None:
        for name, (mean, rows) in step.inputs:
            known = self.vectors.get(name)
            self.vectors[name] = mean.clone() if known is None else known.add_(mean)
            self.rows[name] += rows


def calibrate(
    model_dir: str | Path,
    blocks: Tensor,
    out: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    streamed: bool = True,
    progress: Progress | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the activation statistics of a model to the safetensors file `out`.

    One fp32 vector per module that has a weight (embeddings excepted), named as the checkpoint's tensors: the mean over
    tokens of `|x|` per channel of the module's first input, summed over `blocks` (int64, (blocks, length)), one block a
    time. An expert of a mixture rests on the tokens routed to it; zeros where there were none. The model runs in
    `dtype`; sums are fp32.

    `streamed` keeps one decoder layer in memory at a time (see `stream`; an architecture that cannot be run so is run
    whole), otherwise the whole model is. A streamed run that was interrupted goes on from the last finished layer when
    it is called again. `progress(done, total, label)` is called after each block's way through a layer.

    The file's metadata are `metadata` (its `model`, if known, is the model's digest) with the number of blocks and
    tokens, the dtype, and `routed_tokens`: JSON, how many tokens each module saw that did not see all.

    Raises InputError for a model that cannot be read or whose activations are not finite, TransientError if another
    process is making the same file.
    """
    about = dict(metadata or {})
    about["model"] = about.get("model") or model_digest(model_files(model_dir))
    partial = Partial(Path(out), statistics_key(about["model"], blocks, dtype))
    options = {"dtype": dtype, "device": device}
    try:
        try:
            sums = run_streamed(model_dir, blocks, partial, options, progress) if streamed else None
        except NotStreamable as why:
            log.warning("%s; the whole model is loaded instead", why)
            sums = None
        sums = sums or run_whole(model_dir, blocks, options, progress)
        about |= {"blocks": str(len(blocks)), "tokens": str(blocks.numel()), "dtype": str(dtype).split(".")[1]}
        fewer = {name: rows for name, rows in sorted(sums.rows.items()) if rows != blocks.numel()}
        about |= {"routed_tokens": json.dumps(fewer)} if fewer else {}
        vectors = with_idle_modules(sums, Checkpoint(model_dir))
        if problems := unbounded(model_dir, vectors, about["dtype"]):
            partial.discard()
            raise InputError(problems)
        partial.finish(vectors, about)
    finally:
        partial.release()


def statistics_key(model: str, blocks: Tensor, dtype: torch.dtype = torch.float32) -> str:
    """What statistics are of: a model's digest, token ids (blocks, length), and the dtype the model ran in."""
    contents = hashlib.sha256(blocks.contiguous().numpy().tobytes()).hexdigest()
    return json_digest([CALIBRATION_VERSION, model, contents, list(blocks.shape), str(dtype)])


def run_streamed(model_dir, blocks: Tensor, partial: Partial, options, progress: Progress | None) -> Sums:
    """The sums of a streamed run, from where an earlier one got to."""
    sums, states = Sums(), States()
    if found := partial.load(options["device"]):
        states, sums.vectors, sums.rows = found
    for step in stream(model_dir, blocks, inputs=sums.watch, states=states, **options):
        sums.add(step)
        if step.sample == len(blocks) - 1 and step.part < step.parts - 1:
            partial.save(states, sums.vectors, sums.rows)
        if progress:
            done = step.part * len(blocks) + step.sample + 1
            progress(done, step.parts * len(blocks), f"calibration, part {step.part + 1} of {step.parts}")
    return sums


def run_whole(model_dir, blocks: Tensor, options, progress: Progress | None) -> Sums:
    """The sums of a run with the whole model in memory."""
    sums = Sums()
    for step in whole(model_dir, blocks, inputs=sums.watch, **options):
        sums.add(step)
        if progress:
            progress(step.sample + 1, len(blocks), "calibration block")
    return sums


def with_idle_modules(sums: Sums, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The sums on the CPU, with zeros for the modules that saw nothing, as wide as their weights."""
    vectors = {name: vector.cpu() for name, vector in sums.vectors.items()}
    for name, rows in sums.rows.items():
        if rows == 0 and (entry := checkpoint.entries.get(name + ".weight")):
            vectors[name] = torch.zeros(entry.shape[-1])
    return vectors


def unbounded(model_dir, vectors: Mapping[str, Tensor], dtype: str) -> list[str]:
    """A line for the first module, in the order of the model, that saw NaN or Inf."""
    bad = next((name for name, vector in vectors.items() if not bool(vector.isfinite().all())), None)
    advice = "its weights are damaged" if dtype == "float32" else "run it in float32"
    return [f"{model_dir}: what goes into {bad} is not finite on the calibration set; {advice}"] if bad else []
