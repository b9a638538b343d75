"""Dramatiq's side: the broker, and the tickets that tell an idle worker to look for work in its pool.

Redis may deliver a message zero, one or several times, and keeps no order that we could use. So a message says nothing
but "look": what there is to do stands in `runner.store`. A ticket too many finds nothing; a missing one is issued again
by `runner.reconciler`.

Whoever can write to Redis can also put messages there, so a worker takes up nothing but what it would have written
itself: a foreign actor, option or queue would end Dramatiq's only thread, or an attempt that runs in it.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Middleware, Retries, ShutdownNotifications, TimeLimit

from runner.redis_client import build_client, redis_at_hand
from runner.ticket_consumer import NoTickets, PatientConsumer, TicketConsumer, wake_key

logger = logging.getLogger(__name__)

ACTOR_NAME = "look_for_work"
"""The actor that takes tickets (`runner.actors`); its one argument is `pool`."""
MOST_WAKES = 1000
"""Waiting workers that are woken at most before they have looked again."""
WAKE_S = 60
"""How long a wake-up waits for somebody to wake; it matters in the moment between a worker's look and its wait."""
DEAD_AFTER_S = 86_400.0
"""A broker that has not been heard of for so long is dead, or has been training all the time and needs no ticket."""
DEAD_LETTERS_S = 7 * 86_400.0
"""How long a ticket stays to be looked at whose actor raised an error; Dramatiq's own default."""

_TICKET_FIELDS = {"queue_name", "actor_name", "args", "kwargs", "options", "message_id", "message_timestamp"}
# Dramatiq's delay queue of a queue; nothing of ours is ever delayed.
_DELAYED = ".DQ"
_WAKE = """
if redis.call('llen', KEYS[1]) < tonumber(ARGV[2]) then redis.call('rpush', KEYS[1], '') end
redis.call('expire', KEYS[1], ARGV[1])
"""


def queue_name(pool: str) -> str:
    """The Dramatiq queue of a pool."""
    return f"qlora.{pool}"


class TicketBroker(RedisBroker):
    """Dramatiq's Redis broker, with two differences for workers.

    They get to see tickets of their own queue, and nothing else that lies there. And while there is none they wait in
    Redis instead of asking all the time (`runner.ticket_consumer`).

    Dramatiq's own maintenance is switched off. It would look through every key in Redis once for each process that has
    gone, all in one step, and gives back messages that the reconciler has long since replaced. `sweep` does the rest.

    Args:
        url: Where Redis is.
    """

    def __init__(self, url: str) -> None:
        super().__init__(  # type: ignore[no-untyped-call]  # Dramatiq leaves it untyped
            client=build_client(url, decode_responses=False),
            middleware=[
                TimeLimit(time_limit=float("inf")),
                ShutdownNotifications(),
                Retries(max_retries=0),
                _WakeOnShutdown(self),
            ],
            maintenance_chance=0,
        )
        # A stopping worker must not wait for a Redis that is away.
        self._hasty_client = build_client(url, decode_responses=False, retries=0, timeout_s=1.0)
        self._wake = self.client.register_script(_WAKE)
        self._consumers: dict[str, PatientConsumer] = {}

    def do_fetch(self, queue_name: str, count: int) -> list[bytes]:
        """Fetch as Dramatiq does, and leave out what is no ticket."""
        fetched: list[bytes | None] = self._dispatch("fetch")(queue_name, count)  # type: ignore[no-untyped-call]
        tickets = []
        for data in fetched:
            if data is not None and _is_ticket(data, queue_name):
                tickets.append(data)
            else:
                self._drop(queue_name, data)
        return tickets

    def _drop(self, queue_name: str, data: bytes | None) -> None:
        size = 0 if data is None else len(data)
        logger.warning("Dropped a message of %d bytes in queue %s that is no ticket.", size, queue_name)
        redis_id = _fields(data or b"").get("options")
        redis_id = redis_id.get("redis_message_id") if isinstance(redis_id, dict) else None
        if isinstance(redis_id, str):
            self.do_ack(queue_name, redis_id)

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> dramatiq.Consumer:  # noqa: ARG002 - see below
        """Called by Dramatiq's consumer threads."""
        consumer: PatientConsumer
        if queue_name.endswith(_DELAYED):
            consumer = NoTickets()
        else:
            # Without a timeout it never sleeps by itself.
            consumer = TicketConsumer(self, super().consume(queue_name, prefetch, timeout=0), queue_name)
        self._consumers[queue_name] = consumer
        return consumer

    def enqueue(self, message: dramatiq.Message[Any], *, delay: int | None = None) -> dramatiq.Message[Any]:
        """Add a message to its queue and wake one of those who wait there."""
        enqueued: dramatiq.Message[Any] = super().enqueue(message, delay=delay)
        self.wake(message.queue_name)
        return enqueued

    def wake(self, queue_name: str) -> None:
        """Let one waiting consumer of a queue look for a ticket; if nobody waits, the next one that would."""
        self._wake(keys=[wake_key(self, queue_name)], args=[WAKE_S, MOST_WAKES])

    def release_consumers(self) -> None:
        """Let this broker's own consumers end, which would otherwise wait for their next ticket."""
        for consumer in self._consumers.values():
            consumer.leave(self._hasty_client)

    def close(self) -> None:
        """Close what only this broker uses; `client` is its owner's to close."""
        super().close()
        self._hasty_client.close()


class _WakeOnShutdown(Middleware):
    def __init__(self, broker: TicketBroker) -> None:
        self._broker = broker

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:  # noqa: ARG002 - Dramatiq's
        self._broker.release_consumers()


def _fields(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _is_ticket(data: bytes, queue: str) -> bool:
    """Whether these bytes are what `issue_ticket` writes into that queue; only ids and the time may be any."""
    fields = _fields(data)
    options = fields.get("options")
    return (
        fields.keys() == _TICKET_FIELDS
        and fields["queue_name"] == queue
        and fields["actor_name"] == ACTOR_NAME
        and fields["args"] == []
        and fields["kwargs"] == {"pool": queue.removeprefix(queue_name(""))}
        and isinstance(options, dict)
        and options.keys() == {"redis_message_id"}
        and all(isinstance(one, str) for one in (options["redis_message_id"], fields["message_id"]))
        and isinstance(fields["message_timestamp"], int)
    )


def build_broker(url: str) -> TicketBroker:
    """Build the broker; the bot, the workers and the reconciler all use this one.

    No retries and no time limit unless an actor asks for them: a ticket is never worth a second try, and a training may
    take days. The tickets that a dead worker held need no care: the reconciler issues others.

    Raises:
        UnavailableError: The URL cannot be meant.
    """
    return TicketBroker(url)


def issue_ticket(broker: RedisBroker, pool: str) -> None:
    """Tell one worker of the pool to look for work. Needs no actor to be declared.

    Raises:
        UnavailableError: Redis does not answer.
    """
    message: dramatiq.Message[None] = dramatiq.Message(
        queue_name=queue_name(pool), actor_name=ACTOR_NAME, args=(), kwargs={"pool": pool}, options={}
    )
    with redis_at_hand():
        broker.enqueue(message)


def tickets_waiting(broker: RedisBroker, pool: str) -> int:
    """Count the tickets that no worker has fetched yet.

    Raises:
        UnavailableError: Redis does not answer.
    """
    # Dramatiq's own count includes what workers hold, and a busy worker helps nobody. The key is Dramatiq's list.
    with redis_at_hand():
        waiting: Any = broker.client.llen(f"{broker.namespace}:{queue_name(pool)}")
    return int(waiting)


def sweep(broker: RedisBroker, pools: list[str]) -> int:
    """Remove what dead brokers have left in Dramatiq's keys, and tickets that failed long ago.

    Args:
        broker: Any broker on the Redis.
        pools: Every pool that ever had a job.

    Returns:
        How many dead brokers were forgotten.

    Raises:
        UnavailableError: Redis does not answer.
    """
    # Keys and scores (ms since 1970, by the clock of whoever wrote them) are those of Dramatiq's dispatch.lua.
    now, redis, heartbeats = time.time(), broker.client, f"{broker.namespace}:__heartbeats__"
    with redis_at_hand():
        dead: Any = redis.zrangebyscore(heartbeats, "-inf", round((now - DEAD_AFTER_S) * 1000))
        for pool in pools:
            queue = f"{broker.namespace}:{queue_name(pool)}"
            failed: Any = redis.zrangebyscore(f"{queue}.XQ", "-inf", round((now - DEAD_LETTERS_S) * 1000))
            if failed:
                redis.zrem(f"{queue}.XQ", *failed)
                redis.hdel(f"{queue}.XQ.msgs", *failed)
            for broker_id in dead:
                held_key = f"{broker.namespace}:__acks__.{broker_id.decode()}.{queue_name(pool)}"
                held: Any = redis.smembers(held_key)
                if held:
                    redis.hdel(f"{queue}.msgs", *held)
                    redis.delete(held_key)
        if dead:
            redis.zrem(heartbeats, *dead)
    return len(dead)
