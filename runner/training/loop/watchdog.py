"""Ends a run whose numbers cannot be trusted, at the step where it shows, however seldom the run reports.

Every step's loss and gradient norm are looked at. On a CPU that costs nothing. On a GPU the two numbers are copied in
the background and read when they have arrived, which never makes the host wait for the device; before a step is logged
or saved all of them are waited for, so no checkpoint of bad numbers is completed.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from runner.errors import TrainingError
from runner.hyperparameters import Training
from runner.training import ranks

ZERO_STEPS = 3
"""So many steps in a row without loss or gradient end a run that had some; without any before, the first one does."""
WINDOW = 20
"""Steps whose mean loss is compared: single batches differ by more than a run that goes well does."""
FIRST_ROWS = 16
"""Rows whose mean loss stands for the start, so that what goes wrong before a `WINDOW` is full is seen."""


@dataclass(slots=True)
class _Pending:
    step: int
    numbers: Tensor
    """Loss and gradient norm, (2,) float32 on the host."""
    arrived: Any
    """The CUDA event after the copy, None where there was nothing to wait for."""


class Watchdog(TrainerCallback):
    """Judges every step.

    Args:
        training: The project's `[training]`.
    """

    def __init__(self, training: Training) -> None:
        self._max_rise = training.max_loss_rise
        self._lower = (
            f"Lower training.learning_rate, which is {training.learning_rate:g}, or add training.warmup_steps."
        )
        rows_a_step = training.per_device_train_batch_size * training.gradient_accumulation_steps * ranks.count()
        self._first_steps = math.ceil(FIRST_ROWS / rows_a_step)
        self._pending: deque[_Pending] = deque()
        self._recent: deque[float] = deque(maxlen=WINDOW)
        self._lowest = math.inf
        self._zeros = {"loss": 0, "gradient": 0}
        self._healthy_steps = 0
        self._saved_step: int | None = None
        self.finding: TrainingError | None = None
        """Set where the step may still be saved; whoever drives the training stops it, saves, and raises this."""

    def look(self, step: int, loss: Tensor, grad_norm: Tensor | float | None, *, fp16: bool, wait: bool) -> None:
        """Look at a step's numbers, or at those of earlier steps that have arrived by now.

        Args:
            step: Optimizer steps done, this one included.
            loss: The step's, scalar.
            grad_norm: Before clipping, None where it was not taken.
            fp16: Whether a scaler is at work, which leaves out steps whose gradient is not finite and goes lower.
            wait: Look at all numbers now.

        Raises:
            TrainingError: They cannot be trusted any more (`loss-not-finite`, `no-gradient`, `loss-zero`, `diverged`).
        """
        norm = torch.as_tensor(1.0 if grad_norm is None else grad_norm, dtype=torch.float32, device=loss.device)
        numbers = torch.stack([loss.detach().float().reshape(()), norm.detach().reshape(())])
        arrived = None
        if numbers.device.type == "cuda":
            numbers = numbers.to("cpu", non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it bare
            arrived.record()
        self._pending.append(_Pending(step, numbers, arrived))
        while self._pending and (wait or self._pending[0].arrived is None or self._pending[0].arrived.query()):
            pending = self._pending.popleft()
            if pending.arrived is not None:
                pending.arrived.synchronize()
            self._judge(pending.step, *pending.numbers.tolist(), fp16=fp16)

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Remember the newest checkpoint, for the error's sake."""
        self._saved_step = state.global_step

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A resumed run has learned something and has a checkpoint."""
        if state.global_step:
            self._saved_step, self._healthy_steps = state.global_step, state.global_step

    def _judge(self, step: int, loss: float, grad_norm: float, *, fp16: bool) -> None:
        if not math.isfinite(loss) or (not fp16 and not math.isfinite(grad_norm)):
            raise TrainingError(
                f"The numbers blew up: at step {step} the loss is {loss} and the gradient norm {grad_norm}. "
                f"{self._last_good()}",
                hint=self._lower,
                code="loss-not-finite",
            )
        self._judge_zeros(step, loss, grad_norm)
        self._judge_rise(step, loss)

    def _judge_zeros(self, step: int, loss: float, grad_norm: float) -> None:
        for what, number in (("loss", loss), ("gradient", grad_norm)):
            self._zeros[what] = self._zeros[what] + 1 if number == 0 else 0
        if not any(self._zeros.values()):
            self._healthy_steps += 1
        had_one = self._healthy_steps > 0
        for what, error in (
            ("loss", _no_loss(step)),
            ("gradient", _no_gradient(step, self._lower if had_one else None)),
        ):
            if self._zeros[what] and not self._healthy_steps:
                raise error
            if self._zeros[what] == ZERO_STEPS:
                self.finding = self.finding or error

    def _judge_rise(self, step: int, loss: float) -> None:
        self._recent.append(loss)
        if len(self._recent) == self._first_steps:
            self._lowest = min(self._lowest, sum(self._recent) / self._first_steps)
        if not self._max_rise or len(self._recent) < WINDOW:
            return
        mean = sum(self._recent) / WINDOW
        self._lowest = min(self._lowest, mean)
        if mean > self._lowest + self._max_rise and mean > 2 * self._lowest:
            raise TrainingError(
                f"The loss runs away: over the {WINDOW} steps to step {step} it is {mean:.3g} on average, after "
                f"{self._lowest:.3g} at its lowest. {self._last_good()}",
                hint=(
                    f"{self._lower} If such a rise is what you expect, raise training.max_loss_rise, or turn this "
                    "watch off with 0."
                ),
                code="diverged",
            )

    def _last_good(self) -> str:
        if self._saved_step is None:
            return "No checkpoint had been written."
        return f"The last checkpoint is the one of step {self._saved_step}, from before; none was written now."


def _no_loss(step: int) -> TrainingError:
    return TrainingError(
        f"There is nothing to learn: at step {step} the loss is exactly 0.",
        hint="Either every answer is known by heart, so train for fewer steps, or the rows hold no answers.",
        code="loss-zero",
    )


def _no_gradient(step: int, lower: str | None) -> TrainingError:
    """An adapter that had a gradient was most likely thrown so far off that the model saturates."""
    hint = lower or "Try lora.target_modules = 'all-linear'; a rows file without answers has the same effect."
    return TrainingError(
        f"No gradient reaches the adapter{' any more' if lower else ''}: at step {step} the gradient norm is 0, so "
        "nothing is learned.",
        hint=hint,
        code="no-gradient",
    )
