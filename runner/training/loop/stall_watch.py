"""Ends the process when training stops moving, even where native code hangs and never comes back to Python.

A thread counts the time without a sign of life from any process of the training. At the limit it writes every thread's
stack to standard error, which is train.log, and reports. Code that hangs with the interpreter's lock in its hands would
stop that thread, too: then faulthandler's own thread, which needs no lock, writes the stacks and ends the process
(`runner.child` knows the mark). Where several processes train, the launcher has each write its stacks, too.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from transformers import TrainerCallback

from runner.child import STALLED
from runner.events import RunFailed
from runner.training.signs_of_life import SignsOfLife

GRACE_S = 30.0
"""After the limit, at most as much again, for a thread that gets no turn."""
TICKS = 20
"""Looks at the signs of life within the limit."""


class StallWatch(TrainerCallback):
    """A context manager around the training, and the callback that hears its signs of life.

    Args:
        limit_s: `training.step_timeout_s`; 0 watches nothing.
        on_stall: Gets the event; it does not return in a training child, whose process it ends.
        signs: Where this process gives its own, and hears those of the others.
    """

    def __init__(
        self, limit_s: float, on_stall: Callable[[RunFailed], None] | None, signs: SignsOfLife | None = None
    ) -> None:
        self._limit_s = limit_s if on_stall is not None else 0.0
        self._on_stall = on_stall
        self._signs = signs or SignsOfLife()
        self._step = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall-watch", daemon=True)

    def __enter__(self) -> Self:
        if self._limit_s:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._limit_s:
            self._over.set()
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def _alive(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # the trainer's
        self._signs.give()
        self._step = state.global_step

    on_train_begin = on_step_begin = on_substep_end = on_step_end = _alive
    on_prediction_step = on_evaluate = on_log = on_save = _alive

    def _watch(self) -> None:
        tick = self._limit_s / TICKS
        log: Any = sys.__stderr__
        too_late_s = self._limit_s + min(self._limit_s, GRACE_S)
        heard, silent = -1, 0
        # Ticks and not the clock: a process that was itself suspended has not been silent.
        while silent < TICKS:
            faulthandler.dump_traceback_later(too_late_s, exit=True, file=log)
            if self._over.wait(tick):
                return
            now = self._signs.heard()
            silent = silent + 1 if now == heard else 0
            heard = now
        faulthandler.dump_traceback(file=log, all_threads=True)
        assert self._on_stall is not None  # noqa: S101  # nothing is watched without
        self._on_stall(stalled(self._limit_s, self._step))


def stalled(limit_s: float, step: int) -> RunFailed:
    """The event that tells of it."""
    return RunFailed(
        code=STALLED,
        message=f"Training has not moved for {limit_s:g} s after step {step}, so it was ended.",
        hint=(
            "The stacks of all threads are in train.log in the run directory. The newest checkpoint is kept. If steps "
            "take that long here, raise training.step_timeout_s."
        ),
    )
