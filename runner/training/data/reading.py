"""Reads the datasets that a project names into rows, wherever they are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from runner.errors import TrainingError, joined, noted
from runner.rows import DatasetRows, read_rows
from runner.spec import DatasetEntry, RunSpec
from runner.training.data.hub_datasets import load_folder, load_hub_dataset, pin_datasets


def read_datasets(spec: RunSpec, dataset_ids: Iterable[int], projects_dir: Path) -> dict[int, DatasetRows]:
    """Read datasets whole.

    Args:
        spec: Its catalog entries say where each is and how it is laid out.
        dataset_ids: The keys of those to read.
        projects_dir: The folder that data paths are relative to.

    Returns:
        By dataset id: the rows in one of three formats, and a fingerprint of what was read.

    Raises:
        DatasetError: Datasets are missing or malformed; names each with its first few rows.
        DiskFullError: One does not fit into the library's cache.
    """
    datasets = pin_datasets(spec).datasets
    read: dict[int, DatasetRows] = {}
    refused: list[TrainingError] = []
    for dataset_id in dataset_ids:
        with noted(refused):
            read[dataset_id] = _read(datasets[dataset_id], projects_dir)
    if refused:
        raise joined(refused) from refused[0]
    return read


def _read(entry: DatasetEntry, projects_dir: Path) -> DatasetRows:
    if entry.path is None:
        return load_hub_dataset(entry)
    path = projects_dir / entry.path
    return load_folder(entry, path) if path.is_dir() else read_rows(path, entry.layout)
