"""What the verbs that ask about jobs have in common: the store, and who asks."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from contextlib import contextmanager

from runner.embedded_redis import resolve_redis_url
from runner.settings import load_settings
from runner.store import Store


@contextmanager
def jobs_store() -> Iterator[Store]:
    """The jobs in Redis.

    Raises:
        UnavailableError: Redis cannot be found, or does not answer.
    """
    settings = load_settings()
    store = Store.connect(
        resolve_redis_url(settings, wait_s=2.0), lease_s=settings.lease_s, retention=settings.retention
    )
    try:
        yield store
    finally:
        store.close()


def login_name() -> str:
    """Whoever types, as others are told."""
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # A container's user may have no name.
        return f"uid {os.getuid()}"
