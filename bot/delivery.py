"""What has been said in Slack, remembered in Redis; the only place of `bot/` that knows a Redis key.

qlora:slack:job:<id>               hash   one job's thread; goes with the job
    cursor                                number of the last event whose milestone is posted
    intent                                number of the post that may be on its way, absent when none is
    ts:<seq>                              time stamp of the message posted for event <seq>; ts:0 is the root message
    progress                              number of the event whose message progress is edited into
    classic                               "1" once the workspace has refused newer blocks
    refused                               Slack's code, once its refusal to post has been told to the requester
    channel                               where the root message is
    done                                  "1" once nothing more will be said
qlora:slack:thread:<channel>:<ts>  string the job whose root message it is
qlora:slack:open                   set    jobs whose threads are not done
qlora:slack:reporter               string who posts at present, expiring
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from redis import Redis

from runner.redis_client import redis_at_hand
from runner.settings import Retention

PREFIX = "qlora:slack:"
_OPEN = f"{PREFIX}open"
_AT_ONCE = 1000
ROOT = 0
"""The root message's number: events count from 1."""

_RENEW = """
if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) end
if redis.call('set', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
return 0
"""
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0"


@dataclass(frozen=True, slots=True)
class ThreadMemory:
    """What is remembered of one job's thread."""

    cursor: int = 0
    intent: int | None = None
    posted: dict[int, str] = field(default_factory=dict)
    """Event number to the time stamp of its message."""
    progress: int | None = None
    classic: bool = False
    done: bool = False

    @property
    def root_ts(self) -> str | None:
        """Time stamp of the root message, None before it is posted."""
        return self.posted.get(ROOT)

    @property
    def progress_ts(self) -> str | None:
        """Time stamp of the message that progress is edited into, None before training."""
        return self.posted.get(self.progress) if self.progress is not None else None


class DeliveryStore:
    """Reads and writes what is remembered. Every method may be repeated; all raise UnavailableError without Redis.

    Args:
        redis: Built with `decode_responses=True`.
        retention: A finished thread is remembered as long as its job, so that a mention inside it still finds that.
    """

    def __init__(self, redis: Redis, *, retention: Retention = Retention()) -> None:  # noqa: B008 - frozen
        self._redis = redis
        self._kept_s = max(1, round(retention.days * 86_400))
        self._renew = redis.register_script(_RENEW)
        self._release = redis.register_script(_RELEASE)

    def recall(self, job_id: str) -> ThreadMemory:
        """Everything remembered of a job's thread; empty for a new one."""
        with redis_at_hand():
            fields: Any = self._redis.hgetall(_job_key(job_id))
        return ThreadMemory(
            cursor=int(fields.get("cursor", 0)),
            intent=int(fields["intent"]) if "intent" in fields else None,
            posted={int(name[3:]): ts for name, ts in fields.items() if name.startswith("ts:")},
            progress=int(fields["progress"]) if "progress" in fields else None,
            classic="classic" in fields,
            done="done" in fields,
        )

    def intend(self, job_id: str, seq: int) -> None:
        """Remember, before a post, that it may be on its way."""
        with redis_at_hand(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(_job_key(job_id), "intent", str(seq))
            pipe.sadd(_OPEN, job_id)
            pipe.execute()

    def give_up(self, job_id: str) -> None:
        """Forget an intent whose post is known not to have happened."""
        with redis_at_hand():
            self._redis.hdel(_job_key(job_id), "intent")

    def remember_root(self, job_id: str, channel: str, ts: str) -> None:
        """Remember the root message, in one step with what finds the job again from its thread."""
        with redis_at_hand(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(_job_key(job_id), mapping={f"ts:{ROOT}": ts, "channel": channel})
            pipe.hdel(_job_key(job_id), "intent")
            pipe.set(_thread_key(channel, ts), job_id)
            pipe.execute()

    def remember_reply(self, job_id: str, seq: int, ts: str, *, is_progress: bool = False) -> None:
        """Remember a posted milestone and move the cursor past it, in one step."""
        fields: dict[Any, Any] = {f"ts:{seq}": ts, "cursor": str(seq)}
        if is_progress:
            fields["progress"] = str(seq)
        with redis_at_hand(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(_job_key(job_id), mapping=fields)
            pipe.hdel(_job_key(job_id), "intent")
            pipe.execute()

    def remember_classic(self, job_id: str) -> None:
        """Remember that this workspace refuses newer blocks."""
        with redis_at_hand():
            self._redis.hset(_job_key(job_id), "classic", "1")

    def remember_refusal(self, job_id: str, code: str) -> bool:
        """Remember that the requester is told of a refusal; False when that was remembered before."""
        with redis_at_hand():
            return bool(self._redis.hsetnx(_job_key(job_id), "refused", code))

    def finish(self, job_id: str, channel: str, root_ts: str) -> None:
        """Remember that nothing more will be said, and begin to forget."""
        with redis_at_hand(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(_job_key(job_id), "done", "1")
            pipe.srem(_OPEN, job_id)
            pipe.expire(_job_key(job_id), self._kept_s)
            pipe.expire(_thread_key(channel, root_ts), self._kept_s)
            pipe.execute()

    def open_threads(self) -> set[str]:
        """Jobs of which not everything has been said, as far as anything has."""
        with redis_at_hand():
            found: Any = self._redis.smembers(_OPEN)
        return set(found)

    def not_done(self, job_ids: Sequence[str]) -> list[str]:
        """Those of which there may be something left to say."""
        left: list[str] = []
        for start in range(0, len(job_ids), _AT_ONCE):
            some = job_ids[start : start + _AT_ONCE]
            with redis_at_hand(), self._redis.pipeline(transaction=False) as pipe:
                for job_id in some:
                    pipe.hexists(_job_key(job_id), "done")
                left += [job_id for job_id, done in zip(some, pipe.execute(), strict=True) if not done]
        return left

    def forget(self, job_id: str) -> None:
        """Remove what is remembered of a job's thread."""
        with redis_at_hand():
            known: Any = self._redis.hmget(_job_key(job_id), "channel", f"ts:{ROOT}")
            channel, root_ts = known
            with self._redis.pipeline(transaction=True) as pipe:
                if channel is not None and root_ts is not None:
                    pipe.delete(_thread_key(channel, root_ts))
                pipe.delete(_job_key(job_id))
                pipe.srem(_OPEN, job_id)
                pipe.execute()

    def job_of_thread(self, channel: str, ts: str) -> str | None:
        """The job whose root message that is."""
        with redis_at_hand():
            found: Any = self._redis.get(_thread_key(channel, ts))
        return None if found is None else str(found)

    def hold(self, owner: str, for_s: float) -> bool:
        """Become, or stay, the one process that posts.

        Args:
            owner: Name of the process, unique among all bots.
            for_s: Seconds after which another one may take over.
        """
        with redis_at_hand():
            return bool(self._renew(keys=[PREFIX + "reporter"], args=[owner, round(for_s * 1000)]))

    def release(self, owner: str) -> None:
        """Let another process post at once."""
        with redis_at_hand():
            self._release(keys=[PREFIX + "reporter"], args=[owner])


def _job_key(job_id: str) -> str:
    return f"{PREFIX}job:{job_id}"


def _thread_key(channel: str, ts: str) -> str:
    return f"{PREFIX}thread:{channel}:{ts}"
