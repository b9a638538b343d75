"""What the verbs that ask about jobs have in common: the store, and who asks."""

from __future__ import annotations

import getpass
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from runner.embedded_redis import resolve_redis_url
from runner.errors import UnavailableError
from runner.logs import configure_logging
from runner.settings import load_log_format, load_settings
from runner.store import Store

logger = logging.getLogger(__name__)


@contextmanager
def jobs_store() -> Iterator[Store]:
    """The jobs in Redis.

    Raises:
        UnavailableError: Redis cannot be found, or does not answer.
    """
    with jobs_at() as (store, _):
        yield store


@contextmanager
def jobs_at() -> Iterator[tuple[Store, str]]:
    """The jobs in Redis, and where that is, asked once: an embedded server may have moved when one asks again.

    Raises:
        UnavailableError: Redis cannot be found, or does not answer.
    """
    configure_logging(load_log_format(), level=logging.WARNING)
    settings = load_settings()
    url = resolve_redis_url(settings, wait_s=2.0)
    store = Store.connect(url, lease_s=settings.lease_s, retention=settings.retention)
    try:
        yield store, url
    finally:
        store.close()


def call_a_worker(url: str, job_id: str, pool: str) -> None:
    """Issue a job's ticket. Where that does not work out the job stands, and a reconciler issues what is missing."""
    from runner.queue import build_broker, issue_ticket  # noqa: PLC0415  # Dramatiq is slow to import; one verb needs it

    broker = build_broker(url)
    try:
        issue_ticket(broker, pool)
    except UnavailableError as error:
        logger.warning("%s: no ticket yet: %s", job_id, error.message)
    finally:
        broker.close()
        broker.client.close()


def login_name() -> str:
    """Whoever types, as others are told."""
    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # A container's user may have no name.
        return f"uid {os.getuid()}"
