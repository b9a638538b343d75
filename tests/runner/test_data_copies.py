"""A job runs on the data it was started with: hosts whose copy differs leave it to others and say why."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from runner.child import Spawn
from runner.data_copies import tell_differences, with_data_copies
from runner.errors import UnavailableError
from runner.job_events import JobClaimed, JobDeclined, JobQueued
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.settings import RunnerSettings, load_settings
from runner.spec import DatasetEntry, RunSpec
from runner.store import Store
from runner.supervisor import AttemptEnd, run_attempt

Working = Callable[..., AbstractContextManager[None]]


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=Ann", "-c", "user.email=ann@localhost"]
    program = shutil.which("git")
    assert program is not None
    done = subprocess.run([program, "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def bots(tmp_path: Path) -> Path:
    """The bot's projects folder: a git repository with one data file and one folder of them."""
    folder = tmp_path / "bot"
    (folder / "data" / "many").mkdir(parents=True)
    (folder / "data" / "sums.jsonl").write_text('{"prompt": "1 + 1?", "completion": "2"}\n')
    (folder / "data" / "many" / "a.jsonl").write_text("{}\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "data")
    return folder


@pytest.fixture
def spec(run_spec: RunSpec, bots: Path) -> RunSpec:
    """As the bot submits it."""
    entries = {
        1: DatasetEntry(name="sums", path="data/sums.jsonl"),
        2: DatasetEntry(name="many", path="data/many"),
        3: DatasetEntry(name="far", hub="them/data"),
    }
    return with_data_copies(run_spec.model_copy(update={"datasets": entries}), bots)


@pytest.fixture
def host(tmp_path: Path, bots: Path) -> RunnerSettings:
    """A host with a clone of the same."""
    git(tmp_path, "clone", "-q", str(bots), "host")
    settings = load_settings({"QLORA_STATE_DIR": str(tmp_path / "state"), "QLORA_LEASE_S": "3", "QLORA_HOST": "host-a"})
    return dataclasses.replace(settings, projects_dir=tmp_path / "host")


def test_the_submitters_copy_and_a_clone_of_it_are_the_same(spec: RunSpec, host: RunnerSettings, bots: Path) -> None:
    assert list(spec.data) == [1, 2]
    assert spec.data[1].bytes == (bots / "data" / "sums.jsonl").stat().st_size
    assert spec.projects_revision == git(bots, "rev-parse", "HEAD")
    assert tell_differences(spec, host) is None
    assert tell_differences(RunSpec.model_validate_json(spec.model_dump_json()), host) is None


def test_an_older_clone_is_told_with_its_files_both_commits_and_what_to_pull(
    run_spec: RunSpec, spec: RunSpec, host: RunnerSettings, bots: Path
) -> None:
    before = git(bots, "rev-parse", "HEAD")
    (bots / "data" / "sums.jsonl").write_text("{}\n{}\n")
    (bots / "data" / "many" / "b.jsonl").write_text("{}\n")
    git(bots, "add", ".")
    git(bots, "commit", "-qm", "more")
    after = git(bots, "rev-parse", "HEAD")
    newer = with_data_copies(run_spec.model_copy(update={"datasets": spec.datasets}), bots)

    assert tell_differences(newer, host) == (
        f"data/sums.jsonl has other content, {spec.data[1].bytes} bytes instead of 6; "
        f"data/many has other content, 3 bytes instead of 6. "
        f"Its copy {host.projects_dir} is at commit {before[:12]}, the job was started at commit {after[:12]}. "
        f"Run git pull there, so that it is at {after[:12]}."
    )
    git(host.projects_dir, "pull", "-q")
    assert tell_differences(newer, host) is None


def test_a_file_that_is_missing_or_was_changed_by_hand_is_told(spec: RunSpec, host: RunnerSettings) -> None:
    shutil.rmtree(host.projects_dir / "data" / "many")
    (host.projects_dir / "data" / "sums.jsonl").write_text("{}\n")

    told = tell_differences(spec, host)

    assert told is not None
    assert "data/many is not there" in told
    assert "with uncommitted changes" in told
    assert "Put back what was changed there" in told


def test_a_copy_of_a_submitter_with_uncommitted_changes_cannot_just_be_pulled(
    run_spec: RunSpec, spec: RunSpec, host: RunnerSettings, bots: Path
) -> None:
    (bots / "data" / "sums.jsonl").write_text("{}\n")

    told = tell_differences(with_data_copies(run_spec.model_copy(update={"datasets": spec.datasets}), bots), host)

    assert told is not None
    assert "Commit and push the submitter's copy" in told


def test_without_git_the_files_are_to_be_copied(spec: RunSpec, tmp_path: Path) -> None:
    (tmp_path / "plain" / "data" / "many").mkdir(parents=True)
    (tmp_path / "plain" / "data" / "sums.jsonl").write_text("{}\n")
    host = dataclasses.replace(load_settings({}), projects_dir=tmp_path / "plain")

    told = tell_differences(spec, host)

    assert told is not None
    assert "is at no git commit" in told
    assert told.endswith("Copy the files there.")


def test_a_file_is_read_again_only_when_it_has_changed(spec: RunSpec, host: RunnerSettings) -> None:
    path = host.projects_dir / "data" / "sums.jsonl"
    assert tell_differences(spec, host) is None
    before = path.stat()

    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert tell_differences(spec, host) is None
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))

    assert tell_differences(spec, host) is not None


def test_a_data_file_that_is_gone_at_submission_is_told(spec: RunSpec, bots: Path) -> None:
    (bots / "data" / "sums.jsonl").unlink()

    with pytest.raises(UnavailableError, match=r"sums.jsonl cannot be read"):
        with_data_copies(spec, bots)


@pytest.fixture
def job(store: Store, spec: RunSpec) -> JobRecord:
    """Submitted by the bot."""
    return store.submit(spec, submitted_by="U1", origin={}, request_id="r")


def test_a_host_with_other_data_leaves_the_job_to_one_with_the_same(
    store: Store, job: JobRecord, host: RunnerSettings, some_worker: WorkerInfo, scripted: Callable[[str], Spawn]
) -> None:
    other = dataclasses.replace(host, projects_dir=host.projects_dir.with_name("bot"), host="host-b")
    (host.projects_dir / "data" / "sums.jsonl").write_text("{}\n")
    ends = []
    for settings in (host, other):
        claim = store.claim("cpu", some_worker.model_copy(update={"name": settings.host, "host": settings.host}))
        assert claim is not None
        ends.append(run_attempt(store, claim, settings, stopping=threading.Event(), spawn=scripted("succeed()")))

    assert ends == [AttemptEnd.DECLINED, AttemptEnd.SUCCEEDED]
    assert (store.get(job.id).attempt, store.get(job.id).host) == (1, "host-b")
    first_three = [stored.event for stored in store.events(job.id)][:3]
    assert [type(event) for event in first_three] == [JobQueued, JobClaimed, JobDeclined]
    declined = first_three[2]
    assert isinstance(declined, JobDeclined)
    assert (declined.host, declined.reason) == ("host-a", "data-differs")


def test_a_worker_takes_a_job_that_it_has_declined_once_its_copy_matches(  # noqa: PLR0917 - fixtures
    store: Store,
    job: JobRecord,
    host: RunnerSettings,
    valkey_url: str,
    working: Working,
    eventually: Callable[..., None],
) -> None:
    here, bots = host.projects_dir / "data" / "many", host.projects_dir.with_name("bot") / "data" / "many"
    shutil.rmtree(here)
    with working(valkey_url, "succeed()", host):
        eventually(lambda: isinstance(store.events(job.id)[-1].event, JobDeclined))
        declined = store.events(job.id)[-1].event
        shutil.copytree(bots, here)
        eventually(lambda: store.get(job.id).state is JobState.SUCCEEDED)

    assert isinstance(declined, JobDeclined)
    assert not declined.others
    kinds = [stored.event.kind for stored in store.events(job.id)]
    assert kinds.count("job_declined") == 1


def test_a_worker_stays_on_the_list_where_looking_at_what_its_host_has_declined_fails(  # noqa: PLR0917 - fixtures
    store: Store,
    job: JobRecord,
    host: RunnerSettings,
    some_worker: WorkerInfo,
    valkey_url: str,
    working: Working,
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks = []

    def broken(*_: object) -> None:
        looks.append(store.workers("cpu"))
        raise RuntimeError("A bug of ours.")

    claim = store.claim("cpu", some_worker.model_copy(update={"host": host.host}))
    assert claim is not None
    store.decline(claim, JobDeclined(reason="data-differs", host="", message="m"))
    monkeypatch.setattr("runner.worker.tell_differences", broken)

    with working(valkey_url, "succeed()", host):
        eventually(lambda: len(looks) > 2)

    assert looks[2][0].last_seen_at > looks[0][0].last_seen_at
    assert store.get(job.id).state is JobState.QUEUED
