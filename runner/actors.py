"""The one Dramatiq actor: a ticket says "look for work in this pool", and this is who looks."""

from __future__ import annotations

from collections.abc import Callable

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from runner.queue import ACTOR_NAME, queue_name


def declare_look_for_work(broker: RedisBroker, pool: str, look: Callable[[str], None]) -> dramatiq.Actor[..., None]:
    """Put the actor of one pool on a broker.

    Args:
        broker: Of `runner.queue.build_broker`: no retries, no time limit.
        pool: The only queue it takes tickets from.
        look: Claims and runs at most one job of the pool it is given.
    """

    def look_for_work(**_: str) -> None:
        # A worker serves one pool, whatever a message says.
        look(pool)

    declare = dramatiq.actor(broker=broker, actor_name=ACTOR_NAME, queue_name=queue_name(pool))
    return declare(look_for_work)
