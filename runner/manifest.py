"""The manifest of an adapter: what it was made from, and how that differs from what this host has. No torch.

`runner.training.outcome.adapter` writes it; a replay, a merge and a push read it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from runner.device import describe_device
from runner.errors import UsageError
from runner.provenance import DIRTY, fingerprint_base_model, fingerprint_data, git_revision
from runner.reports import Rung, RunSummary
from runner.settings import RunnerSettings
from runner.spec import RunSpec
from runner.versions import report_versions

MANIFEST = "manifest.json"
_JOB_ID = re.compile(r"[a-z0-9][a-z0-9_-]*")
_SHOWN = 12
"""Characters of a digest that people get to see."""


class _Part(BaseModel):
    """Reads what it needs and lets pass what later versions write beside it."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class DataPart(_Part):
    """One dataset of one trait."""

    dataset_id: int
    sha256: str


class Metrics(_Part):
    """The outcome."""

    summary: RunSummary


class Manifest(_Part):
    """What a replay, a merge and a push need of a `manifest.json`."""

    created_at: AwareDatetime
    rung: Rung
    spec: RunSpec
    """With the commit of a hub model as `revision`."""
    git_revision: str | None = None
    versions: dict[str, str | None]
    """Library or `python` to version."""
    device: str
    data: tuple[DataPart, ...]
    base_fingerprint: str | None = None
    """Of a local base model; None for a hub model, whose commit says all."""
    weights_sha256: str | None = None
    """Of `adapter_model.safetensors`; None in a manifest of an earlier version."""
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not here what it was when the adapter was made."""

    what: str
    then: str
    here: str
    grave: bool
    """Whether another adapter must come out: other data or another base model."""
    missing: bool = False
    """Whether it is not here at all, so that no replay is possible."""

    def __str__(self) -> str:
        return f"{self.what}: {self.then} then, {self.here} here"


def find_adapter(named: str, output_root: Path) -> Path:
    """Find an adapter's folder.

    Args:
        named: A folder with an adapter, its manifest.json, a run directory or its attempt, or a job's id.
        output_root: Where the folders of jobs are looked for.

    Raises:
        UsageError: There is none (`adapter-missing`).
    """
    path = Path(named).absolute()
    if path.name == MANIFEST and path.is_file():
        return path.parent
    for folder in (path, path / "adapter", path.parent / "adapter") if path.is_dir() else ():
        if (folder / "adapter_config.json").is_file():
            return folder
    if path.is_dir():
        raise UsageError(
            f"There is no adapter in {path}.",
            hint="A run leaves one when it has succeeded; give its folder, its manifest.json or the job's id.",
            code="adapter-missing",
        )
    if path.exists():
        raise UsageError(
            f"{named} is no adapter, and no {MANIFEST} of one.",
            hint="Give an adapter's folder, its manifest.json, a run directory or a job's id.",
            code="adapter-missing",
        )
    if _JOB_ID.fullmatch(named):
        for job_dir in _job_dirs(output_root, named):
            if (job_dir / "adapter" / "adapter_config.json").is_file():
                return job_dir / "adapter"
    raise UsageError(
        f"There is no file or folder {named}, and no finished job of that id in {output_root}.",
        hint="Give an adapter's folder, its manifest.json, or a job's id; QLORA_OUTPUT_ROOT says where jobs lie.",
        code="adapter-missing",
    )


def _job_dirs(output_root: Path, job_id: str) -> Iterator[Path]:
    """Folders of that name at any depth, because a project's output_directory may have several parts."""
    for current, folders, _ in os.walk(output_root):
        if job_id in folders:
            yield Path(current) / job_id
        # Nothing of a job lies below its own attempts.
        folders[:] = [name for name in folders if not name.startswith("attempt-") and name != "adapter"]


def read_manifest(adapter: Path) -> Manifest:
    """Read the manifest in an adapter's folder.

    Raises:
        UsageError: There is none, or it is none of ours (`manifest-unreadable`).
    """
    path = adapter / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        reason = error.strerror or str(error)
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
    raise UsageError(
        f"{path} cannot be read as a manifest: {reason}.",
        hint="Only adapters that this project's runs have left can be used here.",
        code="manifest-unreadable",
    )


def find_differences(manifest: Manifest, settings: RunnerSettings) -> list[Difference]:
    """Compare what the adapter was made from with what this host has; the grave ones first."""
    found = [*_data_differences(manifest, settings), *base_differences(manifest, settings.models_root)]
    installed = report_versions(describe_device())
    here = {package.name: package.installed for package in installed.packages} | {"python": installed.python}
    found += [
        Difference(name, then or "none", here.get(name) or "none", grave=False)
        for name, then in manifest.versions.items()
        if here.get(name) != then
    ]
    if _kind_of(manifest.device) != _kind_of(installed.device):
        found.append(Difference("device", manifest.device, installed.device, grave=False))
    revision = git_revision(settings.projects_dir)
    if revision != manifest.git_revision:
        then, now = (_short(commit) if commit else "none" for commit in (manifest.git_revision, revision))
        found.append(Difference("git revision of the projects", then, now, grave=False))
    return found


def _data_differences(manifest: Manifest, settings: RunnerSettings) -> Iterator[Difference]:
    for dataset_id, then in {part.dataset_id: part.sha256 for part in manifest.data}.items():
        entry = manifest.spec.datasets[dataset_id]
        if entry.path is None:
            continue  # the specification names its commit on the hub
        what = f"dataset {dataset_id} ({entry.path})"
        path = settings.projects_dir / entry.path
        if not path.exists():
            yield Difference(what, then[:_SHOWN], f"not in {settings.projects_dir}", grave=True, missing=True)
        elif (now := fingerprint_data(path)) != then:
            yield Difference(what, then[:_SHOWN], now[:_SHOWN], grave=True)


def base_differences(manifest: Manifest, models_root: Path) -> list[Difference]:
    """Compare the base model that the adapter was trained on with the one that is here."""
    return list(_base_differences(manifest, models_root))


def _base_differences(manifest: Manifest, models_root: Path) -> Iterator[Difference]:
    project = manifest.spec.project
    folder = models_root / project.base_model
    what, then = f"base model {project.base_model}", manifest.base_fingerprint
    if then is None:
        if project.revision is None:
            yield Difference(what, "no fingerprint kept", f"the folder {folder}", grave=False)
        elif folder.is_dir():
            commit = f"commit {project.revision[:_SHOWN]} of the hub"
            yield Difference(what, commit, f"the folder {folder}", grave=True)
    elif not folder.is_dir():
        yield Difference(what, then[:_SHOWN], f"not in {models_root}", grave=True, missing=True)
    elif (now := fingerprint_base_model(folder)) != then:
        yield Difference(what, then[:_SHOWN], now[:_SHOWN], grave=True)


def _short(commit: str) -> str:
    return commit[:_SHOWN] + (DIRTY if commit.endswith(DIRTY) else "")


def _kind_of(device: str) -> str:
    """The device's name without what counts it: threads, cards, memory."""
    return re.sub(r"^\d+ x | \(.*$", "", device)
