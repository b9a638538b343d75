"""What a Redis server says of itself: whether the jobs can be kept there at all, and what could lose them."""

from __future__ import annotations

from typing import Any

import redis

from runner.errors import UnavailableError
from runner.redis_address import SENTINEL_EXAMPLE
from runner.redis_client import redis_at_hand


def require_no_cluster(client: redis.Redis) -> None:
    """Make sure that a step which moves a job finds all its keys on this server.

    Raises:
        UnavailableError: It is part of a Redis Cluster, or does not answer.
    """
    with redis_at_hand():
        about: Any = client.info("cluster")
    if int(about.get("cluster_enabled", 0)):
        raise UnavailableError(
            "REDIS_URL names a server of a Redis Cluster, and the jobs cannot be kept in one: a step that moves a job "
            "touches keys of several slots at once.",
            hint=f"Use one server, or one with replicas behind Sentinels: {SENTINEL_EXAMPLE}.",
        )


def what_could_lose_jobs(client: redis.Redis) -> list[str]:
    """One sentence for each setting of the server with which jobs can vanish.

    Asks with INFO, because hosted servers often forbid CONFIG GET.

    Raises:
        UnavailableError: It does not answer.
    """
    with redis_at_hand():
        persistence: Any = client.info("persistence")
        memory: Any = client.info("memory")
    findings = []
    if not int(persistence.get("aof_enabled", 1)):
        findings.append(
            "Redis has `appendonly no`: a restart forgets every job and event since its last snapshot, perhaps all. "
            "Set `appendonly yes`."
        )
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    if int(memory.get("maxmemory", 0)) and policy != "noeviction":
        findings.append(
            f"Redis has `maxmemory-policy {policy}`: when its memory is full it throws away keys, jobs among them. "
            "Set `maxmemory-policy noeviction`."
        )
    return findings
