"""Reads the datasets that a project names into rows, wherever they are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from runner.rows import DatasetRows, read_rows
from runner.spec import RunSpec


def read_datasets(spec: RunSpec, dataset_ids: Iterable[int], projects_dir: Path) -> dict[int, DatasetRows]:
    """Read datasets whole.

    Args:
        spec: Its catalog entries say where each is and how it is laid out.
        dataset_ids: The keys of those to read.
        projects_dir: The folder that data paths are relative to.

    Returns:
        By dataset id: the rows in one of three formats, and a fingerprint of what was read.

    Raises:
        DatasetError: A dataset is missing or malformed; names it and the first few rows.
    """
    return {id_: read_rows(projects_dir / spec.datasets[id_].path, spec.datasets[id_].layout) for id_ in dataset_ids}
