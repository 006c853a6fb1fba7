"""What a calibration that was interrupted goes on from: `OUT.partial/`, beside the file to make."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import torch
from torch import Tensor

from merging.calibration.stream import States
from merging.errors import InputError
from merging.output import lock
from merging.tensor_file import Writer, save_tensors

STATE, RESULT = "state.safetensors", "statistics.safetensors"
SHARE, ALWAYS = 0.1, 0.2  # saving may take this share of the time, or this many seconds each


class Partial:
    """The folder `OUT.partial`, held by this process: the hidden states and sums after the last part that was saved."""

    def __init__(self, out: Path, key: str):
        """`key` says what is made, so that only the same run goes on. Raises InputError if another thing is in the way.

        TransientError if another process is at it.
        """
        self.out, self._key = out, key
        if out.is_dir():
            raise InputError(f"{out}: is a folder; name the file to make")
        self.folder = out.with_name(out.name + ".partial")
        if self.folder.exists() and not set(os.listdir(self.folder)) <= {STATE, STATE + ".new", RESULT}:
            raise InputError(f"{self.folder}: is in the way and was not left by a calibration; move it")
        self._lock = lock(self.folder)
        self._saved, self._cost = time.monotonic(), 0.0

    def load(self, device: str | torch.device) -> tuple[States, dict[str, Tensor], dict[str, int]] | None:
        """The states, sums and row counts that the same calibration left, on a device."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.folder / STATE, "pt") as file:
                about = file.metadata() or {}
                if about.get("key") != self._key:
                    return None
                found = {name: file.get_tensor(name).to(device) for name in sorted(file.keys())}
        except (OSError, SafetensorError):
            return None
        hidden = [tensor for name, tensor in found.items() if name.startswith("hidden.")]
        sums = {name.removeprefix("sum."): tensor for name, tensor in found.items() if name.startswith("sum.")}
        return States(int(about["part"]), hidden), sums, json.loads(about["rows"])

    def save(self, states: States, sums: dict[str, Tensor], rows: dict[str, int]) -> None:
        """Keep where a run has come to, unless that would take up too much of its time."""
        started = time.monotonic()
        if self._cost > max(ALWAYS, SHARE * (started - self._saved)):
            return
        tensors = {f"hidden.{index:09}": hidden for index, hidden in enumerate(states.hidden)}
        tensors |= {f"sum.{name}": vector for name, vector in sums.items()}
        described = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        about = {"key": self._key, "part": str(states.part), "rows": json.dumps(rows)}
        with Writer(self.folder / (STATE + ".new"), described, about) as writer:
            for name, tensor in tensors.items():
                writer.write(name, tensor.cpu())
        os.replace(self.folder / (STATE + ".new"), self.folder / STATE)
        self._saved = time.monotonic()
        self._cost = self._saved - started

    def finish(self, vectors: dict[str, Tensor], about: dict[str, str]) -> None:
        """Write the file to make, which appears whole, and remove the folder."""
        save_tensors(self.folder / RESULT, vectors, about)
        os.replace(self.folder / RESULT, self.out)
        shutil.rmtree(self.folder)

    def discard(self) -> None:
        """Forget what was saved: nothing can be made of it."""
        for name in os.listdir(self.folder):
            (self.folder / name).unlink()

    def release(self) -> None:
        """Let others at it; a folder that nothing was saved in goes."""
        if self.folder.exists() and not os.listdir(self.folder):
            self.folder.rmdir()
        os.close(self._lock)
