"""Dramatiq's side: the broker, and the tickets that tell an idle worker to look for work in its pool.

Redis may deliver a message zero, one or several times, and keeps no order that we could use. So a message says nothing
but "look": what there is to do stands in `runner.store`. A ticket too many finds nothing; a missing one is issued again
by `runner.reconciler`.
"""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import Retries, ShutdownNotifications, TimeLimit

from runner.redis_client import build_client, redis_at_hand

ACTOR_NAME = "look_for_work"
"""The actor that takes tickets (`runner.actors`); its one argument is `pool`."""


def queue_name(pool: str) -> str:
    """The Dramatiq queue of a pool."""
    return f"qlora.{pool}"


def build_broker(url: str) -> RedisBroker:
    """Build the broker; the bot, the workers and the reconciler all use this one.

    No retries and no time limit unless an actor asks for them: a ticket is never worth a second try, and a training may
    take days. The tickets that a dead worker held need no care: the reconciler issues others long before Dramatiq
    gives these back.

    Raises:
        UnavailableError: The URL cannot be meant.
    """
    return RedisBroker(  # type: ignore[no-untyped-call]  # Dramatiq leaves it untyped
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
