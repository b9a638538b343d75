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
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Retries, ShutdownNotifications, TimeLimit

from runner.redis_client import build_client, redis_at_hand

logger = logging.getLogger(__name__)

ACTOR_NAME = "look_for_work"
"""The actor that takes tickets (`runner.actors`); its one argument is `pool`."""
_TICKET_FIELDS = {"queue_name", "actor_name", "args", "kwargs", "options", "message_id", "message_timestamp"}


def queue_name(pool: str) -> str:
    """The Dramatiq queue of a pool."""
    return f"qlora.{pool}"


class TicketBroker(RedisBroker):
    """A broker whose workers get to see tickets of their own queue, and nothing else that lies there."""

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


def build_broker(url: str) -> RedisBroker:
    """Build the broker; the bot, the workers and the reconciler all use this one.

    No retries and no time limit unless an actor asks for them: a ticket is never worth a second try, and a training may
    take days. The tickets that a dead worker held need no care: the reconciler issues others long before Dramatiq
    gives these back.

    Raises:
        UnavailableError: The URL cannot be meant.
    """
    return TicketBroker(  # type: ignore[no-untyped-call]  # Dramatiq leaves it untyped
        client=build_client(url, decode_responses=False),
        middleware=[TimeLimit(time_limit=float("inf")), ShutdownNotifications(), Retries(max_retries=0)],
    )


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
