"""Messages that somebody else has put into a pool's Dramatiq queue: they run nothing, and the worker goes on."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.redis import RedisBroker

from runner.actors import declare_look_for_work
from runner.queue import ACTOR_NAME, issue_ticket, queue_name

Eventually = Callable[..., None]
QUEUE = queue_name("cpu")


def message(**changes: Any) -> bytes:
    """A ticket of pool `cpu`, with changes."""
    fields = {
        "queue_name": QUEUE,
        "actor_name": ACTOR_NAME,
        "args": [],
        "kwargs": {"pool": "cpu"},
        "options": {"redis_message_id": "planted"},
        "message_id": "m1",
        "message_timestamp": 1,
    }
    return json.dumps(fields | changes).encode()


def options(**more: Any) -> dict[str, Any]:
    return {"redis_message_id": "planted", **more}


HOSTILE = {
    "a pickle": pickle.dumps({"actor_name": ACTOR_NAME}),
    "a pickle that calls": b"cposix\nsystem\n(S'touch /tmp/pwned'\ntR.",
    "no text": b"\xff\xfe\x00",
    "cut": message()[:-9],
    "nested without end": b"[" * 200_000,
    "a number": b"7",
    "no fields": b"{}",
    "more fields": message(callback="x"),
    "a foreign actor": message(actor_name="os.system", args=["true"]),
    "an actor that is no name": message(actor_name=["look_for_work"]),
    "a foreign queue": message(queue_name="qlora.gpu"),
    "a foreign pool": message(kwargs={"pool": "gpu"}),
    "arguments": message(args=["cpu"]),
    "foreign arguments": message(kwargs={"pool": "cpu", "shell": "true"}),
    "arguments that are none": message(kwargs=["cpu"]),
    "an exception class that is none": message(args=[1], options=options(throws="x")),
    "a time limit": message(options=options(time_limit=1)),
    "retries": message(options=options(max_retries=10**9)),
    "a delay": message(options=options(eta=4_000_000_000_000)),
    "options that are none": message(options=["redis_message_id"]),
    "no id": message(options={}),
    "an id that is none": message(message_id=["m1"]),
}


@pytest.fixture
def seen(broker: RedisBroker) -> Iterator[list[str]]:
    """The pools for which a real Dramatiq worker has looked for work."""
    looked: list[str] = []
    declare_look_for_work(broker, "cpu", looked.append)
    worker = dramatiq.Worker(broker, queues={QUEUE}, worker_timeout=20, worker_threads=1)
    worker.queue_prefetch = 1
    worker.start()
    yield looked
    worker.stop()


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_a_message_that_is_no_ticket_runs_nothing_and_the_next_ticket_is_taken(
    broker: RedisBroker, seen: list[str], eventually: Eventually, body: bytes
) -> None:
    broker.do_enqueue(QUEUE, "planted", body)
    broker.do_enqueue(f"{QUEUE}.DQ", "planted", body)
    issue_ticket(broker, "cpu")

    eventually(lambda: seen)
    issue_ticket(broker, "cpu")
    eventually(lambda: len(seen) == 2)

    assert seen == ["cpu", "cpu"]
