"""What this host lets a job do, whoever has written the job into Redis: looked at between its claim and its start.

A spec that comes out of Redis has passed its schema once more by then (`runner.store_records`), so its paths are
relative and know no `..`. Here they meet this host's own folders and settings. What no setting permits at all is not
looked at here: code that a model or dataset brings along is never run, and weights are read in the safetensors format
only (`runner.training.loading`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from runner.errors import HostRefusesError
from runner.settings import RunnerSettings
from runner.spec import RunSpec


def check_host_limits(spec: RunSpec, settings: RunnerSettings) -> None:
    """Hold a job's spec against the limits of this host.

    Raises:
        HostRefusesError: It breaks some; names all of them, each with the setting.
    """
    found = [*_of_the_model(spec, settings), *_of_the_data(spec, settings), *_of_the_output(spec, settings)]
    if found:
        raise HostRefusesError(
            f"Host {settings.host} refuses this job: {'; '.join(found)}.",
            hint="Change the project, or have this host's operator change the setting and restart its worker.",
        )


def _of_the_model(spec: RunSpec, settings: RunnerSettings) -> Iterator[str]:
    name = spec.project.base_model
    if not _allowed(name, settings.allow_models):
        yield f"QLORA_ALLOW_MODELS ({', '.join(settings.allow_models)}) does not name the base model {name!r}"
    folder = settings.models_root / name
    if folder.exists() and not _lies_in(folder, settings.models_root):
        yield f"{folder} is a link that leaves QLORA_MODELS_ROOT"


def _of_the_data(spec: RunSpec, settings: RunnerSettings) -> Iterator[str]:
    for dataset_id, entry in sorted(spec.datasets.items()):
        if entry.hub is not None and not _allowed(entry.hub, settings.allow_datasets):
            allowed = ", ".join(settings.allow_datasets)
            yield f"QLORA_ALLOW_DATASETS ({allowed}) does not name dataset {dataset_id}, {entry.hub!r}"
        if entry.path is not None:
            yield from (
                f"dataset {dataset_id}: {path} is a link that leaves QLORA_PROJECTS_DIR"
                for path in _with_contents(settings.projects_dir / entry.path)
                if not _lies_in(path, settings.projects_dir)
            )


def _of_the_output(spec: RunSpec, settings: RunnerSettings) -> Iterator[str]:
    folder = settings.output_root / spec.project.output_directory
    if not _lies_in(folder, settings.output_root):
        yield f"{folder} is a link that leaves QLORA_OUTPUT_ROOT"


def _allowed(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _with_contents(path: Path) -> Iterator[Path]:
    """A file or folder, and every link below it, whatever it leads to."""
    yield path
    for current, folders, files in os.walk(path):
        yield from (inner for name in (*folders, *files) if (inner := Path(current) / name).is_symlink())


def _lies_in(path: Path, root: Path) -> bool:
    """Whether a path, with all links followed, lies below a root with all links followed. What is not there does."""
    try:
        return path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # A link that leads in a circle; Python before 3.13 raises the latter.
        return False
