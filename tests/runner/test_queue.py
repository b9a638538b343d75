"""Tickets through a real broker and a real Dramatiq worker."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dramatiq
import pytest
import redis
from dramatiq.brokers.redis import RedisBroker

from runner.actors import declare_look_for_work
from runner.embedded_redis import EmbeddedRedis
from runner.queue import ACTOR_NAME, build_broker, issue_ticket, queue_name, sweep, tickets_waiting

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


# --- how an idle worker waits ----------------------------------------------------------------------------------------


def waiting_clients(client: redis.Redis) -> int:
    """Consumers that wait in Redis for a wake-up."""
    listed: Any = client.client_list()
    return sum(entry["cmd"] == "blpop" and "b" in entry["flags"] for entry in listed)


def test_an_idle_worker_waits_in_redis_and_is_woken_by_a_ticket(
    broker: RedisBroker, redis_client: redis.Redis, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.ticket_consumer.LOOK_EVERY_S", 60)
    seen: list[str] = []
    declare_look_for_work(broker, "cpu", seen.append)
    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
    worker.start()
    eventually(lambda: waiting_clients(redis_client) == 1)

    issue_ticket(broker, "cpu")

    eventually(lambda: seen == ["cpu"])
    eventually(lambda: waiting_clients(redis_client) == 1)
    worker.stop()


def test_an_idle_worker_that_stops_waits_for_no_ticket(
    broker: RedisBroker, redis_client: redis.Redis, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.ticket_consumer.LOOK_EVERY_S", 60)
    declare_look_for_work(broker, "cpu", lambda _pool: None)
    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
    worker.start()
    eventually(lambda: waiting_clients(redis_client) == 1)

    worker.stop(timeout=30_000)

    assert [consumer.is_alive() for consumer in worker.consumers.values()] == [False, False]


def test_a_ticket_of_a_process_that_wakes_nobody_is_found(
    broker: RedisBroker,
    redis_client: redis.Redis,
    valkey_url: str,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runner.ticket_consumer.LOOK_EVERY_S", 1)
    seen: list[str] = []
    declare_look_for_work(broker, "cpu", seen.append)
    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
    worker.start()
    eventually(lambda: waiting_clients(redis_client) == 1)
    older = RedisBroker(url=valkey_url)  # type: ignore[no-untyped-call]  # Dramatiq leaves it untyped

    issue_ticket(older, "cpu")

    eventually(lambda: seen == ["cpu"])
    worker.stop()
    older.close()
    older.client.close()


def test_a_wake_up_is_left_to_those_who_are_idle(
    broker: RedisBroker, redis_client: redis.Redis, eventually: Eventually
) -> None:
    started, done = threading.Event(), threading.Event()

    def look(_pool: str) -> None:
        started.set()
        done.wait(30)

    declare_look_for_work(broker, "cpu", look)
    worker = dramatiq.Worker(broker, worker_timeout=20, worker_threads=1)
    worker.queue_prefetch = 1
    worker.start()
    issue_ticket(broker, "cpu")
    assert started.wait(30)
    eventually(lambda: redis_client.llen("dramatiq:qlora.cpu.wake") == 0 and waiting_clients(redis_client) == 0)

    issue_ticket(broker, "cpu")

    assert redis_client.blpop(["dramatiq:qlora.cpu.wake"], 1) is not None
    done.set()
    eventually(lambda: broker.do_qsize(queue_name("cpu")) == 0)
    worker.stop()


def test_a_ticket_that_is_given_back_wakes_somebody_else(broker: RedisBroker, redis_client: redis.Redis) -> None:
    issue_ticket(broker, "cpu")
    redis_client.delete("dramatiq:qlora.cpu.wake")
    consumer = broker.consume(queue_name("cpu"))
    ticket = next(consumer)
    assert ticket is not None

    consumer.requeue([ticket])

    assert tickets_waiting(broker, "cpu") == 1
    assert redis_client.llen("dramatiq:qlora.cpu.wake") == 1


# --- what dead brokers leave -----------------------------------------------------------------------------------------


def test_what_a_dead_worker_held_is_swept_away_and_what_a_live_one_holds_is_not(
    broker: RedisBroker, redis_client: redis.Redis, valkey_url: str
) -> None:
    dead = build_broker(valkey_url)
    for holder in (broker, dead):
        issue_ticket(holder, "cpu")
        assert len(holder.do_fetch(queue_name("cpu"), 1)) == 1
    redis_client.zadd("dramatiq:__heartbeats__", {dead.broker_id: 1})

    assert sweep(broker, ["cpu", "gpu"]) == 1

    assert redis_client.zrange("dramatiq:__heartbeats__", 0, -1) == [broker.broker_id]
    assert redis_client.hlen("dramatiq:qlora.cpu.msgs") == 1
    assert list(redis_client.scan_iter("dramatiq:__acks__*")) == [f"dramatiq:__acks__.{broker.broker_id}.qlora.cpu"]
    assert sweep(broker, ["cpu", "gpu"]) == 0
    dead.close()
    dead.client.close()


def test_a_ticket_that_failed_is_kept_for_a_week(broker: RedisBroker, redis_client: redis.Redis) -> None:
    for age in ("new", "old"):
        redis_client.hset("dramatiq:qlora.cpu.XQ.msgs", age, "{}")
    now_ms = round(time.time() * 1000)
    redis_client.zadd("dramatiq:qlora.cpu.XQ", {"new": now_ms - 6 * 86_400_000, "old": now_ms - 8 * 86_400_000})

    sweep(broker, ["cpu"])

    assert redis_client.hkeys("dramatiq:qlora.cpu.XQ.msgs") == ["new"]
    assert redis_client.zrange("dramatiq:qlora.cpu.XQ", 0, -1) == ["new"]


def test_no_ticket_makes_redis_look_through_all_its_keys(
    broker: RedisBroker, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.randint", lambda least, _most: least)
    redis_client.zadd("dramatiq:__heartbeats__", {"a dead one": 1})
    redis_client.config_resetstat()

    issue_ticket(broker, "cpu")
    broker.do_fetch(queue_name("cpu"), 1)

    assert "cmdstat_keys" not in redis_client.info("commandstats")
