"""Whether a host has the data that a job was started with: its local data files, and the commit of the projects folder.

Whoever submits looks at his copy; every host that claims the job looks at its own. Both are cheap: the digest of a file
that has not changed since is remembered.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from runner.errors import UnavailableError
from runner.provenance import DIRTY, fingerprint_data, fingerprint_file, git_revision
from runner.settings import RunnerSettings
from runner.spec import DataCopy, RunSpec

_REMEMBERED = 10_000
"""Files whose digest a process remembers."""
_SHOWN = 12
"""Characters of a commit that people get to see."""


def with_data_copies(spec: RunSpec, projects_dir: Path) -> RunSpec:
    """Write into a spec what local data this machine has for it, and at which commit.

    Raises:
        UnavailableError: A data file cannot be read any more.
    """
    try:
        copies = {
            dataset_id: _look_at(projects_dir / entry.path)
            for dataset_id, entry in spec.datasets.items()
            if entry.path is not None
        }
    except OSError as error:
        raise UnavailableError(
            f"The data file {error.filename} cannot be read: {error.strerror}.", hint="Start the job again."
        ) from error
    return spec.model_copy(update={"data": copies, "projects_revision": git_revision(projects_dir)})


def tell_differences(spec: RunSpec, settings: RunnerSettings) -> str | None:
    """What this host's copy of a job's local data lacks, and how to mend it; None where it is the submitter's."""
    found = []
    for dataset_id, then in sorted(spec.data.items()):
        entry = spec.datasets.get(dataset_id)
        if entry is None or entry.path is None:
            continue
        try:
            here = _look_at(settings.projects_dir / entry.path)
        except FileNotFoundError:
            found.append(f"{entry.path} is not there")
        except OSError as error:
            found.append(f"{entry.path} cannot be read ({error.strerror})")
        else:
            if here.sha256 != then.sha256:
                sizes = f", {here.bytes} bytes instead of {then.bytes}" if here.bytes != then.bytes else ""
                found.append(f"{entry.path} has other content{sizes}")
    if not found:
        return None
    here_at, there_at = git_revision(settings.projects_dir), spec.projects_revision
    return (
        f"{'; '.join(found)}. Its copy {settings.projects_dir} is at {_commit(here_at)}, the job was started at "
        f"{_commit(there_at)}. {_remedy(here_at, there_at)}"
    )


def _look_at(path: Path) -> DataCopy:
    files = [path] if not path.is_dir() else [file for file in path.rglob("*") if file.is_file()]
    return DataCopy(sha256=fingerprint_data(path, of_file=_digest_of), bytes=sum(file.stat().st_size for file in files))


def _digest_of(path: Path) -> str:
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=_REMEMBERED)
def _digest(path: Path, _size: int, _mtime_ns: int, _inode: int) -> str:
    """Remembered for as long as none of these changes."""
    return fingerprint_file(path)


def _commit(revision: str | None) -> str:
    if revision is None:
        return "no git commit"
    changed = " with uncommitted changes" if revision.endswith(DIRTY) else ""
    return f"commit {revision[:_SHOWN]}{changed}"


def _remedy(here: str | None, there: str | None) -> str:
    if there is None or here is None:
        return "Copy the files there."
    if there.endswith(DIRTY):
        return "Commit and push the submitter's copy, pull there and start the job again, or copy the files there."
    if here.endswith(DIRTY):
        return f"Put back what was changed there, and check {there[:_SHOWN]} out."
    return f"Run git pull there, so that it is at {there[:_SHOWN]}." if here != there else "Copy the files there."
