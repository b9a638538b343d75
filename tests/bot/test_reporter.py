"""Threads as they come to stand in a workspace: in order, edited in place, by one of several bots."""

from __future__ import annotations

import logging

import pytest

from bot.delivery import DeliveryStore
from runner.events import ChildEvent
from runner.job_events import JobFailed
from runner.jobs import JobRecord, WorkerInfo
from runner.settings import Retention
from runner.spec import RunSpec
from runner.store import Claim
from tests.bot.stage import Stage, finish, wait_until


def test_a_finished_job_is_told_in_order_and_once(stage: Stage, job: JobRecord, expected: list[str]) -> None:
    stage.report_to_the_end(job)
    assert stage.replies(job) == expected
    assert stage.store.get(job.id).origin["thread_ts"] == stage.thread(job)[0].ts


def test_a_restarted_bot_says_nothing_twice(stage: Stage, job: JobRecord, demo_spec: RunSpec) -> None:
    stage.report_to_the_end(job)
    before = stage.thread(job)
    other = stage.submit(demo_spec, "wish-2")
    with stage.reporting():
        wait_until(lambda: bool(stage.replies(other)), "the next job's thread")
    assert stage.thread(job) == before


def test_progress_is_one_message_edited_in_place(stage: Stage, claim: Claim, good_run: tuple[ChildEvent, ...]) -> None:
    with stage.reporting():
        for event in good_run[:15]:
            stage.store.append(claim, event)
        wait_until(lambda: "step 40 of 120" in stage.last_reply(claim.job), "step 40")
        for event in good_run[15:18]:
            stage.store.append(claim, event)
        wait_until(lambda: "step 120 of 120" in stage.last_reply(claim.job), "step 120")
    assert len([text for text in stage.replies(claim.job) if text.startswith("*Training*")]) == 1


def test_edits_are_merged_and_the_last_state_is_shown(
    stage: Stage, claim: Claim, good_run: tuple[ChildEvent, ...]
) -> None:
    with stage.reporting(edit_every_s=1.0):
        for event in good_run[:14]:
            stage.store.append(claim, event)
        for step in range(1, 101):
            stage.store.append(claim, good_run[14].model_copy(update={"step": step}))
        wait_until(lambda: "step 100 of 120" in stage.last_reply(claim.job), "step 100")
    edits = [call for call in stage.workspace.client.calls("chat.update") if "*Training*" in call.arguments["text"]]
    assert 1 <= len(edits) <= 20


def test_a_second_attempt_continues_in_the_same_progress_message(
    stage: Stage, claim: Claim, worker_info: WorkerInfo, good_run: tuple[ChildEvent, ...]
) -> None:
    for event in good_run[:17]:
        stage.store.append(claim, event)
    stage.store.requeue(claim)
    second = stage.store.claim("cpu", worker_info)
    assert second is not None
    with stage.reporting():
        for event in good_run[:13]:
            stage.store.append(second, event)
        stage.store.append(second, good_run[13].model_copy(update={"resumed_from_step": 80}))
        finish(stage.store, second, good_run[17:])
        wait_until(lambda: stage.is_told(second.job), "the whole thread")
    starts = [
        "Queued in pool",
        "Claimed on host",
        "*Versions*",
        "*Base model*",
        "*Data*",
        "✅ Model loaded",
        "*Before training*",
        "*Training*",
        "The worker on host `gpu-1` was stopped",
        "Claimed on host",
        "*After training*",
        "*Adapter verified*",
        "✅ *Succeeded*",
    ]
    told = [text[: len(start)] for text, start in zip(stage.replies(second.job), starts, strict=True)]
    assert told == starts
    assert "resumed from step 80" in stage.replies(second.job)[7]


def test_a_workspace_without_newer_blocks_gets_classic_ones(stage: Stage, job: JobRecord, expected: list[str]) -> None:
    stage.workspace.client.refuse_block("plan")
    stage.workspace.client.refuse_block("table")
    stage.report_to_the_end(job)
    assert stage.replies(job) == expected
    assert {block["type"] for message in stage.thread(job) for block in message.blocks} == {"section", "context"}
    assert "● Model" in str(stage.thread(job)[0].blocks)


def test_a_channel_that_refuses_posts_is_logged_once_and_delays_nobody(
    stage: Stage, job: JobRecord, expected: list[str], demo_spec: RunSpec, caplog: pytest.LogCaptureFixture
) -> None:
    lost = stage.submit(demo_spec, "wish-2", channel="C0NOWHERE")
    caplog.set_level(logging.WARNING)
    with stage.reporting():
        wait_until(lambda: stage.is_told(job) and "channel_not_found" in caplog.text, "one thread and one warning")
        stage.store.request_stop(lost.id, "U0ANN")
        other = stage.submit(demo_spec, "wish-3")
        wait_until(lambda: bool(stage.replies(other)), "the other thread")
    assert stage.replies(job) == expected
    assert len([record for record in caplog.records if lost.id in record.getMessage()]) == 1


def test_whoever_started_a_job_is_told_once_that_slack_refuses_its_thread(stage: Stage, demo_spec: RunSpec) -> None:
    person = stage.workspace.client.add_user("ann")
    private = stage.workspace.client.add_channel("private", ["ann"])
    lost = stage.store.submit(demo_spec, submitted_by=person.id, origin={"channel": private.id}, request_id="wish-2")
    for _ in range(2):
        calls = len(stage.workspace.client.calls("chat.postMessage"))
        with stage.reporting():
            wait_until(lambda: len(stage.workspace.client.calls("chat.postMessage")) > calls, "a refusal")  # noqa: B023 - called at once
    direct = [call for call in stage.workspace.client.calls("chat.postMessage") if call.outcome == "ok"]
    assert [call.arguments["channel"] for call in direct] == [person.id]
    assert f"`{lost.id}`" in direct[0].arguments["text"]
    assert f"<#{private.id}>: `not_in_channel`" in direct[0].arguments["text"]


def test_a_job_from_the_shell_has_no_thread(stage: Stage, job: JobRecord, demo_spec: RunSpec) -> None:
    silent = stage.store.submit(demo_spec, submitted_by="ann", origin={}, request_id="wish-4")
    stage.report_to_the_end(job)
    assert stage.thread(silent) == []


def test_a_job_that_redis_has_forgotten_meanwhile_is_not_asked_for_again(stage: Stage, job: JobRecord) -> None:
    thread = stage.job_thread(job, DeliveryStore(stage.store.client))
    stage.store.client.zadd("qlora:finished", {job.id: 1})
    assert stage.store.forget() == 1
    assert thread.catch_up() is None
    assert (thread.finished, thread.closed) == (True, True)


def test_a_thread_whose_job_has_a_damaged_record_is_left_alone_and_the_log_says_so(
    stage: Stage, job: JobRecord, caplog: pytest.LogCaptureFixture
) -> None:
    thread = stage.job_thread(job, DeliveryStore(stage.store.client))
    stage.store.client.hset(f"qlora:job:{job.id}", "spec", "{")
    assert thread.catch_up() is None
    assert thread.closed
    assert f"{job.id}: its thread says nothing more. " in caplog.text


def test_only_one_of_two_bots_reports(stage: Stage, job: JobRecord, expected: list[str]) -> None:
    with stage.reporting(), stage.reporting():
        wait_until(lambda: stage.is_told(job), "the whole thread")
    assert stage.replies(job) == expected
    assert len(stage.workspace.client.calls("chat.postMessage")) == len(expected) + 1


def test_another_bot_takes_over_from_one_that_left(stage: Stage, demo_spec: RunSpec) -> None:
    with stage.reporting(hold_s=3600.0):
        first = stage.submit(demo_spec, "wish-1")
        wait_until(lambda: bool(stage.replies(first)), "the first bot's thread")
    with stage.reporting():
        second = stage.submit(demo_spec, "wish-2")
        wait_until(lambda: bool(stage.replies(second)), "the second bot's thread")


def test_a_deleted_progress_message_does_not_stop_the_thread(
    stage: Stage, claim: Claim, good_run: tuple[ChildEvent, ...]
) -> None:
    with stage.reporting():
        for event in good_run[:14]:
            stage.store.append(claim, event)
        wait_until(lambda: stage.last_reply(claim.job).startswith("*Training*"), "progress")
        progress = stage.thread(claim.job)[-1]
        stage.client.chat_delete(channel=progress.channel, ts=progress.ts)
        finish(stage.store, claim, good_run[14:])
        wait_until(lambda: stage.is_told(claim.job), "the whole thread")
    assert stage.last_reply(claim.job).startswith("✅ *Succeeded*")


# --- what goes with a job --------------------------------------------------------------------------------------------


def remembered(stage: Stage, job: JobRecord) -> list[str]:
    """Keys that tell of a job's thread."""
    root = stage.thread(job)[0]
    keys = {str(key) for key in stage.store.client.scan_iter("qlora:slack:*")}
    return sorted(key for key in keys if job.id in key or root.ts in key)


def test_a_told_thread_is_remembered_as_long_as_its_job(stage: Stage, job: JobRecord) -> None:
    memory = DeliveryStore(stage.store.client, retention=Retention(days=2))
    with stage.reporting(memory=memory):
        wait_until(lambda: stage.is_told(job), "the whole thread")

    keys = remembered(stage, job)

    assert len(keys) == 2
    assert all(86_400 < stage.store.client.ttl(key) <= 2 * 86_400 for key in keys)
    assert memory.open_threads() == set()


def test_a_thread_that_was_never_finished_goes_with_its_job(stage: Stage, claim: Claim) -> None:
    job = claim.job
    with stage.reporting():
        wait_until(lambda: len(stage.replies(job)) == 2, "the claim is told")
    memory = DeliveryStore(stage.store.client)
    assert memory.open_threads() == {job.id}
    stage.store.finish(claim, JobFailed(code="dataset", message="m"))
    stage.store.client.zadd("qlora:finished", {job.id: 1})
    stage.store.forget()

    with stage.reporting():
        wait_until(lambda: memory.open_threads() == set(), "the bot tidies up")

    assert remembered(stage, job) == []


def test_a_bot_that_starts_looks_only_at_threads_that_are_not_done(
    stage: Stage, job: JobRecord, demo_spec: RunSpec
) -> None:
    stage.report_to_the_end(job)
    other = stage.submit(demo_spec, "wish-2")

    assert DeliveryStore(stage.store.client).not_done([job.id, other.id, "gone-aaaaa"]) == [other.id, "gone-aaaaa"]
