"""The commits that a job's hub model and hub datasets are read at, the same in all of its attempts."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import ValidationError

from runner.spec import RunSpec

_ATTEMPT = re.compile(r"attempt-(\d+)")


def with_earlier_pins(spec: RunSpec, run_dir: Path) -> RunSpec:
    """Take over the commits of this job's latest earlier attempt.

    A branch may have moved since; then the attempt would find other data than its checkpoint was trained on.

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
        if earlier.datasets.keys() != spec.datasets.keys():
            continue  # of another job
        project = spec.project.model_copy(update={"revision": earlier.project.revision})
        pinned = {
            dataset_id: entry.model_copy(update={"revision": earlier.datasets[dataset_id].revision})
            for dataset_id, entry in spec.datasets.items()
        }
        return spec.model_copy(update={"project": project, "datasets": pinned})
    return spec
