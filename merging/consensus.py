"""How much two models' activations have in common on some texts: the statistics ACM rests on (arXiv 2505.14009)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from merging.acm import Consensus
from merging.calibration.partial import Partial
from merging.calibration.stream import NotStreamable, States, Step, stream, whole
from merging.calibration.texts import load_tokenizer, refuse_unknown_tokens
from merging.digest import CONSENSUS_VERSION, json_digest, model_digest, model_files
from merging.errors import InputError
from merging.inputs import differences, open_model
from merging.layers import layer_of
from merging.mutual_information import NotANumber, mutual_information
from merging.vocabulary import HEADS

# the block of a decoder layer whose output stands for the layer, and the last linear of one that is no mixture
BLOCK = re.compile(r"\.\d+\.(mlp|block_sparse_moe|feed_forward)$")
LAST = ("down_proj", "dense_4h_to_h", "fc2", "c_proj")
OWN = re.compile(rf"{BLOCK.pattern.removesuffix('$')}\.({'|'.join(LAST)})$")


def text_samples(
    texts: Iterable[str], model_dir: str | Path, samples: int | None = None, longest: int | None = None
) -> list[Tensor]:
    """Each text as token ids of its own, int64 (length,), by a model's tokenizer with its special tokens.

    The first `samples` that hold a token (None: all), cut to `longest` tokens (None: uncut). InputError for none, or
    for a token the model does not have.
    """
    tokenizer = load_tokenizer(model_dir)
    found = []
    for text in texts:
        if len(found) == samples:
            break
        if ids := tokenizer.encode(text)[:longest]:
            found.append(torch.tensor(ids, dtype=torch.int64))
    if not found:
        raise InputError("consensus: the texts give no token")
    refuse_unknown_tokens("consensus", torch.cat(found)[None], model_dir)
    return found


def measure(
    base: str | Path,
    against: str | Path,
    samples: Sequence[Tensor],
    out: str | Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    progress: Callable[[int, int, str], None] | None = None,
    digests: tuple[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Consensus:
    """Write the mutual information of two models' outputs on samples of token ids (length,) to the file `out`.

    Of each decoder layer it is that of the outputs of its MLP (its last linear, or a mixture's whole block), of the
    modules outside the layers of their own. Both models run in `dtype`, a decoder layer of each in memory at a time
    (or whole, where they cannot be run so); what they give is rounded to bfloat16. A run that was interrupted goes on
    from the last finished layer when it is called again.

    `digests` are the two models' where they are known; `metadata` goes into the file. Raises InputError where the two
    do not fit together or an activation is NaN, TransientError if another process is making the same file.
    """
    models = [open_model(str(folder), Path(folder)) for folder in (base, against)]
    if problems := differences(*models):
        raise InputError(problems)
    digests = digests or tuple(model_digest(model_files(folder)) for folder in (base, against))
    partial = Partial(Path(out), consensus_key(digests, samples, dtype))
    try:
        run = Comparison((base, against), samples, {"outputs": watch, "dtype": dtype, "device": device})
        try:
            run.streamed(partial, progress)
        except NotStreamable:
            run.whole(progress)
        refuse_unwatched(base, models[0].tensors, run.information)
        found = Consensus(run.information, [len(ids) for ids in samples], *digests)
        partial.finish(run.information, {**(metadata or {}), **found.about, "dtype": str(dtype).split(".")[1]})
    finally:
        partial.release()
    return found


def consensus_key(digests: tuple[str, str], samples: Sequence[Tensor], dtype: torch.dtype = torch.bfloat16) -> str:
    """What is measured, whatever the samples' tokens come from; `digests` are the two models'."""
    lengths = [len(ids) for ids in samples]
    contents = hashlib.sha256(torch.cat(list(samples)).numpy().tobytes()).hexdigest()
    return json_digest([CONSENSUS_VERSION, *digests, lengths, contents, str(dtype)])


class Comparison:
    """Two models running over the same samples, and what their outputs have in common, nats by module (samples,)."""

    def __init__(self, folders: tuple[str | Path, str | Path], samples: Sequence[Tensor], settings: dict):
        self.folders, self.samples, self.settings = folders, samples, settings
        self.information: dict[str, Tensor] = {}

    def streamed(self, partial: Partial, progress) -> None:
        """Layer by layer, from where an earlier run got to."""
        count = len(self.samples)
        states = [States(), States()]
        if left := partial.load(self.settings["device"]):
            both, self.information, _ = left
            self.information = {module: values.cpu() for module, values in self.information.items()}
            states = [States(both.part, both.hidden[:count]), States(both.part, both.hidden[count:])]
        pair = zip(self.folders, states, strict=True)
        runs = [stream(folder, self.samples, states=one, **self.settings) for folder, one in pair]
        for ours, theirs in zip(*runs, strict=True):
            self.compare(ours, theirs, progress)
            if ours.sample == count - 1 and ours.part < ours.parts - 1:
                partial.save(States(states[0].part, states[0].hidden + states[1].hidden), self.information, {})

    def whole(self, progress) -> None:
        """With both models in memory."""
        runs = [whole(folder, self.samples, **self.settings) for folder in self.folders]
        for ours, theirs in zip(*runs, strict=True):
            self.compare(ours, theirs, progress)

    def compare(self, ours: Step, theirs: Step, progress) -> None:
        count = len(self.samples)
        for (module, a), (_, b) in zip(ours.outputs, theirs.outputs, strict=True):
            values = self.information.setdefault(module, torch.full((count,), torch.nan, dtype=torch.float64))
            values[ours.sample] = in_common(module, a, b, self.folders)
        if progress:
            done = ours.part * count + ours.sample + 1
            progress(done, ours.parts * count, f"consensus, part {ours.part + 1} of {ours.parts}")


def watch(name: str, module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """What ACM looks at: of a module of this name, its whole output or nothing."""
    if layer_of(name) is None:
        wanted = isinstance(getattr(module, "weight", None), nn.Parameter)
    elif BLOCK.search(name):
        wanted = not any(hasattr(module, last) for last in LAST)
    else:
        wanted = bool(OWN.search(name))
    return (lambda output: output) if wanted else None


def in_common(module: str, a: Tensor, b: Tensor, folders) -> float:
    """The mutual information of two outputs of a module, nats; of a head, over the tokens that both have."""
    if f"{module}.weight" in HEADS:
        width = min(a.shape[-1], b.shape[-1])
        a, b = a[..., :width], b[..., :width]
    try:
        return mutual_information(a, b)
    except NotANumber:
        bad = folders[0] if bool(a.isnan().any()) else folders[1]
        raise InputError(f"{bad}: the output of {module} is NaN on the calibration texts; run it in float32") from None


def refuse_unwatched(folder, tensors: Iterable[str], information) -> None:
    """Raises InputError for a decoder layer with no output to stand for it."""
    wanted = {layer for tensor in tensors if (layer := layer_of(tensor)) is not None}
    lacking = wanted - {layer_of(module) for module in information}
    if lacking:
        raise InputError(f"{folder}: no MLP was found in decoder layer {min(lacking)}; ACM cannot measure this model")
