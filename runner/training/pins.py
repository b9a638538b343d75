"""The commits that a job's hub model and hub datasets are read at, the same in all of its attempts."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import ValidationError

from runner.spec import DatasetEntry, RunSpec

_ATTEMPT = re.compile(r"attempt-(\d+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit, which never moves, and no branch or tag."""
    return _COMMIT.fullmatch(revision or "") is not None


def with_earlier_pins(spec: RunSpec, run_dir: Path) -> RunSpec:
    """Take over the commits of this job's earlier attempts, the latest one's first.

    A branch may have moved since; then the attempt would find other data than its checkpoint was trained on. An attempt
    that ended before it had looked at the hub knows none, and one before it may. A commit that the project itself names
    stands.

    Args:
        spec: As the job was submitted.
        run_dir: The attempt's folder. Only a folder named `attempt-<n>` has earlier ones beside it.
    """
    own = _ATTEMPT.fullmatch(run_dir.name)
    if own is None:
        return spec
    numbers = (int(found[1]) for path in run_dir.parent.iterdir() if (found := _ATTEMPT.fullmatch(path.name)))
    for number in sorted((number for number in numbers if number < int(own[1])), reverse=True):
        try:
            earlier = RunSpec.model_validate_json((run_dir.parent / f"attempt-{number}" / "spec.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            continue  # a kill may have left no spec or half of one
        spec = _with_pins_of(earlier, spec)
    return spec


def _with_pins_of(earlier: RunSpec, spec: RunSpec) -> RunSpec:
    """Pin what is not yet pinned and was read from the same place."""
    project, before = spec.project, earlier.project
    if project.base_model == before.base_model and is_commit(before.revision) and not is_commit(project.revision):
        project = project.model_copy(update={"revision": before.revision})
    datasets = {id_: _pinned(entry, earlier.datasets.get(id_)) for id_, entry in spec.datasets.items()}
    return spec.model_copy(update={"project": project, "datasets": datasets})


def _pinned(entry: DatasetEntry, before: DatasetEntry | None) -> DatasetEntry:
    if before is None or entry.hub is None or entry.hub != before.hub:
        return entry
    if is_commit(entry.revision) or not is_commit(before.revision):
        return entry
    return entry.model_copy(update={"revision": before.revision})
