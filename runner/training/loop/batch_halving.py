"""Trains in smaller pieces when memory runs out, without changing what an optimizer step learns from.

Half the rows at once and twice the accumulation: the rows of a step, their order and their loss stay what they were.
One of several ranks cannot do that alone: the others wait for its gradients, in native code that nothing calls back. So
it says what shall be tried, and the launcher ends them all and starts them anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from runner.events import BatchHalved, ChildEvent
from runner.hyperparameters import Training
from runner.training import ranks
from runner.training.launcher import BatchTooLargeError
from runner.training.loading.failure_marks import is_out_of_memory
from runner.training.loop.checkpoints import Checkpoint
from runner.training.loop.trainer import AdapterTrainer
from runner.training.memory import release_memory

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

Build = Callable[[Training], AdapterTrainer]
Newest = Callable[[], Checkpoint | None]


class NothingFitsError(Exception):
    """Not even one row at once fits; what was taken for it is free again. Whoever knows the model says it in words."""


def halve(training: Training) -> Training | None:
    """The next smaller batch that fills a step of the same number of rows exactly, None below one row.

    8 rows once become 4 twice; 6 become 3 twice, then 1 six times.
    """
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    sizes = range(training.per_device_train_batch_size // 2, 0, -1)
    size = next((size for size in sizes if rows % size == 0), None)
    return None if size is None else _in_batches_of(size, training)


def as_before(training: Training, checkpoint: Checkpoint | None, rows_at_once: int | None = None) -> Training:
    """The batch that a run goes on with: as small as the one that its checkpoint needed.

    Args:
        training: The project's `[training]`.
        checkpoint: Where the run goes on, None for the start.
        rows_at_once: The most that ranks before this one left to try, None where nothing has run out.
    """
    tried = [rows_at_once] if rows_at_once is not None else []
    tried += [checkpoint.batch_size] if checkpoint is not None else []
    while tried and training.per_device_train_batch_size > min(tried):
        smaller = halve(training)
        if smaller is None:
            break
        training = smaller
    return training


def train_within_memory(
    build: Build,
    model: PeftModel,
    training: Training,
    checkpoint: Checkpoint | None,
    *,
    newest: Newest,
    emit: Callable[[ChildEvent], None],
) -> tuple[AdapterTrainer, Training]:
    """Train to the end, with smaller batches whenever memory runs out.

    Args:
        build: Makes a trainer for the model with these settings.
        model: The base model with its adapter, not yet trained.
        training: The project's `[training]`, or what `as_before` made of it.
        checkpoint: Where to begin, None for the start.
        newest: Finds where to go on when memory runs out later; None begins again.
        emit: Gets `batch_halved`.

    Returns:
        The trainer that reached the end, or was stopped, and the settings that it ran with.

    Raises:
        NothingFitsError: A single row does not fit.
        BatchTooLargeError: Memory ran out on one of several ranks.
        Exception: Whatever else training raises.
    """
    # On the host: it is the adapter alone, and a run that has no checkpoint yet must begin as it began.
    start = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if p.requires_grad}
    while True:
        trainer = build(training)
        reason = _try(trainer, checkpoint)
        if reason is None:
            return trainer, training
        # Here the error is gone, and with its traceback the frames that held the step's tensors.
        step = trainer.state.global_step + 1
        _release(trainer, model)
        smaller = halve(training)
        if smaller is None:
            raise NothingFitsError
        halved = BatchHalved(
            step=step,
            reason=reason,
            former_batch_size=training.per_device_train_batch_size,
            per_device_train_batch_size=smaller.per_device_train_batch_size,
            gradient_accumulation_steps=smaller.gradient_accumulation_steps,
        )
        if ranks.count() > 1:
            raise BatchTooLargeError(halved)
        checkpoint = newest()
        if checkpoint is None:
            _restore(model, start)
        emit(halved.model_copy(update={"resumed_from_step": checkpoint.step if checkpoint else 0}))
        training = smaller
        del trainer


def _try(trainer: AdapterTrainer, checkpoint: Checkpoint | None) -> str | None:
    """Train; when memory runs out, the first line of what was said about it. A function of its own, for its frame."""
    try:
        trainer.train_from(checkpoint)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return next(iter(str(error).splitlines()), type(error).__name__)
    return None


def _release(trainer: AdapterTrainer, model: PeftModel) -> None:
    """Give back what a trainer put on the device and around the model."""
    model.zero_grad(set_to_none=True)
    trainer.optimizer = trainer.lr_scheduler = None
    hook = getattr(trainer, "neftune_hook_handle", None)
    if hook is not None:
        hook.remove()
    # The next trainer wraps the forward pass in autocast again; it would leave out a model that bears this mark.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    vars(model).pop("_is_accelerate_prepared", None)
    trainer.accelerator.free_memory()
    release_memory()


def _restore(model: PeftModel, start: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in start:
                parameter.copy_(start[name])


def _in_batches_of(size: int, training: Training) -> Training:
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return training.model_copy(
        update={"per_device_train_batch_size": size, "gradient_accumulation_steps": rows // size}
    )
