"""Links in a model's folder."""

from __future__ import annotations

from pathlib import Path


def stays_inside(folder: Path, path: Path) -> bool:
    """Whether a file is one of a model folder's own, links followed; any other link may lead to a secret.

    The hub's cache links each file of a snapshot to ../../blobs.
    """
    real, root = path.resolve(), folder.resolve()
    is_snapshot = root.parent.name == "snapshots"
    return real.is_relative_to(root) or (is_snapshot and real.parent == root.parent.parent / "blobs")
