"""Where an attempt keeps its files, and how an adapter gets published: the layout of a run directory.

<output root>/<output_directory>/<job>/
    adapter/                      the published adapter: there only whole, by one rename
    attempt-<n>/                  one folder an attempt, never open to others; 0: of the job that this one repeats
        spec.json                 the resolved RunSpec
        events.jsonl  train.log   what the child reported, and what it and its libraries printed
        checkpoints/checkpoint-<step>/   complete only when it holds `complete`: how it was trained
        longest-first             only in a trial (`runner.trial`): begin with the longest rows
        receipt.json  loss.png  adapter/   adapter: saved, not yet published

Imports nothing but the vocabulary: no Redis, no torch.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from runner.errors import UnavailableError
from runner.spec import RunSpec

_FOLDER_MODE = 0o770
"""Others never get in; whether the group does, the process's umask decides (`runner.settings.keep_files_private`)."""
COMPLETE_MARKER = "complete"
LONGEST_FIRST_MARKER = "longest-first"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_JOB_ID = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The folder of one attempt, inside the folder of its job."""

    path: Path
    """`attempt-<n>`, the RUN_DIR that a training child is given."""

    @property
    def job_dir(self) -> Path:
        """The job's folder, which holds all its attempts and the published adapter."""
        return self.path.parent

    @property
    def spec_path(self) -> Path:
        """The resolved RunSpec as JSON, written before the child starts."""
        return self.path / "spec.json"

    @property
    def log_path(self) -> Path:
        """Everything that the child and its libraries print, tracebacks included."""
        return self.path / "train.log"

    @property
    def adapter_path(self) -> Path:
        """Where the child saves the adapter; gone once it is published."""
        return self.path / "adapter"

    @property
    def result_path(self) -> Path:
        """What the job's end is going to say (`leave_result`)."""
        return self.path / "result.json"

    @property
    def published_path(self) -> Path:
        """Where people find the adapter."""
        return self.job_dir / "adapter"

    def newest_checkpoint(self) -> Path | None:
        """The complete checkpoint with the most steps among all attempts of this job, None where there is none."""
        return newest_checkpoint(self.job_dir)

    def leave_result(self, result: str) -> None:
        """Note what is told once the adapter is published: the host may go down between the two.

        Raises:
            UnavailableError: The file system refuses.
        """
        try:
            with self.result_path.open("w", encoding="utf-8") as file:
                file.write(result)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _unusable(self.result_path, error) from error

    def published_result(self) -> str | None:
        """What the attempt of this job has left that has published its adapter; None while none has.

        Only publishing takes an attempt's adapter out of its folder, and nothing else puts one where people find it.
        """
        if not self.published_path.is_dir():
            return None
        found = [path for path in self.job_dir.glob("attempt-*/result.json") if not (path.parent / "adapter").exists()]
        newest = max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
        return None if newest is None else newest.read_text(encoding="utf-8")

    def publish(self) -> Path:
        """Move this attempt's adapter to where people find it.

        The adapter appears whole: its files are on the disk before one rename makes them visible. A former adapter of
        the same job steps aside first and comes back when the rename fails.

        Returns:
            The published folder.

        Raises:
            UnavailableError: There is no adapter to publish, or the file system refuses.
        """
        if not self.adapter_path.is_dir():
            raise UnavailableError(
                f"The training ended well but left no adapter in {self.adapter_path}.",
                hint=f"Look into {self.log_path}.",
                code="adapter-missing",
            )
        former = self.job_dir / ".former-adapter"
        try:
            flush_to_disk(self.adapter_path)
            # Left over when another attempt was cut off between its two renames; what it holds is superseded.
            shutil.rmtree(former, ignore_errors=True)
            replaces = self.published_path.exists()
            if replaces:
                self.published_path.rename(former)
            try:
                self.adapter_path.rename(self.published_path)
            except OSError:
                if replaces:
                    former.rename(self.published_path)
                raise
            flush_folder(self.job_dir)
            shutil.rmtree(former, ignore_errors=True)
        except OSError as error:
            raise _unusable(self.published_path, error) from error
        return self.published_path


def create_attempt(output_root: Path, spec: RunSpec, job_id: str, attempt: int) -> RunDirectory:
    """Make the folder of one attempt and write its `spec.json`.

    Args:
        output_root: Folder of this host that no run directory may leave.
        spec: The resolved spec; names the folder below the root.
        job_id: Names the job's folder.
        attempt: 1 for the first. Where that folder exists already, because Redis lost the last second before it
            was killed, the next free number is taken: no two attempts ever write into one folder.

    Raises:
        UnavailableError: The folder would lie outside the root, passes a symbolic link, or cannot be written.
    """
    if not _JOB_ID.fullmatch(job_id):
        raise UnavailableError(f"{job_id!r} cannot name a folder.", code="run-directory")
    root = output_root.absolute()
    job_dir = root / spec.project.output_directory / job_id
    _refuse_symlinks(root, job_dir)
    return open_attempt(job_dir, spec, attempt)


def open_attempt(job_dir: Path, spec: RunSpec, attempt: int | None = None) -> RunDirectory:
    """Make the next attempt's folder in a job's folder that is already known to be the right place.

    Args:
        job_dir: The job's folder; made if absent.
        spec: Written as `spec.json`.
        attempt: Number of the attempt; None counts on from the attempts that lie there.

    Raises:
        UnavailableError: The folder cannot be written.
    """
    try:
        job_dir.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
        number = attempt if attempt is not None else _next_attempt(job_dir)
        run_directory = RunDirectory(_make_folder(job_dir, number))
        descriptor = os.open(run_directory.spec_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o660)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(spec.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise _unusable(job_dir, error) from error
    return run_directory


def newest_checkpoint(job_dir: Path) -> Path | None:
    """The complete checkpoint with the most steps among all attempts in a job's folder."""
    found: list[tuple[int, str, Path]] = []
    for marker in job_dir.glob(f"attempt-*/checkpoints/checkpoint-*/{COMPLETE_MARKER}"):
        name = _CHECKPOINT.fullmatch(marker.parent.name)
        if name is not None:
            found.append((int(name[1]), marker.parents[2].name, marker.parent))
    return max(found)[2] if found else None


def visible_step(output_root: Path, spec: RunSpec, job_id: str) -> int:
    """Optimizer steps of the newest complete checkpoint of a job that this host sees, 0 where it sees none."""
    newest = newest_checkpoint(output_root / spec.project.output_directory / job_id)
    return 0 if newest is None else checkpoint_step(newest)


def adopt_checkpoint(run_directory: RunDirectory, former_job: str) -> None:
    """Let a job go on from the newest complete checkpoint of the job that it repeats.

    The checkpoint appears as that of an `attempt-0`, with the former attempt's `spec.json`, which pins commits, and
    what it reported, so that all is found as an earlier attempt's is. Files are linked, else copied. Changes nothing
    once this job has a checkpoint of its own.

    Raises:
        UnavailableError: This host sees no such checkpoint (`checkpoint-missing`), or the file system refuses.
    """
    if run_directory.newest_checkpoint() is not None:
        return
    former = run_directory.job_dir.parent / former_job
    checkpoint = newest_checkpoint(former) if _JOB_ID.fullmatch(former_job) and not former.is_symlink() else None
    if checkpoint is None:
        raise UnavailableError(
            f"This host sees no checkpoint of job {former_job} in {former}.",
            hint="Put the output root on a file system that all hosts share, or retry the job without resuming.",
            code="checkpoint-missing",
        )
    scratch = run_directory.job_dir / ".adopted"
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(mode=_FOLDER_MODE)
        (scratch / "checkpoints").mkdir()
        shutil.copytree(checkpoint, scratch / "checkpoints" / checkpoint.name, copy_function=_link)
        for name in ("spec.json", "events.jsonl"):
            if (checkpoint.parents[1] / name).is_file():
                shutil.copyfile(checkpoint.parents[1] / name, scratch / name)
        # The marker of a complete checkpoint comes along, so nothing may stand here that a power cut could empty.
        flush_to_disk(scratch)
        scratch.rename(run_directory.job_dir / "attempt-0")
        flush_folder(run_directory.job_dir)
    except OSError as error:
        raise _unusable(run_directory.job_dir, error) from error


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def checkpoint_step(checkpoint: Path) -> int:
    """Optimizer steps done when this checkpoint was written, from its name."""
    name = _CHECKPOINT.fullmatch(checkpoint.name)
    if name is None:
        raise ValueError(f"{checkpoint} is not a checkpoint's folder")
    return int(name[1])


def _next_attempt(job_dir: Path) -> int:
    numbers = [re.match(r"attempt-(\d+)", folder.name) for folder in job_dir.glob("attempt-*")]
    return 1 + max((int(number[1]) for number in numbers if number is not None), default=0)


def _make_folder(job_dir: Path, attempt: int) -> Path:
    for number in itertools.count(attempt):
        path = job_dir / f"attempt-{number}"
        try:
            path.mkdir(mode=_FOLDER_MODE)
        except FileExistsError:
            continue
        return path
    raise AssertionError  # unreachable: count() does not end


def _refuse_symlinks(root: Path, path: Path) -> None:
    """A link below the root could lead a job's files to anywhere on the host."""
    below = path.relative_to(root)
    if ".." in below.parts:
        raise UnavailableError(f"{path} leaves the output root {root}.", code="run-directory")
    step = root
    for part in below.parts:
        step /= part
        if step.is_symlink():
            raise UnavailableError(
                f"{step} is a symbolic link.",
                hint="Replace it by a folder, or point QLORA_OUTPUT_ROOT at the place it leads to.",
                code="run-directory",
            )


def _unusable(path: Path, error: OSError) -> UnavailableError:
    reason = error.strerror or str(error)
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return UnavailableError(
            f"No space left to write {path}: {reason}.", hint="Free space on the output root's disk.", code="disk-full"
        )
    return UnavailableError(
        f"{path} cannot be written: {reason}.",
        hint="Check QLORA_OUTPUT_ROOT and the permissions of its folders.",
        code="run-directory",
    )


def flush_to_disk(folder: Path) -> None:
    """Bring all that a folder holds onto the disk, so that a power cut cannot leave empty files behind."""
    for current, _, files in os.walk(folder):
        for name in files:
            with (Path(current) / name).open("rb") as file:
                os.fsync(file.fileno())
        flush_folder(Path(current))


def flush_folder(folder: Path) -> None:
    """Bring a folder's list of names onto the disk: what was renamed in it, and what it holds at all."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
