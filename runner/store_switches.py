"""What operators decide for pools and hosts, kept in Redis so that it holds for every worker and bot at once."""

from __future__ import annotations

from datetime import UTC, datetime

from runner.pools import Drain, Freeze, PoolLimits
from runner.redis_client import redis_at_hand
from runner.store_upkeep import StoreUpkeep


class StoreSwitches(StoreUpkeep):
    """Limits of pools, the freeze, drained hosts. All of it concerns claims alone: what runs goes on."""

    def set_limits(self, pool: str, limits: PoolLimits) -> None:
        """Replace a pool's limits. What runs or waits already stays; nothing new starts until it is below them."""
        fields = limits.model_dump(exclude_none=True)
        self._run("limits", pool=pool, limits={name: str(most) for name, most in fields.items()})

    def freeze(self, reason: str, by: str) -> Freeze:
        """Let nothing new start in any pool until `unfreeze`; a second freeze replaces the reason."""
        freeze = Freeze(reason=reason, by=by, at=datetime.now(UTC))
        with redis_at_hand():
            self.client.set(self._key("freeze"), freeze.model_dump_json())
        return freeze

    def unfreeze(self) -> None:
        """Let jobs start again; within seconds idle workers get their tickets from a reconciler."""
        with redis_at_hand():
            self.client.delete(self._key("freeze"))

    def drain(self, host: str, by: str) -> Drain:
        """Let nothing new start on a host until `undrain`, whichever workers come and go there."""
        drain = Drain(host=host, by=by, at=datetime.now(UTC))
        with redis_at_hand():
            self.client.hset(self._key("drains"), host, drain.model_dump_json())
        return drain

    def undrain(self, host: str) -> None:
        """Let a host take jobs again."""
        with redis_at_hand():
            self.client.hdel(self._key("drains"), host)
