"""The switch that ends a run early, without losing what it has learned."""

from __future__ import annotations

import signal
from types import FrameType


class StopRequestedError(Exception):
    """The switch was set between two stations of a run; `runner.training.pipeline` alone catches it."""


class StopSwitch:
    """Set once, from a signal handler or another thread; the run ends at its next step boundary.

    A plain attribute and no `threading.Event`: a handler may interrupt the very lock that it would then wait for.
    """

    def __init__(self) -> None:
        self._on = False

    def set(self) -> None:
        """Ask the run to stop; asking again changes nothing."""
        self._on = True

    @property
    def is_set(self) -> bool:
        """Whether the run was asked to stop."""
        return self._on

    def raise_if_set(self) -> None:
        """End the run here when it was asked to stop.

        Raises:
            StopRequestedError: It was.
        """
        if self._on:
            raise StopRequestedError

    def listen(self, *signals: signal.Signals) -> None:
        """Set the switch on any of these signals. Main thread only."""
        for number in signals:
            signal.signal(number, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.set()
