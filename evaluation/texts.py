"""Calibration texts from a data set."""

from __future__ import annotations

from collections.abc import Iterator

from merging.errors import InputError, TransientError

SHUFFLE_SEED = 42  # of the published calibration set (arXiv 2502.02421)


def dataset_texts(name: str, revision: str | None, split: str, field: str, token: str | None = None) -> Iterator[str]:
    """The texts in one field of a data set (a hub id at a commit, or a local folder), shuffled with seed 42.

    Raises InputError for a split or field it does not have, TransientError if it cannot be loaded.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import HTTPError

    try:
        rows = load_dataset(name, revision=revision, split=split, token=token)
    except DatasetNotFoundError as error:
        raise InputError(f"data set {name}: {' '.join(str(error).split())}") from None
    except ValueError as error:
        raise InputError(f"data set {name}: {' '.join(str(error).split())}") from None
    except (OSError, HTTPError) as error:
        raise TransientError(f"data set {name} cannot be loaded: {' '.join(str(error).split())}") from None
    if field not in rows.column_names:
        raise InputError(f"data set {name}, split {split}: no field {field!r}; it has {', '.join(rows.column_names)}")
    return (row[field] for row in rows.shuffle(seed=SHUFFLE_SEED))
