"""Loaded by every interpreter that has this folder on its path: sets its wall clock off by `SKEW_S` seconds.

The monotonic clock stays as it is, as it does where a host's clock is set.
"""

import datetime as dt
import os
import time

_SKEW_S = float(os.environ["SKEW_S"])
_true_time = time.time
_TrueDatetime = dt.datetime


class _SkewedDatetime(_TrueDatetime):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> dt.datetime:  # type: ignore[override]  # plain ones, as others expect
        return _TrueDatetime.now(tz) + dt.timedelta(seconds=_SKEW_S)


time.time = lambda: _true_time() + _SKEW_S
dt.datetime = _SkewedDatetime  # type: ignore[misc]
