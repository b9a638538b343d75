"""Tickets through a real broker and a real Dramatiq worker."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from runner.embedded_redis import EmbeddedRedis
from runner.queue import ACTOR_NAME, build_broker, issue_ticket, queue_name, tickets_waiting

Eventually = Callable[..., None]


def test_a_ticket_needs_no_actor_and_waits_in_its_pools_queue(broker: RedisBroker) -> None:
    issue_ticket(broker, "gpu")
    issue_ticket(broker, "gpu")
    issue_ticket(broker, "cpu")

    assert [tickets_waiting(broker, pool) for pool in ("gpu", "cpu", "other")] == [2, 1, 0]


def test_a_ticket_reaches_the_actor_of_its_pool(broker: RedisBroker, eventually: Eventually) -> None:
    seen: list[str] = []

    @dramatiq.actor(broker=broker, actor_name=ACTOR_NAME, queue_name=queue_name("cpu"))
    def look_for_work(pool: str) -> None:
        seen.append(pool)

    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
    worker.start()
    issue_ticket(broker, "gpu")
    issue_ticket(broker, "cpu")
    eventually(lambda: seen == ["cpu"] and broker.do_qsize(queue_name("cpu")) == 0)
    worker.stop()

    assert tickets_waiting(broker, "gpu") == 1


def test_a_ticket_in_the_hands_of_a_busy_worker_does_not_count(broker: RedisBroker) -> None:
    started, done = threading.Event(), threading.Event()

    @dramatiq.actor(broker=broker, actor_name=ACTOR_NAME, queue_name=queue_name("cpu"))
    def look_for_work(pool: str) -> None:
        assert pool == "cpu"
        started.set()
        done.wait(30)

    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
    worker.start()
    issue_ticket(broker, "cpu")
    assert started.wait(30)

    waiting = tickets_waiting(broker, "cpu")
    done.set()
    worker.stop()

    assert waiting == 0


def test_an_actor_that_raises_is_not_tried_again(broker: RedisBroker, eventually: Eventually) -> None:
    seen: list[str] = []

    @dramatiq.actor(broker=broker, actor_name=ACTOR_NAME, queue_name=queue_name("cpu"), throws=(LookupError,))
    def look_for_work(pool: str) -> None:
        seen.append(pool)
        raise LookupError(pool)

    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
    worker.start()
    issue_ticket(broker, "cpu")
    eventually(lambda: seen and broker.do_qsize(queue_name("cpu")) == 0)
    worker.stop()

    assert seen == ["cpu"]
    assert broker.do_qsize(queue_name("cpu")) == 0


def test_a_worker_goes_on_after_redis_was_killed_and_came_back(tmp_path: Path, eventually: Eventually) -> None:
    with EmbeddedRedis(tmp_path) as server:
        broker = build_broker(server.url)
        seen: list[str] = []
        started, done = threading.Event(), threading.Event()

        @dramatiq.actor(broker=broker, actor_name=ACTOR_NAME, queue_name=queue_name("cpu"))
        def look_for_work(pool: str) -> None:
            seen.append(pool)
            started.set()
            done.wait(30)

        worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
        worker.start()
        issue_ticket(broker, "cpu")
        assert started.wait(30)

        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        server.start()
        done.set()

        # The ticket that was worked on is acknowledged, and the next one is taken.
        eventually(lambda: broker.do_qsize(queue_name("cpu")) == 0)
        issue_ticket(broker, "cpu")
        eventually(lambda: len(seen) == 2)
        worker.stop()
        broker.client.close()
