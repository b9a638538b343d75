"""What the trainer reports and obeys while it runs: progress, complete checkpoints, the stop switch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from runner.events import CheckpointSaved, ChildEvent, MetricsLogged, TrainingStarted
from runner.reports import Resolved
from runner.resuming import RunFacts
from runner.training import ranks
from runner.training.accelerator import peak_bytes
from runner.training.loop.checkpoints import mark_complete, remove_old_checkpoints
from runner.training.stopping import StopSwitch


class Progress(TrainerCallback):
    """Reports the start and every logging step.

    Args:
        emit: Where events go.
        settings: Resolved hyperparameters, for `training_started`.
        trainable_parameters: For `training_started`.
    """

    def __init__(
        self, emit: Callable[[ChildEvent], None], *, settings: tuple[Resolved, ...], trainable_parameters: int
    ) -> None:
        self._emit = emit
        self._settings = settings
        self._trainable_parameters = trainable_parameters
        self._first_step = 0
        self._started: float | None = None

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Announce the first step; a resumed run has loaded its state by now."""
        # With it came the intervals and the batch of the run that wrote it; those may have been changed since.
        state.train_batch_size = args.train_batch_size
        state.compute_steps(args, state.max_steps)  # type: ignore[no-untyped-call]  # transformers leaves it bare
        self._first_step = state.global_step
        self._emit(
            TrainingStarted(
                total_steps=state.max_steps,
                resumed_from_step=state.global_step,
                trainable_parameters=self._trainable_parameters,
                settings=self._settings,
            )
        )

    @override
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock at the first step, so that building the data loader does not count."""
        if self._started is None:
            self._started = time.monotonic()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log the last step too, and every step that is saved, whatever `logging_steps` is.

        A resumed run's first report is of the steps after the checkpoint; so must be that of a run that went through.
        """
        if state.global_step >= state.max_steps or control.should_save:
            control.should_log = True

    @override
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report a logging step; the trainer's closing summary has no loss and is no step."""
        if logs is None or "loss" not in logs or self._started is None:
            return
        loss, grad_norm = logs["loss"], logs.get("grad_norm")
        if args.fp16 and grad_norm is not None and not math.isfinite(grad_norm):
            # The scaler of float16 starts too high on purpose: it leaves such a step out and goes lower.
            grad_norm = None
        elapsed = max(time.monotonic() - self._started, 1e-9)
        done = max(state.global_step - self._first_step, 1)
        self._emit(
            MetricsLogged(
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=logs.get("epoch", state.epoch or 0.0),
                loss=loss,
                learning_rate=logs["learning_rate"],
                grad_norm=grad_norm,
                tokens_per_s=logs["num_tokens"] / elapsed,
                eta_s=(state.max_steps - state.global_step) * elapsed / done,
                peak_bytes=peak_bytes(args.device),
            )
        )


class Checkpoints(TrainerCallback):
    """Marks checkpoints complete once all their files are written, then removes older ones.

    The trainer's own `save_total_limit` stays off: it removes the old checkpoint before the new one has its marker.

    Args:
        emit: Where events go.
        facts: What a resumed run must share, written into the marker.
        keep: `training.save_total_limit`.
    """

    def __init__(self, emit: Callable[[ChildEvent], None], *, facts: RunFacts, keep: int) -> None:
        self._emit = emit
        self._facts = facts
        self._keep = keep

    @override
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Complete the checkpoint that was just written."""
        # Every rank has a file of its own in it: the state of its random numbers.
        ranks.wait_for_all()
        if not state.is_world_process_zero or args.output_dir is None:
            return
        folder = Path(args.output_dir)
        path = folder / f"checkpoint-{state.global_step}"
        mark_complete(path, self._facts)
        remove_old_checkpoints(folder, self._keep, Path(state.best_model_checkpoint or path))
        self._emit(CheckpointSaved(step=state.global_step, path=str(path)))


class StopAtStep(TrainerCallback):
    """Ends training at the next step boundary once the switch is set, with a checkpoint; rank 0's counts for all."""

    def __init__(self, stop: StopSwitch) -> None:
        self._stop = stop

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Log, save and stop: what was not logged yet would be missing from a resumed run's first report."""
        if ranks.from_first(lambda: self._stop.is_set):
            control.should_log = True
            control.should_save = True
            control.should_training_stop = True
