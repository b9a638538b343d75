"""Reaches everything that a run reads from outside this host, and tells all refusals at once."""

from __future__ import annotations

from pathlib import Path

from runner.errors import TrainingError, joined, noted
from runner.spec import RunSpec
from runner.training.data.hub_datasets import pin_datasets
from runner.training.loading.base_model import BaseModel, locate_base_model


def reach_sources(spec: RunSpec, models_root: Path) -> tuple[BaseModel, RunSpec]:
    """Find the base model and every hub dataset.

    A branch may move: whoever verifies, resumes or repeats this run needs the very commits.

    Args:
        spec: Names them.
        models_root: Where local base models lie on this host.

    Returns:
        The base model with its small files here, and the specification pinned to the commits that were found.

    Raises:
        ModelAccessError, DatasetError: One of them is not there or refused; tells of all.
        DiskFullError: No space for the download.
    """
    refused: list[TrainingError] = []
    source = None
    with noted(refused):
        source = locate_base_model(spec, models_root)
    with noted(refused):
        spec = pin_datasets(spec)
    if source is None or refused:
        raise joined(refused) from refused[0]
    if source.revision is not None:
        spec = spec.model_copy(update={"project": spec.project.model_copy(update={"revision": source.revision})})
    return source, spec
