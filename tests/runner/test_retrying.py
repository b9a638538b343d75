"""A job once more: with its own settings, with others, from its checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.child import Spawn
from runner.errors import JobError, SpecError, UnavailableError, UsageError
from runner.events import CheckpointSaved
from runner.job_events import JobFailed, JobSucceeded
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.projects import load_project
from runner.retrying import retry_spec
from runner.run_directory import adopt_checkpoint, create_attempt
from runner.settings import load_settings
from runner.spec import RunSpec
from runner.store import Store
from runner.supervisor import run_attempt
from tests.examples import SUMMARY

PROJECTS = Path(__file__).parents[2] / "projects"
End = Callable[..., JobRecord]


@pytest.fixture
def submitted(store: Store) -> JobRecord:
    """The demo, changed a little."""
    spec = load_project(PROJECTS, "demo", {"lora.r": "8"})
    return store.submit(spec, submitted_by="U1", origin={}, request_id="first")


@pytest.fixture
def end(store: Store, submitted: JobRecord, some_worker: WorkerInfo) -> End:
    """Let the job run to an end, with a checkpoint or without one."""

    def end(*, step: int | None = None, succeeds: bool = False) -> JobRecord:
        claim = store.claim(submitted.pool, some_worker.model_copy(update={"pool": submitted.pool}))
        assert claim is not None
        if step is not None:
            store.append(claim, CheckpointSaved(step=step, path=f"/out/checkpoint-{step}"))
        failed = JobFailed(code="out-of-memory", message="m")
        return store.finish(claim, JobSucceeded(summary=SUMMARY, adapter_path="a") if succeeds else failed)

    return end


@pytest.mark.parametrize("name", ["demo", "support-bot", "code-review", "sql-analyst"])
def test_a_retry_without_changes_runs_the_very_same(name: str, submitted: JobRecord) -> None:
    spec = load_project(PROJECTS, name, {"lora.r": "8"})
    former = submitted.model_copy(update={"spec": spec, "state": JobState.CANCELLED})

    assert retry_spec(PROJECTS, former, {}, resume=False) == spec


def test_a_retry_lays_its_changes_over_the_former_ones(end: End) -> None:
    spec = retry_spec(PROJECTS, end(), {"lora_alpha": "4", "training.learning_rate": "1e-3"}, resume=False)

    assert (spec.project.lora.r, spec.project.lora.lora_alpha, spec.project.training.learning_rate) == (8, 4, 1e-3)
    assert spec.overrides == {"lora.r": "8", "lora.lora_alpha": "4", "training.learning_rate": "1e-3"}


def test_a_retry_runs_what_was_submitted_and_not_what_the_file_says_by_now(end: End, tmp_path: Path) -> None:
    former = end()

    with pytest.raises(SpecError, match="problem"):
        retry_spec(tmp_path / "elsewhere", former, {}, resume=False)
    for entry in former.spec.datasets.values():
        assert entry.path is not None
        target = tmp_path / "own" / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((PROJECTS / entry.path).read_bytes())

    assert retry_spec(tmp_path / "own", former, {}, resume=False) == former.spec


def test_everything_that_is_wrong_with_the_changes_is_told_at_once(end: End) -> None:
    with pytest.raises(SpecError) as caught:
        retry_spec(PROJECTS, end(), {"lora.r": "none", "lora.rr": "1", "evaluation.exact_match": "[77]"}, resume=False)

    assert sorted((problem.file, problem.path) for problem in caught.value.problems) == [
        ("override", "evaluation.exact_match[0]"),
        ("override", "lora.r"),
        ("override", "lora.rr"),
    ]


def test_a_resume_may_change_only_what_changes_nothing_that_is_learned(end: End) -> None:
    former = end(step=40)

    assert retry_spec(PROJECTS, former, {"save_steps": "7"}, resume=True).project.training.save_steps == 7
    with pytest.raises(UsageError, match=r"training.learning_rate: .* → 0.5") as caught:
        retry_spec(PROJECTS, former, {"learning_rate": "0.5"}, resume=True)

    assert caught.value.code == "resume-mismatch"


@pytest.mark.parametrize(
    ("ended", "told"),
    [({"step": 40, "succeeds": True}, "has been trained to its end"), ({}, "has written no checkpoint")],
)
def test_there_is_not_always_something_to_resume(end: End, ended: dict[str, int], told: str) -> None:
    former = end(**ended)

    with pytest.raises(JobError, match=told) as caught:
        retry_spec(PROJECTS, former, {}, resume=True)

    assert caught.value.code == "nothing-to-resume"


def test_a_job_that_is_not_over_is_not_retried(submitted: JobRecord) -> None:
    with pytest.raises(JobError, match="is queued") as caught:
        retry_spec(PROJECTS, submitted, {}, resume=False)

    assert caught.value.code == "job-not-finished"


def test_the_record_says_what_it_is_a_retry_of(store: Store, end: End) -> None:
    former = end(step=40)

    job = store.submit(former.spec, submitted_by="U1", origin={}, request_id="second", retry_of=former.id, resume=True)

    assert (store.get(job.id).retry_of, store.get(job.id).resume) == (former.id, True)
    assert (former.retry_of, former.resume) == (None, False)


# --- on a host -------------------------------------------------------------------------------------------------------

STOPS_AT_5 = """
checkpoint(5)
(RUN_DIR / "checkpoints" / "checkpoint-5" / "state").write_text("of step 5")
emit("run_failed", code="out-of-memory", message="m")
sys.exit(1)
"""
GOES_ON = """
found = sorted(RUN_DIR.parent.glob("attempt-*/checkpoints/checkpoint-*/complete"))
succeed(" ".join(f"{path.parents[2].name} {path.parent.name} {(path.parent / 'state').read_text()}" for path in found))
"""


@pytest.fixture
def attempt(store: Store, some_worker: WorkerInfo, tmp_path: Path) -> Callable[..., JobRecord]:
    """Run the next job on a host."""

    def attempt(spawn: Spawn, host: str = "host-a") -> JobRecord:
        settings = load_settings({"QLORA_STATE_DIR": str(tmp_path / host), "QLORA_HOST": host})
        claim = store.claim(some_worker.pool, some_worker)
        assert claim is not None
        run_attempt(store, claim, settings, stopping=threading.Event(), spawn=spawn)
        return store.get(claim.job.id)

    return attempt


def test_a_resuming_retry_begins_with_the_former_jobs_checkpoint_which_stays(
    submit_job: Callable[..., JobRecord],
    attempt: Callable[..., JobRecord],
    scripted: Callable[[str], Spawn],
    run_spec: RunSpec,
) -> None:
    submit_job()
    former = attempt(scripted(STOPS_AT_5))
    assert (former.state, former.checkpoint_step) == (JobState.FAILED, 5)
    submit_job(retry_of=former.id, resume=True)

    job = attempt(scripted(GOES_ON))

    assert job.state is JobState.SUCCEEDED
    published = Path(job.adapter_path or "")
    assert (published / "adapter_model.safetensors").read_text() == "attempt-0 checkpoint-5 of step 5"
    adopted = published.parent / "attempt-0"
    assert adopted.stat().st_mode & 0o007 == 0, "a run directory is never open to others"
    # The former attempt's spec pins the commits of hub models and data.
    assert RunSpec.model_validate_json((adopted / "spec.json").read_text()) == run_spec
    assert (Path(former.checkpoint or "") / "state").read_text() == "of step 5"


def test_a_host_that_does_not_see_the_checkpoint_leaves_the_job_for_a_while_and_then_says_so(
    store: Store,
    submit_job: Callable[..., JobRecord],
    attempt: Callable[..., JobRecord],
    scripted: Callable[[str], Spawn],
) -> None:
    submit_job()
    former = attempt(scripted(STOPS_AT_5))
    job = submit_job(retry_of=former.id, resume=True)
    store.client.hincrby(f"qlora:job:{job.id}", "submitted_at", -301_000_000)

    job = attempt(scripted(GOES_ON), host="host-b")

    assert (job.state, job.error_code) == (JobState.FAILED, "checkpoint-missing")
    assert "all hosts share" in (job.error_hint or "")


def test_a_former_job_that_is_no_plain_name_leads_nowhere(
    submit_job: Callable[..., JobRecord], tmp_path: Path, run_spec: RunSpec
) -> None:
    with pytest.raises(JobError, match="retry_of"):
        submit_job(retry_of="../../elsewhere", resume=True)
    with pytest.raises(UnavailableError, match="sees no checkpoint"):
        adopt_checkpoint(create_attempt(tmp_path, run_spec, "demo-abcde", 1), "../../elsewhere")
