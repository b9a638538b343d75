"""Evaluates fewer rows at once when memory runs out; what is measured of a row does not depend on who is beside it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from runner.errors import MemoryExhaustedError
from runner.redaction import redact
from runner.training.loading.failure_marks import is_out_of_memory
from runner.training.memory import release_memory

T = TypeVar("T")


class Fitting:
    """How many rows an evaluation takes at once: as many as asked for, and half as many whenever memory runs out.

    Args:
        rows: The most to begin with. Nothing else says what an evaluation takes: a training batch keeps activations,
            an answer keeps keys and values, and beside both stands what training has put there.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        """The most at once from here on."""

    def attempt(self, rows: int, action: Callable[[], T]) -> T | None:
        """Do something with rows.

        Args:
            rows: How many.
            action: What to do with them.

        Returns:
            Its result; None where memory ran out, whereupon `self.rows` is half of `rows`.

        Raises:
            MemoryExhaustedError: Memory ran out with a single row; in words of its own, because in mid-training a
                smaller batch of the training would not cure it.
            Exception: Whatever else the action raises.
        """
        try:
            return action()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            if rows <= 1:
                raise MemoryExhaustedError(
                    f"Evaluating a single row takes more memory than there is: {reason}",
                    hint="Lower training.max_length, at which held-out rows are cut, or evaluation.max_new_tokens, or "
                    "hold nothing out and ask nothing. A pool with more memory helps, too.",
                ) from error
        # Here the error is gone, and with its traceback the frames that held the rows' tensors.
        release_memory()
        self.rows = rows // 2
        sys.stderr.write(f"Evaluation: {rows} rows at once ran out of memory ({redact(reason)}), trying {self.rows}.\n")
        return None
