"""The whole bot: typed into a workspace over Socket Mode, jobs in a real Valkey, threads over the real Web API."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from dramatiq.brokers.redis import RedisBroker

from bot.app import Bot
from bot.render.plan import STOP_ACTION
from bot.settings import SlackAccess
from bot.workspace.faults import DisconnectKind, FaultKind
from bot.workspace.records import Message
from bot.workspace.server import LocalWorkspace
from runner.embedded_redis import EmbeddedRedis
from runner.events import ChildEvent, RunSucceeded
from runner.job_events import JobCancelled, JobSucceeded
from runner.jobs import JobRecord, JobState, WorkerInfo
from runner.queue import build_broker, tickets_waiting
from runner.store import Claim, Store

PROJECT = """
name = "demo"
base_model = "tiny-llama"
output_directory = "demo"
[[traits]]
trait_type = "arithmetic"
[[traits.datasets]]
dataset_id = 1
[evaluation]
prompts = ["2+3="]
exact_match = [1]
[compute]
pool = "cpu"
"""


MILESTONES = (
    "*demo*",
    "Queued in pool",
    "Claimed on host",
    "*Versions*",
    "*Base model*",
    "*Data*",
    "✅ Model loaded with 4-bit quantization, config protected",
    "*Before training*",
    "*Training* · step 120 of 120",
    "*After training*",
    "*Adapter verified*",
    "✅ *Succeeded*",
)
"""How the messages of a good run's thread begin."""


@pytest.fixture
def projects_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "projects"
    (folder / "data").mkdir(parents=True)
    (folder / "demo.toml").write_text(PROJECT)
    (folder / "datasets.toml").write_text('[1]\nname = "addition"\npath = "data/addition.jsonl"\n')
    (folder / "data" / "addition.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n')
    return folder


@dataclass(frozen=True, slots=True)
class Scene:
    """A running bot in its workspace, and what stands behind it."""

    workspace: LocalWorkspace
    store: Store
    broker: RedisBroker
    projects_dir: Path

    def say(self, line: str) -> str:
        """Type a command and read the answer that only the typist sees."""
        before = self.workspace.client.status()["cursor"]
        answer = self.workspace.client.command(line, wait_s=0)
        assert answer.acknowledged, answer.error
        # The thread that a command opens may be quicker than its answer.
        return self.private_answer(before)

    def private_answer(self, after: int) -> str:
        """The next message that only one person sees."""
        return self.workspace.client.wait_for(
            lambda message: message.visible_to is not None and message.posted_seq > after
        ).text

    def start(self) -> JobRecord:
        """Start the demo and wait for its thread."""
        self.say("/qlora start demo")
        job = self.store.jobs()[0]
        wait_until(lambda: len(self.thread(job)) > 1, "the thread")
        return job

    def claim(self, worker: WorkerInfo) -> Claim:
        """Let a worker take the next job."""
        claim = self.store.claim(worker.pool, worker)
        assert claim is not None
        return claim

    def thread(self, job: JobRecord) -> list[Message]:
        """The job's root message and its replies."""
        root = self.workspace.client.find_thread(job.id)
        if root is None:
            return []
        seen = self.workspace.client.messages(thread_ts=root.ts)
        return [message for message in seen if message.visible_to is None and message.user != USER_ID]


USER_ID = "U0LOCALYOU"


@pytest.fixture
def scene(workspace: LocalWorkspace, store: Store, broker: RedisBroker, projects_dir: Path) -> Iterator[Scene]:
    access = SlackAccess(workspace.api_url, workspace.bot_token, workspace.app_token, local=True)
    with Bot(access, store, broker, projects_dir, edit_every_s=0.2):
        workspace.client.wait_connected()
        yield Scene(workspace, store, broker, projects_dir)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.02)


def test_a_job_goes_from_the_command_to_the_end_of_its_thread(
    scene: Scene, worker_info: WorkerInfo, good_run: tuple[ChildEvent, ...]
) -> None:
    answer = scene.say("/qlora start demo lora.r=8")
    (job,) = scene.store.jobs()
    assert f"Queued `{job.id}` in pool `cpu`" in answer
    assert "Changed for this job: `lora.r=8`" in answer
    assert job.spec.project.lora.r == 8
    assert tickets_waiting(scene.broker, "cpu") == 1

    claim = scene.claim(worker_info)
    for event in good_run:
        scene.store.append(claim, event)
    last = good_run[-1]
    assert isinstance(last, RunSucceeded)
    scene.store.finish(claim, JobSucceeded(summary=last.summary, adapter_path="/outputs/demo/adapter"))

    wait_until(lambda: "Succeeded" in scene.thread(job)[-1].text, "the end")
    wait_until(lambda: "Succeeded" in scene.thread(job)[0].text, "the root message")
    for message, start in zip(scene.thread(job), MILESTONES, strict=True):
        assert message.text.startswith(start)
    assert not [block for block in scene.thread(job)[0].blocks if block["type"] == "actions"]


BAD_INPUT = {
    "/qlora strat demo": "Did you mean `/qlora start demo`?",
    "/qlora start nope": "The projects are: demo.",
    "/qlora start demo lora.r=many": "lora.r",
    "/qlora start demo “open": "never closed",
    "/qlora stop demo": "There is no job 'demo'.",
    "/qlora": "`/qlora start PROJECT [key=value …]`",
}
"""What is typed, and what the answer says among other things."""


def test_bad_input_is_answered_and_nothing_is_queued(scene: Scene) -> None:
    for line, told in BAD_INPUT.items():
        assert told in scene.say(line)
    assert scene.store.jobs() == []


def test_every_problem_of_a_project_is_in_one_answer(scene: Scene) -> None:
    broken = PROJECT.replace("dataset_id = 1", "dataset_id = 7\npercentage = 101") + "[lora]\nrank = 3\n"
    (scene.projects_dir / "demo.toml").write_text(broken)
    answer = scene.say("/qlora start demo")
    assert "3 problems" in answer
    assert "Nothing was queued" in answer
    for place in ("`demo.toml:8`", "`demo.toml:9`", "`lora.rank`"):
        assert place in answer
    assert scene.store.jobs() == []


def test_broken_toml_is_answered_with_line_and_column(scene: Scene) -> None:
    (scene.projects_dir / "demo.toml").write_text('name = "demo"\nbase_model = \n')
    assert "`demo.toml:2:" in scene.say("/qlora start demo")
    assert scene.store.jobs() == []


def test_an_answer_with_a_table_reaches_a_workspace_that_refuses_tables(scene: Scene) -> None:
    scene.workspace.client.refuse_block("table")
    assert "transformers" in scene.say("/qlora versions")


@pytest.mark.parametrize(("kind", "times"), [("server_error", 1), ("dropped_request", 2)])
def test_an_answer_that_its_address_does_not_take_comes_another_way(kind: FaultKind, times: int, scene: Scene) -> None:
    scene.workspace.client.inject(kind, "response_url", times=times)
    assert "`/qlora jobs`" in scene.say("/qlora help")
    assert [call.outcome for call in scene.workspace.client.calls("chat.postEphemeral")] == ["ok"]


def test_status_tells_queue_running_jobs_and_workers(
    scene: Scene, worker_info: WorkerInfo, good_run: tuple[ChildEvent, ...]
) -> None:
    running, waiting = scene.start(), scene.start()
    scene.store.announce(worker_info.model_copy(update={"job_id": running.id}))
    claim = scene.claim(worker_info)
    for event in good_run[:15]:
        scene.store.append(claim, event)
    answer = scene.say("/qlora status")
    assert f"• `{running.id}` on `gpu-1`" in answer
    assert "step 40 of 120 · loss 0.125 · 5,100 tokens/s · about 8.0 s left" in answer
    assert f"1. `{waiting.id}` by <@{USER_ID}>" in answer
    assert f"• `gpu-1:4711` · cpu (2 threads) · `{running.id}`" in answer
    assert "Position 1 in pool `cpu`" in scene.say(f"/qlora status {waiting.id}")


def test_a_queued_job_is_cancelled_by_command(scene: Scene) -> None:
    job = scene.start()
    assert scene.say(f"/qlora stop {job.id[:7]}") == f"Cancelled `{job.id}`; it was not running."
    wait_until(lambda: scene.thread(job)[-1].text.startswith("*Cancelled*"), "the end of the thread")
    assert "is over" in scene.say(f"/qlora stop {job.id}")


def test_the_stop_button_asks_the_running_job_to_stop(scene: Scene, worker_info: WorkerInfo) -> None:
    job = scene.start()
    claim = scene.claim(worker_info)
    before = scene.workspace.client.status()["cursor"]
    answer = scene.workspace.client.click(scene.thread(job)[0].ts, STOP_ACTION, wait_s=0)
    assert answer.acknowledged
    assert f"Stopping `{job.id}`" in scene.private_answer(before)
    assert scene.store.renew(claim).stop_requested_by == USER_ID
    scene.store.finish(claim, JobCancelled(by=USER_ID, step=3, checkpoint="/runs/checkpoint-3"))
    wait_until(lambda: scene.thread(job)[-1].text.startswith("*Cancelled* by <@U0LOCALYOU> at step 3"), "the end")
    wait_until(lambda: not any(block["type"] == "actions" for block in scene.thread(job)[0].blocks), "no more button")


def test_a_mention_inside_a_thread_means_its_job(scene: Scene) -> None:
    scene.start()
    job = scene.start()
    before = scene.workspace.client.status()["cursor"]
    bot_user = scene.workspace.client.status()["bot_user"]
    bot_id = bot_user["id"] if isinstance(bot_user, dict) else bot_user
    scene.workspace.client.post(f"<@{bot_id}> stop", thread_ts=scene.thread(job)[0].ts)
    assert scene.private_answer(before) == f"Cancelled `{job.id}`; it was not running."
    assert scene.store.get(job.id).state is JobState.CANCELLED


def test_mentions_that_wait_for_redis_delay_no_acknowledgement(
    workspace: LocalWorkspace, projects_dir: Path, tmp_path: Path
) -> None:
    access = SlackAccess(workspace.api_url, workspace.bot_token, workspace.app_token, local=True)
    bot_user, thread = workspace.client.status()["bot_user"], workspace.client.post("a thread")
    with EmbeddedRedis(tmp_path / "own") as server, closing(Store.connect(server.url)) as store:
        broker = build_broker(server.url)
        with Bot(access, store, broker, projects_dir):
            workspace.client.wait_connected()
            os.kill(server.pid, signal.SIGSTOP)
            try:
                for _ in range(5):
                    workspace.client.post(f"<@{bot_user}> stop", thread_ts=thread.ts)
                answer = workspace.client.command("/qlora help")
            finally:
                os.kill(server.pid, signal.SIGCONT)
            assert "`/qlora jobs`" in answer.messages[0].text
        broker.client.close()


@pytest.mark.parametrize("kind", ["refresh", "reset"])
def test_commands_work_again_after_a_disconnect(kind: DisconnectKind, scene: Scene) -> None:
    assert scene.workspace.client.disconnect(kind) >= 1
    wait_until(lambda: scene.workspace.client.command("/qlora help", wait_s=0).acknowledged, "a new connection", 40.0)
