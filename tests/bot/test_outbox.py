"""Every milestone exactly once: whatever Slack, Redis and the bot itself do in the middle of a post."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bot.delivery import DeliveryStore
from bot.workspace.faults import FaultKind
from runner.embedded_redis import EmbeddedRedis
from runner.errors import UnavailableError
from runner.events import ChildEvent
from runner.jobs import JobRecord, WorkerInfo
from runner.redis_client import build_client
from runner.spec import RunSpec
from runner.store import Store
from tests.bot.stage import Stage, finish, wait_until


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
    wait_until(lambda: all(call.outcome == "ok" for call in posts("chat.postMessage")), "the late post")
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
        wait_until(lambda: len(stage.replies(job)) == len(expected), "every reply")


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


def test_a_slack_that_was_away_is_told_everything_afterwards(stage: Stage, job: JobRecord, expected: list[str]) -> None:
    stage.workspace.stop()
    with stage.reporting():
        memory = DeliveryStore(stage.store.client)
        wait_until(lambda: memory.recall(job.id).intent is not None, "a first try")
        stage.workspace.start()
        wait_until(lambda: stage.is_told(job), "the whole thread")
    assert stage.replies(job) == expected


@pytest.mark.parametrize("outage", [_restarted, _silent])
def test_a_redis_that_goes_away_in_the_middle_of_a_post_loses_and_doubles_nothing(  # noqa: PLR0917 - passed by name
    outage: Outage,
    stage: Stage,
    demo_spec: RunSpec,
    worker_info: WorkerInfo,
    good_run: tuple[ChildEvent, ...],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    with EmbeddedRedis(tmp_path) as server, _impatient_store(server.url) as store:
        stage, workspace = replace(stage, store=store), stage.workspace
        job = stage.submit(demo_spec, "wish-1")
        claim = store.claim("cpu", worker_info)
        assert claim is not None
        finish(store, claim, good_run)
        workspace.client.inject("delayed", "chat.postMessage", times=4, delay_s=0.0)
        workspace.client.inject("delayed", "chat.postMessage", delay_s=1.0)
        memory = ForgetfulStore(store)
        with stage.reporting(memory=memory):
            wait_until(lambda: len(workspace.client.calls("chat.postMessage")) == 5, "the fifth post on its way")
            with outage(server):
                assert memory.forgot.wait(30), "the fifth post was remembered after all"
                wait_until(lambda: "Reporting goes on when it answers" in caplog.text, "the outage is noticed")
            wait_until(lambda: stage.is_told(job), "the whole thread")
            wait_until(lambda: "Redis answers again" in caplog.text, "the end of the outage is noticed")
        told = [(message.metadata or {})["event_payload"]["seq"] for message in stage.thread(job)]
        assert told == sorted(set(told))
        assert len(told) == len(memory.recall(job.id).posted) == 12
        assert workspace.client.calls("conversations.replies")
