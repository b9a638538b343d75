"""How an idle worker waits for a ticket: one blocked command in Redis, not a question several times a second.

Dramatiq's consumer asks for messages at least once a second for as long as it has none. Hosted Redis bills commands,
and a fleet of idle workers would keep Redis busy with nothing. So whoever enqueues a message also pushes a wake-up onto
a list beside the queue, and an idle consumer waits at that list. Wake-ups are hints: one that gets lost costs a few
seconds (`LOOK_EVERY_S`), one too many costs a look.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import dramatiq
import redis
from dramatiq.brokers.redis import RedisBroker
from dramatiq.errors import ConnectionClosed

LOOK_EVERY_S = 8
"""Seconds after which an idle consumer looks for a ticket whether it has been woken or not: a process of an older
version wakes nobody. Below the client's socket timeout."""
PAUSE_S = 1.0
"""Longest wait in this process before Dramatiq's thread may look whether it is paused or stopped."""

LEAVING_PAUSE_S = 0.05
"""The same once the worker is stopping."""


def wake_key(broker: RedisBroker, queue_name: str) -> str:
    """The list at which idle consumers of a queue wait."""
    return f"{broker.namespace}:{queue_name}.wake"


class PatientConsumer(dramatiq.Consumer, ABC):
    """A consumer whose wait can be ended."""

    @abstractmethod
    def leave(self, client: redis.Redis) -> None:
        """Take no further message, and do not wait for one.

        Args:
            client: Answers or fails soon.
        """


class TicketConsumer(PatientConsumer):
    """Fetches like Dramatiq's own consumer; waits in Redis where that one would sleep.

    Args:
        broker: Of `runner.queue.build_broker`.
        fetching: Dramatiq's consumer of the queue, with no timeout.
        queue_name: Of that queue.
    """

    def __init__(self, broker: RedisBroker, fetching: Any, queue_name: str) -> None:
        self._broker = broker
        self._fetching = fetching
        self._queue_name = queue_name
        self._own_wake_key = f"{wake_key(broker, queue_name)}.{broker.broker_id}"
        self._free = threading.Event()
        self._leaving = threading.Event()

    def __next__(self) -> dramatiq.MessageProxy | None:
        if self._leaving.is_set():
            time.sleep(LEAVING_PAUSE_S)
            return None
        # Before the look, so that what happens after it ends the wait.
        self._free.clear()
        message: dramatiq.MessageProxy | None = next(self._fetching)
        if message is None:
            self._wait()
        return message

    def ack(self, message: dramatiq.MessageProxy) -> None:
        """Done with it."""
        self._fetching.ack(message)
        self._free.set()

    def nack(self, message: dramatiq.MessageProxy) -> None:
        """It failed."""
        self._fetching.nack(message)
        self._free.set()

    def requeue(self, messages: Iterable[dramatiq.MessageProxy]) -> None:
        """Give messages back to the queue, and let others know."""
        given_back = list(messages)
        self._fetching.requeue(given_back)
        for _ in given_back:
            self._broker.wake(self._queue_name)

    def leave(self, client: redis.Redis) -> None:
        """Take no further message, and do not wait for one."""
        self._leaving.set()
        self._free.set()
        try:
            with client.pipeline() as pipe:
                pipe.rpush(self._own_wake_key, "")
                pipe.expire(self._own_wake_key, 2 * LOOK_EVERY_S)
                pipe.execute()
        except redis.RedisError:
            # Then there is no wait in Redis that could be ended.
            return

    def _wait(self) -> None:
        if self._fetching.outstanding_message_count >= self._fetching.prefetch:
            # Its thread is busy. A wake-up is for somebody who is not.
            self._free.wait(PAUSE_S)
            return
        try:
            self._broker.client.blpop([self._own_wake_key, wake_key(self._broker, self._queue_name)], LOOK_EVERY_S)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise ConnectionClosed(error) from None  # type: ignore[no-untyped-call]  # Dramatiq's


class NoTickets(PatientConsumer):
    """For Dramatiq's delay queues, which hold nothing of ours: nobody has to be asked."""

    def __init__(self) -> None:
        self._leaving = threading.Event()

    def __next__(self) -> None:
        if self._leaving.wait(PAUSE_S):
            time.sleep(LEAVING_PAUSE_S)

    def leave(self, client: redis.Redis) -> None:  # noqa: ARG002 - nobody in Redis waits for it
        """Do not wait any more."""
        self._leaving.set()
