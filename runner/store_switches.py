"""What operators decide for a pool, kept in Redis so that it holds for every worker and bot at once."""

from __future__ import annotations

from runner.jobs import PoolLimits
from runner.store_upkeep import StoreUpkeep


class StoreSwitches(StoreUpkeep):
    """Limits of pools."""

    def set_limits(self, pool: str, limits: PoolLimits) -> None:
        """Replace a pool's limits. What runs or waits already stays; nothing new starts until it is below them."""
        fields = limits.model_dump(exclude_none=True)
        self._run("limits", pool=pool, limits={name: str(most) for name, most in fields.items()})
