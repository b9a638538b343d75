"""Answers to commands: the main ones whole, all of them escaped and within what a workspace accepts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bot.commands import USAGE
from bot.render.answers import render_answer, render_bug, render_error, render_help
from bot.service import (
    Answer,
    HelpAnswer,
    JobList,
    JobStatus,
    Overview,
    ProjectList,
    Queue,
    StackList,
    Started,
    StopAnswer,
)
from bot.story import Story
from bot.workspace.blocks import check_blocks
from runner.errors import Problem, SpecError, UsageError
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.pools import Drain, Freeze
from runner.projects import ProjectListing
from runner.reports import RunSummary
from runner.spec import DatasetEntry, RunSpec

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
HOSTILE = "<!channel> & `x` *b* \n" * 400


@pytest.fixture
def job(demo_spec: RunSpec) -> JobRecord:
    return JobRecord(
        id="demo-k7x2q",
        spec=demo_spec.model_copy(update={"overrides": {"lora.r": "8"}}),
        pool="cpu",
        submitted_by="U0ANN",
        submitted_at=NOW - timedelta(seconds=65),
    )


def test_started_tells_id_place_and_what_was_changed(job: JobRecord) -> None:
    message = render_answer(Started(job, position=2, pool_is_served=True), now=NOW)
    assert message.text.split("\n") == [
        "Queued `demo-k7x2q` in pool `cpu` · position 2. Its thread opens in this channel.",
        "Changed for this job: `lora.r=8`",
    ]


def test_started_names_the_rows_that_only_the_host_can_check(job: JobRecord) -> None:
    entry = DatasetEntry(name="alpaca <!here>", hub="tatsu-lab/alpaca")
    spec = job.spec.model_copy(update={"datasets": {3: entry}, "unchecked": (3,)})
    message = render_answer(Started(job.model_copy(update={"spec": spec}), position=2, pool_is_served=True), now=NOW)
    assert "Rows that only the host can check, before training: `alpaca &lt;!here&gt;`" in message.text


def test_started_says_plainly_that_nobody_serves_the_pool(job: JobRecord) -> None:
    message = render_answer(Started(job, position=1, pool_is_served=False), now=NOW)
    assert "No worker serves pool `cpu` right now" in message.text


def test_started_says_why_no_worker_takes_the_job(job: JobRecord) -> None:
    message = render_answer(Started(job, position=1, pool_is_served=True, kept="Only <1 GiB> are left."), now=NOW)
    assert message.text.endswith("⚠️ Only &lt;1 GiB&gt; are left.")


def test_an_idle_house_says_so() -> None:
    assert render_answer(Overview((), (), ()), now=NOW).text.split("\n") == [
        "*Running* · nothing",
        "*Queued* · nothing",
        "*Workers* · none. Start one on a GPU host: `python -m runner worker`",
    ]


def test_the_overview_says_first_what_is_frozen_and_which_hosts_are_drained(worker_info: WorkerInfo) -> None:
    freeze = Freeze(reason="new <driver>", by="ann", at=NOW)
    overview = Overview((), (), (worker_info,), freeze, (Drain(host="gpu-1", by="U0ANN", at=NOW),))
    lines = render_answer(overview, now=NOW).text.split("\n")
    assert lines[0] == "⛔ Frozen by ann, nothing new starts: new &lt;driver&gt;"
    assert lines[-2:] == [
        "• `gpu-1:4711` · cpu (2 threads) · drained",
        "⛔ Host `gpu-1` takes no new jobs, drained by <@U0ANN> · 0.0 s ago",
    ]


def test_a_queue_lists_positions_and_ages(job: JobRecord, worker_info: WorkerInfo) -> None:
    overview = Overview((), (Queue("cpu", (job,) * 10, length=12),), (worker_info,))
    lines = render_answer(overview, now=NOW).text.split("\n")
    assert lines[1:3] == ["*Queued* in pool `cpu` · 12", "1. `demo-k7x2q` by <@U0ANN> · 1 min 05 s ago"]
    assert lines[12] == "… and 2 more"
    assert lines[-1] == "• `gpu-1:4711` · cpu (2 threads) · idle"


def test_a_failed_job_tells_what_to_do(job: JobRecord) -> None:
    failed = job.model_copy(
        update={
            "state": JobState.FAILED,
            "error_code": "dataset",
            "error_message": "Row 3 of <a> is empty.",
            "error_hint": "Fill it.",
        }
    )
    lines = render_answer(JobStatus(failed, Story(failed), None), now=NOW).text.split("\n")
    assert lines[-2:] == ["`dataset` Row 3 of &lt;a&gt; is empty.", "What to do: Fill it."]


def test_a_finished_job_tells_which_loss_went_where(job: JobRecord) -> None:
    summary = RunSummary(
        rung="4bit", steps=4, loss_first=7.0, loss_last=0.5, train_s=1, duration_s=2, guard_interceptions=0
    )
    done = job.model_copy(update={"state": JobState.SUCCEEDED, "summary": summary})
    lines = render_answer(JobStatus(done, Story(done), None), now=NOW).text.split("\n")
    assert lines[-1] == "Training loss 7 → 0.5"


def test_every_problem_is_shown_with_its_place() -> None:
    problems = [
        Problem("not valid TOML", file="demo.toml", line=3, column=9),
        Problem("must be at most 100", file="demo.toml", line=8, path="traits[0].datasets[0].percentage"),
        Problem("no such <file>", file="datasets.toml"),
    ]
    assert render_error(SpecError("demo", problems)).text.split("\n")[1:4] == [
        "• `demo.toml:3:9` not valid TOML",
        "• `demo.toml:8` `traits[0].datasets[0].percentage` must be at most 100",
        "• `datasets.toml` no such &lt;file&gt;",
    ]


def test_help_shows_every_command() -> None:
    assert all(typed in render_help().text for typed in USAGE.values())


def test_a_bug_is_told_with_a_reference_only() -> None:
    assert "`abc123`" in render_bug("abc123").text


def _answers(job: JobRecord, worker: WorkerInfo) -> list[Answer]:
    bad = job.model_copy(
        update={
            "id": HOSTILE,
            "pool": HOSTILE,
            "submitted_by": HOSTILE,
            "host": HOSTILE,
            "state": JobState.FAILED,
            "adapter_path": HOSTILE,
            "error_code": HOSTILE,
            "error_message": HOSTILE,
            "error_hint": HOSTILE,
            "spec": job.spec.model_copy(update={"overrides": {f"k{n}": HOSTILE for n in range(60)}}),
        }
    )
    idle = worker.model_copy(update={"name": HOSTILE, "pool": HOSTILE, "device": HOSTILE[:300], "stack": HOSTILE})
    invalid = SpecError(HOSTILE, [Problem(HOSTILE, file=HOSTILE, line=1, path=HOSTILE)] * 60)
    listing = ProjectListing(HOSTILE, HOSTILE[:200], None, invalid)
    return [
        Started(bad, 1, pool_is_served=False),
        StopAnswer(bad),
        Overview((Story(bad),) * 60, (Queue(HOSTILE, (bad,) * 60, length=60),), (idle,) * 60),
        JobStatus(bad, Story(bad), 3),
        JobList((bad,) * 60),
        ProjectList((listing,) * 60),
        StackList({"current": {f"{n} {HOSTILE}": "1" for n in range(120)}}, (idle,) * 60),
        HelpAnswer(),
    ]


def test_text_from_elsewhere_pings_nobody_and_stays_within_the_limits(job: JobRecord, worker_info: WorkerInfo) -> None:
    messages = [render_answer(answer, now=NOW) for answer in _answers(job, worker_info)]
    problems = [Problem(HOSTILE, file=HOSTILE, line=1, path=HOSTILE)] * 60
    messages += [render_error(UsageError(HOSTILE, hint=HOSTILE)), render_error(SpecError(HOSTILE, problems))]
    for message in messages:
        assert "<!" not in message.text
        assert len(message.text) <= 4000
        for blocks in (message.blocks, message.classic or message.blocks):
            check_blocks(list(blocks))
            assert "<!" not in str([block for block in blocks if block["type"] != "table"])
