"""The whole way with every part real: command, worker process, 4-bit training, thread."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from bot.workspace.records import Message
from tests.faults.stack import Stack

pytestmark = [pytest.mark.training, pytest.mark.timeout(900)]


MILESTONES = (
    "job_queued",
    "versions_reported",
    "config_loaded",
    "data_mixed",
    "model_loaded",
    "training_started",
    "job_requeued",
    "adapter_verified",
    "job_succeeded",
)
"""Events whose first occurrence has a message of its own in every thread of a job that was resumed and succeeded."""


def texts(thread: list[Message]) -> str:
    return "\n".join(message.text for message in thread)


def position(thread: list[Message], words: str) -> int:
    """Where in the thread the first message with these words stands."""
    places = [number for number, message in enumerate(thread) if words in message.text]
    assert places, f"no message says {words!r}:\n{texts(thread)}"
    return places[0]


def test_a_start_command_ends_with_a_verified_adapter_and_the_thread_tells_it_in_order(stack: Stack) -> None:
    job = stack.start("/qlora start demo")

    thread = stack.wait_until_told(job.id)
    job = stack.store.get(job.id)

    assert job.state == "succeeded", texts(thread)
    milestones = [
        "Queued in pool `local`",
        "transformers",
        "model_type",
        "arithmetic",
        "✅ Model loaded with 4-bit quantization, config protected",
        "tokens/s",
        "fresh process",
        "loss",
    ]
    places = [position(thread[1:], words) for words in milestones[:-1]]
    assert places == sorted(places), texts(thread)
    assert job.adapter_path is not None
    assert job.adapter_path in thread[-1].text
    assert {"adapter_model.safetensors", "adapter_config.json", "manifest.json", "README.md"} <= {
        path.name for path in Path(job.adapter_path).iterdir()
    }
    scores = {
        stored.event.when: stored.event.exact_match[0]
        for stored in stack.store.events(job.id)
        if stored.event.kind == "evaluated"
    }
    assert scores["before"].share <= 0.05
    assert scores["after"].share >= 0.9


def test_the_thread_carries_every_fallback_in_the_original_words_with_its_reason(stack: Stack) -> None:
    job = stack.start("/qlora start stubborn")

    thread = stack.wait_until_told(job.id)

    assert stack.store.get(job.id).state == "succeeded", texts(thread)
    first = position(thread, "⚠️ 4-bit quantization failed with ")
    second = position(thread, "⚠️ 8-bit quantization also failed, trying without quantization...")
    held = position(thread, "✅ Model loaded without quantization, config protected")
    assert first < second < held
    assert ", trying 8-bit quantization..." in thread[first].text


def test_a_missing_model_fails_the_job_with_code_message_and_hint_and_does_not_fall_back(stack: Stack) -> None:
    job = stack.start("/qlora start homeless")

    thread = stack.wait_until_told(job.id)
    job = stack.store.get(job.id)

    assert job.state == "failed"
    assert job.error_code in {"model-not-found", "model-offline"}
    assert "nowhere-to-be-found" in (job.error_message or "")
    assert job.error_hint
    assert str(job.error_code) in thread[-1].text
    assert not any("⚠️ 4-bit" in message.text for message in thread)


def test_a_stop_in_mid_training_leaves_a_checkpoint_and_ends_the_job_as_cancelled(stack: Stack) -> None:
    job = stack.start("/qlora start demo num_train_epochs=500")
    stack.wait_for_event(job.id, "metrics_logged")

    stack.workspace.command(f"/qlora stop {job.id}")
    thread = stack.wait_until_told(job.id)
    job = stack.store.get(job.id)

    assert job.state == "cancelled"
    (end,) = [stored.event for stored in stack.store.events(job.id) if stored.event.kind == "job_cancelled"]
    assert end.checkpoint is not None
    assert (Path(end.checkpoint) / "complete").exists()
    assert "Cancelled" in thread[-1].text


def test_a_worker_that_is_restarted_in_mid_training_hands_its_job_over_with_a_checkpoint(stack: Stack) -> None:
    job = stack.start("/qlora start demo num_train_epochs=500 logging_steps=1")
    stack.wait_for_event(job.id, "metrics_logged")
    owner = stack.store.get(job.id).worker
    (part,) = [part for part in stack.parts if part.name == owner]
    processes = [psutil.Process(part.process.pid), *psutil.Process(part.process.pid).children(recursive=True)]

    stack.restart(part)
    stack.wait(
        lambda: stack.kinds(job.id)[-1:] == ["metrics_logged"] and stack.store.get(job.id).attempt == 2, "resumed"
    )
    stack.workspace.command(f"/qlora stop {job.id}")
    thread = stack.wait_until_told(job.id)
    job = stack.store.get(job.id)
    events = [stored.event for stored in stack.store.events(job.id)]

    assert job.state == "cancelled"
    assert not job.lost_hosts
    [interrupted, _] = [event for event in events if event.kind == "run_interrupted"]
    started = [event.resumed_from_step for event in events if event.kind == "training_started"]
    assert started == [0, interrupted.step]
    assert interrupted.step > 0
    assert [event.reason for event in events if event.kind == "job_requeued"] == ["worker-stopped"]
    assert not any("was lost" in message.text for message in thread), texts(thread)
    assert not any(process.is_running() for process in processes)


def test_a_killed_worker_s_job_is_resumed_by_another_from_the_last_checkpoint(stack: Stack) -> None:
    job = stack.start("/qlora start demo save_steps=20")
    stack.wait_for_event(job.id, "checkpoint_saved")
    owner = stack.store.get(job.id).worker
    (part,) = [part for part in stack.parts if part.name == owner]
    os.kill(part.process.pid, signal.SIGKILL)

    thread = stack.wait_until_told(job.id)
    job = stack.store.get(job.id)
    events = stack.store.events(job.id)

    assert job.state == "succeeded", texts(thread)
    assert job.worker != owner
    assert job.attempt == 2
    resumed = [stored.event.resumed_from_step for stored in events if stored.event.kind == "training_started"]
    assert resumed[0] == 0
    assert resumed[1] >= 20
    assert [stored.event.kind for stored in events].count("job_requeued") == 1
    lost = [message for message in thread[1:] if "was lost" in message.text]
    assert len(lost) == 1, texts(thread)
    told = [message.metadata["event_payload"]["seq"] for message in thread[1:] if message.metadata]
    assert told == sorted(set(told)), "a milestone is doubled or out of order"
    first: dict[str, int] = {stored.event.kind: stored.seq for stored in reversed(events)}
    claims = [stored.seq for stored in events if stored.event.kind == "job_claimed"]
    milestones = {first[kind] for kind in MILESTONES} | set(claims)
    assert milestones <= set(told), "a milestone is lost"
