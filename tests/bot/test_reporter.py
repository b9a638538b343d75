"""Threads against a real workspace that limits, fails, drops replies and disappears; a bot that dies at any instant."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from slack_sdk import WebClient

from bot.delivery import DeliveryStore
from bot.job_thread import JobThread
from bot.outbox import Outbox
from bot.render.progress import render_progress
from bot.render.thread import render_milestone
from bot.reporter import Reporter
from bot.story import Story, tell
from bot.workspace.faults import FaultKind
from bot.workspace.records import Message
from bot.workspace.server import LocalWorkspace
from runner.embedded_redis import EmbeddedRedis
from runner.errors import UnavailableError
from runner.events import ChildEvent, JobSucceeded, RunSucceeded
from runner.jobs import JobRecord, WorkerInfo
from runner.redis_client import build_client
from runner.spec import RunSpec
from runner.store import Claim, Store


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the bot runs after it."""


class DyingStore(DeliveryStore):
    """Ends the bot right before it remembers a post, as a kill at that instant would.

    Args:
        store: Where it remembers.
        dies_at: Posts that are remembered in the thread when it dies; the next one is posted and never remembered.
    """

    def __init__(self, store: Store, dies_at: int) -> None:
        super().__init__(store.client)
        self.dies_at = dies_at

    def remember_root(self, job_id: str, channel: str, ts: str) -> None:
        self._die(job_id)
        super().remember_root(job_id, channel, ts)

    def remember_reply(self, job_id: str, seq: int, ts: str, *, is_progress: bool = False) -> None:
        self._die(job_id)
        super().remember_reply(job_id, seq, ts, is_progress=is_progress)

    def _die(self, job_id: str) -> None:
        if len(self.recall(job_id).posted) == self.dies_at:
            raise Killed


class ForgetfulStore(DeliveryStore):
    """Tells when a post could not be remembered because Redis is away."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.client)
        self.forgot = threading.Event()

    def remember_reply(self, job_id: str, seq: int, ts: str, *, is_progress: bool = False) -> None:
        try:
            super().remember_reply(job_id, seq, ts, is_progress=is_progress)
        except UnavailableError:
            self.forgot.set()
            raise


@dataclass(frozen=True, slots=True)
class Stage:
    """A workspace, a store and a client to play on."""

    workspace: LocalWorkspace
    client: WebClient
    store: Store

    def submit(self, spec: RunSpec, request_id: str, channel: str | None = None) -> JobRecord:
        """Queue a job whose thread belongs in #qlora, or in another channel."""
        channels = self.workspace.client.status()["channels"]
        known = next(one["id"] for one in channels if one["name"] == "qlora")
        return self.store.submit(
            spec, submitted_by="U0ANN", origin={"channel": channel or known}, request_id=request_id
        )

    def job_thread(self, job: JobRecord, memory: DeliveryStore) -> JobThread:
        """A bot's view of one thread, without a reporter around it."""
        outbox = Outbox(self.client, memory, may_post=lambda: True)
        return JobThread(job.id, store=self.store, memory=memory, outbox=outbox, edit_every_s=0.0)

    @contextmanager
    def reporting(
        self, *, hold_s: float = 6.0, edit_every_s: float = 0.05, memory: DeliveryStore | None = None
    ) -> Iterator[None]:
        """A reporter at work."""
        stop = threading.Event()
        memory = memory or DeliveryStore(self.store.client)
        reporter = Reporter(self.store, self.client, memory, hold_s=hold_s, edit_every_s=edit_every_s)
        thread = threading.Thread(target=reporter.run, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def thread(self, job: JobRecord) -> list[Message]:
        """The job's root message and its replies; empty before there is one."""
        roots = [
            message for message in self.workspace.client.messages() if message.is_root and message.job_id == job.id
        ]
        assert len(roots) <= 1, "the root message is there twice"
        return list(self.workspace.client.messages(thread_ts=roots[0].ts)) if roots else []

    def replies(self, job: JobRecord) -> list[str]:
        """The texts below the root message."""
        return [message.text for message in self.thread(job)[1:]]

    def last_reply(self, job: JobRecord) -> str:
        """The text at the end of the thread."""
        return next(reversed(self.replies(job)), "")

    def is_told(self, job: JobRecord) -> bool:
        """Whether the bot thinks that everything has been said."""
        return DeliveryStore(self.store.client).recall(job.id).done

    def report_to_the_end(self, job: JobRecord) -> None:
        """Let a reporter say everything."""
        with self.reporting():
            _wait_until(lambda: self.is_told(job), "the whole thread")


Outage = Callable[[EmbeddedRedis], AbstractContextManager[None]]


@contextmanager
def _restarted(server: EmbeddedRedis) -> Iterator[None]:
    server.stop()
    yield
    server.start()


@contextmanager
def _silent(server: EmbeddedRedis) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@contextmanager
def _impatient_store(url: str) -> Iterator[Store]:
    """A store that gives up on Redis within a second and not after a minute and a half."""
    with closing(Store(build_client(url, decode_responses=True, retries=1, timeout_s=0.4))) as store:
        yield store


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits begin at a tenth of a second; what Slack asks for is waited for all the same."""
    monkeypatch.setattr("bot.job_thread.FIRST_WAIT_S", 0.1)


@pytest.fixture
def stage(workspace: LocalWorkspace, web_client: WebClient, store: Store) -> Stage:
    return Stage(workspace, web_client, store)


@pytest.fixture
def claim(stage: Stage, demo_spec: RunSpec, worker_info: WorkerInfo) -> Claim:
    """A job that a worker has just claimed."""
    stage.submit(demo_spec, "wish-1")
    claim = stage.store.claim("cpu", worker_info)
    assert claim is not None
    return claim


@pytest.fixture
def job(stage: Stage, claim: Claim, good_run: tuple[ChildEvent, ...]) -> JobRecord:
    """A job that has gone the whole way before anybody reported it."""
    return _finish(stage.store, claim, good_run)


@pytest.fixture
def expected(store: Store, job: JobRecord) -> list[str]:
    """The texts of the finished job's thread below its root message."""
    story, texts = Story(job), []
    for stored in store.events(job.id):
        message = render_milestone(story, stored, pool_is_served=False)
        story = tell(story, stored)
        if message is not None:
            texts.append(message.text)
    return [render_progress(story).text if text.startswith("*Training*") else text for text in texts]


def _finish(store: Store, claim: Claim, events: tuple[ChildEvent, ...]) -> JobRecord:
    for event in events:
        store.append(claim, event)
    last = events[-1]
    assert isinstance(last, RunSucceeded)
    return store.finish(claim, JobSucceeded(summary=last.summary, adapter_path="/outputs/demo/adapter"))


def _wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


def test_a_finished_job_is_told_in_order_and_once(stage: Stage, job: JobRecord, expected: list[str]) -> None:
    stage.report_to_the_end(job)
    assert stage.replies(job) == expected
    assert stage.store.get(job.id).origin["thread_ts"] == stage.thread(job)[0].ts


def test_a_restarted_bot_says_nothing_twice(stage: Stage, job: JobRecord, demo_spec: RunSpec) -> None:
    stage.report_to_the_end(job)
    before = stage.thread(job)
    other = stage.submit(demo_spec, "wish-2")
    with stage.reporting():
        _wait_until(lambda: bool(stage.replies(other)), "the next job's thread")
    assert stage.thread(job) == before


@pytest.mark.parametrize("kind", ["rate_limited", "server_error", "dropped_request", "dropped_reply"])
def test_trouble_with_slack_neither_loses_nor_doubles_a_milestone(
    kind: FaultKind, stage: Stage, job: JobRecord, expected: list[str]
) -> None:
    stage.workspace.client.inject(kind, "chat.postMessage")
    stage.report_to_the_end(job)
    assert stage.replies(job) == expected


def test_a_post_that_slack_carries_out_after_our_patience_is_not_doubled(
    stage: Stage, job: JobRecord, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.outbox.UNANSWERED_WAIT_S", 3.0)
    stage.client.timeout = 1
    stage.workspace.client.inject("delayed", "chat.postMessage", delay_s=2.5)
    stage.report_to_the_end(job)
    posts = stage.workspace.client.calls
    _wait_until(lambda: all(call.outcome == "ok" for call in posts("chat.postMessage")), "the late post")
    assert stage.replies(job) == expected
    assert stage.workspace.client.calls("conversations.history")


def test_trouble_while_looking_for_an_uncertain_post_is_no_answer(
    stage: Stage, job: JobRecord, expected: list[str]
) -> None:
    stage.workspace.client.inject("dropped_reply", "chat.postMessage")
    stage.workspace.client.inject("server_error", "conversations.history")
    stage.report_to_the_end(job)
    assert stage.replies(job) == expected
    assert len(stage.workspace.client.calls("conversations.history")) == 2


def test_retry_after_is_honoured_and_a_refused_post_need_not_be_looked_for(
    stage: Stage, job: JobRecord, expected: list[str]
) -> None:
    stage.workspace.client.inject("rate_limited", "chat.postMessage", retry_after=1)
    started = time.monotonic()
    stage.report_to_the_end(job)
    assert time.monotonic() - started >= 1.0
    assert stage.replies(job) == expected
    assert not stage.workspace.client.calls("conversations.history")


def test_a_milestone_does_not_wait_for_a_rate_limited_edit(stage: Stage, job: JobRecord, expected: list[str]) -> None:
    stage.workspace.client.inject("rate_limited", "chat.update", retry_after=30)
    with stage.reporting():
        _wait_until(lambda: len(stage.replies(job)) == len(expected), "every reply")


def test_a_bot_that_dies_between_every_post_and_its_memory_repeats_nothing(
    stage: Stage, job: JobRecord, expected: list[str]
) -> None:
    deaths = 0
    while not stage.is_told(job):
        # Each life finds the post that the one before it could not remember, and dies of its own first new one.
        memory = DyingStore(stage.store, dies_at=len(expected) + 1 if deaths > len(expected) else deaths)
        try:
            stage.job_thread(job, memory).catch_up()
        except Killed:
            deaths += 1
    assert deaths == len(expected) + 1
    assert stage.replies(job) == expected


def test_a_bot_that_dies_between_intent_and_post_loses_nothing(
    stage: Stage, job: JobRecord, expected: list[str]
) -> None:
    DeliveryStore(stage.store.client).intend(job.id, 0)
    stage.report_to_the_end(job)
    assert stage.replies(job) == expected


def test_progress_is_one_message_edited_in_place(stage: Stage, claim: Claim, good_run: tuple[ChildEvent, ...]) -> None:
    with stage.reporting():
        for event in good_run[:15]:
            stage.store.append(claim, event)
        _wait_until(lambda: "step 40 of 120" in stage.last_reply(claim.job), "step 40")
        for event in good_run[15:18]:
            stage.store.append(claim, event)
        _wait_until(lambda: "step 120 of 120" in stage.last_reply(claim.job), "step 120")
    assert len([text for text in stage.replies(claim.job) if text.startswith("*Training*")]) == 1


def test_edits_are_merged_and_the_last_state_is_shown(
    stage: Stage, claim: Claim, good_run: tuple[ChildEvent, ...]
) -> None:
    with stage.reporting(edit_every_s=1.0):
        for event in good_run[:14]:
            stage.store.append(claim, event)
        for step in range(1, 101):
            stage.store.append(claim, good_run[14].model_copy(update={"step": step}))
        _wait_until(lambda: "step 100 of 120" in stage.last_reply(claim.job), "step 100")
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
        _finish(stage.store, second, good_run[17:])
        _wait_until(lambda: stage.is_told(second.job), "the whole thread")
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
        _wait_until(lambda: stage.is_told(job) and "channel_not_found" in caplog.text, "one thread and one warning")
        stage.store.request_stop(lost.id, "U0ANN")
        other = stage.submit(demo_spec, "wish-3")
        _wait_until(lambda: bool(stage.replies(other)), "the other thread")
    assert stage.replies(job) == expected
    assert len([record for record in caplog.records if lost.id in record.getMessage()]) == 1


def test_whoever_started_a_job_is_told_once_that_slack_refuses_its_thread(stage: Stage, demo_spec: RunSpec) -> None:
    person = stage.workspace.client.add_user("ann")
    private = stage.workspace.client.add_channel("private", ["ann"])
    lost = stage.store.submit(demo_spec, submitted_by=person.id, origin={"channel": private.id}, request_id="wish-2")
    for _ in range(2):
        calls = len(stage.workspace.client.calls("chat.postMessage"))
        with stage.reporting():
            _wait_until(lambda: len(stage.workspace.client.calls("chat.postMessage")) > calls, "a refusal")  # noqa: B023 - called at once
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


def test_only_one_of_two_bots_reports(stage: Stage, job: JobRecord, expected: list[str]) -> None:
    with stage.reporting(), stage.reporting():
        _wait_until(lambda: stage.is_told(job), "the whole thread")
    assert stage.replies(job) == expected
    assert len(stage.workspace.client.calls("chat.postMessage")) == len(expected) + 1


def test_another_bot_takes_over_from_one_that_left(stage: Stage, demo_spec: RunSpec) -> None:
    with stage.reporting(hold_s=3600.0):
        first = stage.submit(demo_spec, "wish-1")
        _wait_until(lambda: bool(stage.replies(first)), "the first bot's thread")
    with stage.reporting():
        second = stage.submit(demo_spec, "wish-2")
        _wait_until(lambda: bool(stage.replies(second)), "the second bot's thread")


def test_a_slack_that_was_away_is_told_everything_afterwards(stage: Stage, job: JobRecord, expected: list[str]) -> None:
    stage.workspace.stop()
    with stage.reporting():
        memory = DeliveryStore(stage.store.client)
        _wait_until(lambda: memory.recall(job.id).intent is not None, "a first try")
        stage.workspace.start()
        _wait_until(lambda: stage.is_told(job), "the whole thread")
    assert stage.replies(job) == expected


@pytest.mark.parametrize("outage", [_restarted, _silent])
def test_a_redis_that_goes_away_in_the_middle_of_a_post_loses_and_doubles_nothing(  # noqa: PLR0917 - passed by name
    outage: Outage,
    workspace: LocalWorkspace,
    web_client: WebClient,
    demo_spec: RunSpec,
    worker_info: WorkerInfo,
    good_run: tuple[ChildEvent, ...],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with EmbeddedRedis(tmp_path) as server, _impatient_store(server.url) as store:
        stage = Stage(workspace, web_client, store)
        job = stage.submit(demo_spec, "wish-1")
        claim = store.claim("cpu", worker_info)
        assert claim is not None
        _finish(store, claim, good_run)
        workspace.client.inject("delayed", "chat.postMessage", times=4, delay_s=0.0)
        workspace.client.inject("delayed", "chat.postMessage", delay_s=1.0)
        memory = ForgetfulStore(store)
        with stage.reporting(memory=memory):
            _wait_until(lambda: len(workspace.client.calls("chat.postMessage")) == 5, "the fifth post on its way")
            with outage(server):
                assert memory.forgot.wait(30), "the fifth post was remembered after all"
                _wait_until(lambda: "Reporting goes on when it answers" in caplog.text, "the outage is noticed")
            _wait_until(lambda: stage.is_told(job), "the whole thread")
            _wait_until(lambda: "Redis answers again" in caplog.text, "the end of the outage is noticed")
        told = [(message.metadata or {})["event_payload"]["seq"] for message in stage.thread(job)]
        assert told == sorted(set(told))
        assert len(told) == len(memory.recall(job.id).posted) == 12
        assert workspace.client.calls("conversations.replies")


def test_a_deleted_progress_message_does_not_stop_the_thread(
    stage: Stage, claim: Claim, good_run: tuple[ChildEvent, ...]
) -> None:
    with stage.reporting():
        for event in good_run[:14]:
            stage.store.append(claim, event)
        _wait_until(lambda: stage.last_reply(claim.job).startswith("*Training*"), "progress")
        progress = stage.thread(claim.job)[-1]
        stage.client.chat_delete(channel=progress.channel, ts=progress.ts)
        _finish(stage.store, claim, good_run[14:])
        _wait_until(lambda: stage.is_told(claim.job), "the whole thread")
    assert stage.last_reply(claim.job).startswith("✅ *Succeeded*")
