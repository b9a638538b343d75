"""Evaluates on held-out rows while training goes on: which step was the best, and whether it is time to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from runner.events import ChildEvent, LossEvaluated
from runner.hyperparameters import Training
from runner.reports import BestStep


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the evaluations so far say."""

    best_step: int | None
    """The first step of the lowest loss, None before any evaluation and where no loss was a number."""
    best_loss: float
    waited: int
    """Evaluations in a row that were no better than the best before them by more than the threshold."""


def judge(log_history: Iterable[dict[str, Any]], threshold: float = 0.0) -> Verdict:
    """Read the trainer's records, those of earlier attempts included, so that a resumed run judges as a whole one.

    Args:
        log_history: Records of the trainer; those without `eval_loss` are passed over.
        threshold: `training.early_stopping_threshold`.
    """
    best_step: int | None = None
    best_loss, waited = float("inf"), 0
    for record in log_history:
        if "eval_loss" not in record:
            continue
        loss = record["eval_loss"]
        waited = 0 if best_loss - loss > threshold else waited + 1
        if loss < best_loss:
            best_step, best_loss = record["step"], loss
    return Verdict(best_step, best_loss, waited)


def find_best(log_history: Sequence[dict[str, Any]]) -> BestStep | None:
    """Tell where the loss on held-out rows was lowest; None before any evaluation and where no loss was a number."""
    verdict = judge(log_history)
    losses = [float(record["eval_loss"]) for record in log_history if "eval_loss" in record]
    if verdict.best_step is None:
        return None
    return BestStep(step=verdict.best_step, loss=verdict.best_loss, last_loss=losses[-1])


def stops_early(log_history: Iterable[dict[str, Any]], training: Training) -> bool:
    """Whether the evaluations so far end the run."""
    patience = training.early_stopping_patience
    return patience is not None and judge(log_history, training.early_stopping_threshold).waited >= patience


class Evaluations(TrainerCallback):
    """Adds to the trainer's own schedule the end of each epoch and the last step; saves the best; stops early.

    The trainer evaluates at the end of an epoch only after it has saved that step, and a run that was resumed there
    would lack the evaluation; so epochs are counted here, at their last step.

    Args:
        emit: Where events go.
        training: The project's `[training]`.
    """

    def __init__(self, emit: Callable[[ChildEvent], None], training: Training) -> None:
        self._emit = emit
        self._training = training

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate where an epoch ends and at the last step, which no later evaluation would judge."""
        epoch_ends = state.epoch is not None and float(state.epoch).is_integer()
        if (self._training.eval_strategy == "epoch" and epoch_ends) or state.global_step >= state.max_steps:
            control.should_evaluate = True

    @override
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report the loss, which the trainer has logged by now."""
        verdict = judge(state.log_history, self._training.early_stopping_threshold)
        if verdict.best_step == state.global_step and self._training.load_best_model_at_end:
            control.should_save = True
            # With save_strategy = "no" the trainer itself would not remember it.
            state.best_model_checkpoint = str(Path(args.output_dir or "") / f"checkpoint-{state.global_step}")
        stops = stops_early(state.log_history, self._training) and state.global_step < state.max_steps
        if stops:
            control.should_log = True
            control.should_save = True
            control.should_training_stop = True
        self._emit(
            LossEvaluated(
                step=state.global_step,
                total_steps=state.max_steps,
                loss=state.log_history[-1]["eval_loss"],
                best_step=verdict.best_step,
                best_loss=verdict.best_loss,
                stops=stops,
            )
        )
