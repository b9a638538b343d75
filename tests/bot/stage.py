"""A workspace and a store to play on, and what a test needs to look at the threads there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from slack_sdk import WebClient

from bot.delivery import DeliveryStore
from bot.job_thread import JobThread
from bot.outbox import Outbox
from bot.reporter import Reporter
from bot.workspace.records import Message
from bot.workspace.server import LocalWorkspace
from runner.events import ChildEvent, RunSucceeded
from runner.job_events import JobSucceeded
from runner.jobs import JobRecord
from runner.spec import RunSpec
from runner.store import Claim, Store


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
            wait_until(lambda: self.is_told(job), "the whole thread")


def finish(store: Store, claim: Claim, events: tuple[ChildEvent, ...]) -> JobRecord:
    """Let an attempt go the whole way."""
    for event in events:
        store.append(claim, event)
    last = events[-1]
    assert isinstance(last, RunSucceeded)
    return store.finish(claim, JobSucceeded(summary=last.summary, adapter_path="/outputs/demo/adapter"))


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Look again and again until something holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)
