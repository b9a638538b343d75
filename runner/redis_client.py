"""One way to talk to Redis for everything here: explicit timeouts, explicit retries, one error when it is away.

A retry repeats a command whose reply got lost, so whatever goes through this client has to bear being carried out
twice; `runner.store` marks its writes for that reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import AuthenticationError, ClusterDownError, NoPermissionError, NoScriptError, TryAgainError
from redis.retry import Retry
from redis.sentinel import Sentinel

from runner.errors import UnavailableError
from runner.redis_address import parse_redis_url

SOCKET_TIMEOUT_S = 10.0
"""Longer than the longest blocking read (`runner.store_reading.MAX_BLOCK_MS`)."""
CONNECT_TIMEOUT_S = 5.0
SENTINEL_TIMEOUT_S = 2.0
RETRIES = 8
"""With pauses of 0.05 s doubling to 1 s: a Redis that restarts within about 5 s is never noticed."""

_REFUSALS = (
    redis.ReadOnlyError,
    redis.OutOfMemoryError,
    NoPermissionError,
    ClusterDownError,
    TryAgainError,
    NoScriptError,  # redis-py has loaded it by then, into a server that was restarted or replaced right after
)
_NOT_NOW = ("MISCONF", "NOREPLICAS", "BUSY", "UNKILLABLE", "UNBLOCKED")
"""First words of replies by which a server refuses work for a while: its disk is full, its replicas are gone, a script
of somebody else's hangs, it has become a replica while we waited. redis-py has no class of their own for them."""


def build_client(
    url: str, *, decode_responses: bool, retries: int = RETRIES, timeout_s: float = SOCKET_TIMEOUT_S
) -> redis.Redis:
    """Build a client; connects on first use.

    Args:
        url: Where Redis is, credentials included, in one of the forms of `runner.redis_address`.
        decode_responses: True for the store, which holds text; False for Dramatiq, which holds bytes.
        retries: Further tries after a lost connection, a timeout or a read-only replica.
        timeout_s: How long an answer may take.

    Raises:
        UnavailableError: The URL cannot be meant.
    """
    address = parse_redis_url(url)
    connection: dict[str, Any] = {
        "decode_responses": decode_responses,
        # Whoever has planted bytes that are no text is told so by the reader of the record, not by this client.
        "encoding_errors": "replace",
        "protocol": 2,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": min(timeout_s, CONNECT_TIMEOUT_S),
        "health_check_interval": 30,
        "retry": Retry(ExponentialBackoff(cap=1.0, base=0.05), retries),
        "retry_on_error": [redis.ReadOnlyError],
    }
    if not address.sentinels:
        return redis.Redis.from_pool(redis.ConnectionPool(**address.options | connection))
    # A Sentinel that is away is passed over and not waited for: the next one knows as much.
    asking = {"socket_timeout": SENTINEL_TIMEOUT_S, "socket_connect_timeout": SENTINEL_TIMEOUT_S, "protocol": 2}
    sentinels = Sentinel(  # type: ignore[no-untyped-call]
        address.sentinels, sentinel_kwargs=address.sentinel_options | asking | {"retry": Retry(NoBackoff(), 0)}
    )
    client: redis.Redis = sentinels.master_for(address.master, **address.options | connection)  # type: ignore[no-untyped-call]
    return client


@contextmanager
def redis_at_hand() -> Iterator[None]:
    """Turn every way in which Redis can be away, full or unwilling into one error; programming errors pass through.

    Raises:
        UnavailableError: No answer after all retries, refused credentials or permissions, a read-only replica, no
            memory or disk left, or a cluster or replication that is down.
    """
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise _unavailable(error) from error
    except redis.ResponseError as error:
        if _is_refusal(error):
            raise _unavailable(error) from error
        raise


def _is_refusal(error: redis.ResponseError) -> bool:
    if isinstance(error, _REFUSALS) or str(error).startswith(_NOT_NOW):
        return True
    # Redis 6 wraps what it has refused inside a script, so that redis-py sees nothing but a failed script.
    words = ("READONLY", "OOM", *_NOT_NOW)
    return str(error).startswith("Error running script") and any(f" -{word} " in str(error) for word in words)


def _unavailable(error: redis.RedisError) -> UnavailableError:
    hint = "Check that it runs, that REDIS_URL is right, and that it has memory and disk left."
    if isinstance(error, AuthenticationError):
        hint = "Check the user and the password in REDIS_URL."
    elif isinstance(error, NoPermissionError):
        hint = "Give the user of REDIS_URL what docs/operations.md lists."
    elif "CERTIFICATE_VERIFY_FAILED" in str(error):
        hint = "Name your own certificate authority at the end of REDIS_URL: ?ssl_ca_certs=/path/to/ca.pem."
    return UnavailableError(f"Redis does not answer as it should: {error}", hint=hint)
